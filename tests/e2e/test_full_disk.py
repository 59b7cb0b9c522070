"""A disk that is really full, under an aggregator and under a worker: both wait for room, and lose nothing."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.checks import violations
from tests.e2e.rig import Rig
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers

MIB = 1024 * 1024


@contextmanager
def small_disk(where: Path, mib: int) -> Iterator[None]:
    """A disk of its own at this directory; without the right to mount one the test is skipped."""
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "fledge-test", str(where)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill(where: Path) -> Path:
    """Take every byte that is free; returns the file that has them."""
    filler = where / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


def test_an_aggregator_on_a_full_disk_waits_for_room_and_loses_nothing(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with Rig(tmp_path, rabbit_broker, s3_server) as rig, small_disk(rig.database.parent, 8):
        rig.start()
        rig.wait_version(2)
        pids = [program.pid for program in rig.programs]
        filler = fill(rig.database.parent)
        rig.wait(lambda: rig.aggregator.count("disk.full") > 0, "nothing noticed that the disk is full")
        version = rig.version

        filler.unlink()

        rig.wait_version(version + 2)
        assert [program.pid for program in rig.programs] == pids
        rig.finish()
        rig.stop()
        assert violations(rig) == []


@pytest.mark.long  # a worker looks for room every half minute
def test_a_worker_on_a_full_disk_stays_alive_and_trains_when_there_is_room(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    """A worker keeps 64 MiB free for its journal, so a disk with less has no room for another update."""
    with Rig(tmp_path, rabbit_broker, s3_server) as rig, small_disk(rig.kit("anna") / "state", 80):
        anna = rig.workers["anna"]
        rig.start()
        rig.wait(lambda: anna.count("update.settled") > 0, "anna's first receipt")
        pid = anna.pid
        filler = fill(rig.kit("anna") / "state")
        rig.wait(lambda: anna.count("training.failed", kind="DiskFull") > 0, "no training noticed the full disk")
        rig.wait_version(rig.version + 2)  # the others go on
        done = anna.count("training.done")

        filler.unlink()

        rig.wait(lambda: anna.count("training.done") > done, "anna trains no more")
        assert anna.pid == pid
        rig.finish()
        rig.stop()
        assert violations(rig) == []
