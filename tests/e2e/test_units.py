"""The calls of the kernel that fledge and torch make are those that the units' filters let through."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.keys import Role
from tests.support.house import ROOT
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server
from tests.support.units import UNITS, allowed, settings, unit

pytestmark = [pytest.mark.long, pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")]
LOADERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    images = TensorDataset(torch.randn(8, 1, 16, 16, 16))
    network = torch.nn.Conv3d(1, 8, 3)
    for (batch,) in DataLoader(images, batch_size=2, num_workers=2):
        network(batch).sum().backward()
"""


def refused(role: Role, program: Sequence[str], folder: Path) -> list[str]:
    """The calls that a program makes, with all its processes, and that this unit would refuse."""
    let = allowed(settings(unit(role))["SystemCallFilter"])
    # Only what is not let through is written down; a name of the filter's that strace does not know is passed over.
    others = "!" + ",".join(f"?{call}" for call in sorted(let))
    log = folder / "calls"
    command = ["strace", "--seccomp-bpf", "-f", "-qq", "-o", str(log), "-e", f"trace={others}", "-e", "signal=none"]
    done = subprocess.run([*command, sys.executable, *program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made = set(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    # As root alone, SQLite gives the files beside a database to the database's owner.
    return sorted(made - ({"fchown"} if os.geteuid() == 0 else set()))


@pytest.mark.servers
@pytest.mark.parametrize("role", UNITS)
def test_no_call_of_a_federation_is_refused(
    role: Role, tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_BROKER", rabbit_broker.url())
    monkeypatch.setenv("FLEDGE_STORE", s3_server.url(f"b{os.urandom(8).hex()}"))
    assert refused(role, ["-m", "fledge", "demo", "--quick", "--sites", "2", "--processes"], tmp_path) == []


def test_no_call_of_torch_is_refused(tmp_path: Path) -> None:
    assert refused(Role.SITE, ["examples/torch_digits.py"], tmp_path) == []


def test_no_call_of_processes_that_load_data_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "loaders.py"
    program.write_text(LOADERS)
    assert refused(Role.SITE, [str(program)], tmp_path) == []


def test_a_call_that_is_refused_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "owner.py"
    program.write_text(f"import os; os.chown({str(tmp_path)!r}, os.getuid(), os.getgid())")
    assert refused(Role.SITE, [str(program)], tmp_path) == ["chown"]
