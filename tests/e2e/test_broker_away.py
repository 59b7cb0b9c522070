"""The broker or the store is away while everybody works on: nothing is lost, nobody dies, all goes on by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from protocol import topology
from tests.e2e.checks import violations
from tests.e2e.rig import Rig
from tests.support.fault_proxy import FaultProxy
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server
from worker.rules.outgoing import RECEIPT_WITHIN

pytestmark = pytest.mark.servers

AWAY_S = 8.0
LONG_AWAY_S = 60.0


def go_on_without(rig: Rig, proxy: FaultProxy, seconds: float, *, stalled: bool = False) -> int:
    """Take a server away for `seconds` from where the run is; returns the version at which it came back."""
    pids = [program.pid for program in rig.programs]
    trained = {site: worker.count("training.done") for site, worker in rig.workers.items()}
    if stalled:
        proxy.stall()
    else:
        proxy.refuse()
    back = time.monotonic() + seconds
    # Who was told of a version that he has not read yet has to wait for the store; else every site trains on.
    enough = any if proxy is rig.s3_proxy else all

    def trained_on() -> bool:
        return enough(worker.count("training.done") > trained[site] for site, worker in rig.workers.items())

    rig.wait(lambda: time.monotonic() > back and trained_on(), "nobody trains without the server", seconds + 30)
    version = rig.version
    if stalled:
        proxy.cut()
    proxy.heal()
    rig.wait_version(version + 3, 60)
    assert [program.pid for program in rig.programs] == pids
    return version


def settle(rig: Rig) -> None:
    """Bring the run to its end and look at everything."""
    rig.finish()
    rig.stop()
    assert violations(rig) == []


def slow_rig(tmp_path: Path, vhost: RabbitVhost, s3: S3Server) -> Rig:
    """Sites that may train eight times from one version, each of which takes a second."""
    strategy = {"name": "fedbuff", "buffer": 2, "updates_per_base": 8, "stale_limit": 50}
    return Rig(tmp_path, vhost, s3, seconds=1.0, strategy=strategy)


@pytest.mark.parametrize("stalled", [False, pytest.param(True, marks=pytest.mark.long)], ids=["refusing", "silent"])
def test_the_broker_is_away_and_workers_train_on(
    stalled: bool, tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with slow_rig(tmp_path, rabbit_broker, s3_server) as rig:
        rig.start()
        rig.wait_version(2)
        go_on_without(rig, rabbit_broker.proxy, AWAY_S, stalled=stalled)
        settle(rig)


def test_the_store_is_away_and_workers_train_on(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with slow_rig(tmp_path, rabbit_broker, s3_server) as rig:
        rig.start()
        rig.wait_version(2)
        go_on_without(rig, rig.s3_proxy, AWAY_S)
        settle(rig)


@pytest.mark.long
@pytest.mark.parametrize("which", ["broker", "store"])
def test_a_minute_without_a_server_loses_nothing(
    which: str, tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with slow_rig(tmp_path, rabbit_broker, s3_server) as rig:
        rig.start()
        rig.wait_version(2)
        go_on_without(rig, rabbit_broker.proxy if which == "broker" else rig.s3_proxy, LONG_AWAY_S)
        settle(rig)


@pytest.mark.long
def test_an_empty_broker_in_place_of_the_old_one_loses_nothing(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    """What only the broker had is lost: announcements, receipts, and updates that it confirmed and nobody has read."""
    with slow_rig(tmp_path, rabbit_broker, s3_server) as rig:
        rig.start()
        rig.wait_version(2)
        rig.aggregator.stop()

        def waiting() -> list[int]:
            counter = rabbit_broker.open()
            try:
                return [counter.depth(topology.in_queue(site)) for site in rig.sites]
            finally:
                counter.close()

        rig.wait(lambda: all(waiting()), "no updates wait at the broker", 60)
        rabbit_broker.proxy.refuse()
        for queue in topology.topology(rig.sites).queues:
            rabbit_broker.node.api("DELETE", "queues", rabbit_broker.vhost, queue.name)
        rabbit_broker.apply(topology.topology(rig.sites))
        rabbit_broker.proxy.heal()
        rig.aggregator = rig.program("aggregator-again")
        rig.aggregator.start()
        rig.finish(more=2, timeout=RECEIPT_WITHIN + 90)
        rig.stop()
        assert violations(rig) == []


def test_a_training_of_three_heartbeat_timeouts_keeps_its_connection(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    """The broker closes a connection that is silent for a heartbeat timeout; here that is two seconds."""
    with Rig(tmp_path, rabbit_broker, s3_server, sites=("anna", "bert"), seconds=6.5, heartbeat=2) as rig:
        rig.start()
        rig.wait(
            lambda: all(worker.count("training.done") >= 2 for worker in rig.workers.values()),
            "two trainings each",
            60,
        )
        rig.wait_version(1)
        for worker in rig.workers.values():
            assert worker.count("broker.connected") == 2  # one to publish, one to consume, since the start
            assert worker.count("broker.lost") == 0
