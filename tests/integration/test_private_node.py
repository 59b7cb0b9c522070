"""The tests' own broker leaves nothing behind, from wherever its programs come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rabbit import BIN, require_rabbit
from tests.support.waiting import eventually

pytestmark = [pytest.mark.servers, pytest.mark.long]

RUN = """
import sys, time
from tests.support.rabbit import RabbitNode
node = RabbitNode()
node.start()
print(node.base, flush=True)
time.sleep(600)
"""


def of_node(base: Path) -> list[str]:
    """The command lines of what belongs to a node: it has the node's folder as its home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            if b"HOME=" + os.fsencode(base) in environment:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def test_a_test_run_that_is_killed_leaves_no_broker_no_epmd_no_files_and_no_mounts() -> None:
    require_rabbit()
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        base = Path(run.stdout.readline().strip())
        assert base.is_dir()
        started = of_node(base)
        assert any("beam" in command for command in started)
        assert any("epmd" in command for command in started)
        run.kill()
    eventually(lambda: not base.exists(), "its files are gone")
    eventually(lambda: not of_node(base), "its processes are gone, and with them what only they had mounted")
    assert str(BIN.parent) not in Path("/proc/self/mountinfo").read_text()


def test_a_folder_without_rabbitmq_is_an_error_that_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "long", "-k", "killed", __file__],
        env={**os.environ, "RABBITMQ_BIN": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"RABBITMQ_BIN={tmp_path} holds no rabbitmq-server; unset it" in done.stdout
