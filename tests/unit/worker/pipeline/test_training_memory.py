"""A worker holds its model once: no second copy while it loads, measures, filters, encrypts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
MIB = 2**20
SIZE = 300
"""MiB of the model; half of it is one tensor."""
EXTRA = 145
"""MiB a worker may take on top, its libraries included: less than one copy of the largest tensor. Measured: 105."""


def peak(which: str) -> int:
    """Peak resident bytes of a process that trains a model of this size."""
    command = [sys.executable, "-m", "tests.support.training_memory", which, str(SIZE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: int = json.loads(done.stdout.splitlines()[-1])["peak"]
    return found


def test_a_worker_holds_no_second_copy_of_its_model() -> None:
    alone = peak("plain")
    assert alone > SIZE * MIB
    assert peak("worker") - alone < EXTRA * MIB
