"""Processes that load data begin alike on every Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.house import ROOT

ASK = """
import multiprocessing
from worker.api.processes import start_by_forking
{before}
start_by_forking()
print(multiprocessing.get_start_method())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have ways of their own")
@pytest.mark.parametrize(("before", "method"), [("", "fork"), ("multiprocessing.set_start_method('spawn')", "spawn")])
def test_they_begin_as_copies_unless_the_program_has_chosen(before: str, method: str) -> None:
    command = [sys.executable, "-c", ASK.format(before=before)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == method
