"""A disk that is really full, under an aggregator and under a worker: both wait for room, and lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.checks import violations
from tests.e2e.rig import Rig
from tests.support.disks import fill, small_disk
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers


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
