"""What must never reach a log, however something fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from fledge import log
log.configure(json_lines={json_lines})
def train(patient):
    delta = [patient] * 3
    raise RuntimeError("training broke")
try:
    train("Jane " + "Doe")
except RuntimeError:
    structlog.get_logger().exception("training.failed", store="s3://key:hunter2@host/bucket", password="hunter2")
"""


@pytest.mark.parametrize("json_lines", [True, False])
def test_a_traceback_shows_no_values_and_no_secrets(json_lines: bool) -> None:
    program = PROGRAM.format(json_lines=json_lines)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "training broke" in done.stderr
    assert "train" in done.stderr
    assert "Jane Doe" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    code = """
import os, structlog
from fledge import log
reading, writing = os.pipe()
os.close(reading)
log.configure(json_lines=True, file=os.fdopen(writing, "w"))
for number in range(3):
    structlog.get_logger().info("said", number=number)

os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
