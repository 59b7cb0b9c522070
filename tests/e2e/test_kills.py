"""kill -9 at labelled points and at any moment; afterwards nothing is lost and nothing is counted twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.checks import tally, violations
from tests.e2e.killer import Plan, carry_out, deal, in_flight
from tests.e2e.program import Move, wait_for
from tests.e2e.rig import SITES, Rig
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers

LARGE = 2_500_000
"""float32 values of a model whose uploads, admissions and merges take long enough to be hit."""
ANNA, BERT, CLEO = SITES
PLAN = Plan(
    {
        "aggregator": [
            Move("label", "aggregator.merging", 3),
            Move("label", "aggregator.journalled", 2),
            Move("label", "aggregator.committed", 1),
            Move("event", "admission.started", 2, 0.02),
        ],
        ANNA: [Move("label", "worker.uploading", 1), Move("label", "worker.confirmed", 2)],
        BERT: [Move("label", "worker.spooled", 2), Move("event", "training.started", 2, 0.03)],
        CLEO: [Move("event", "upload.started", 1, 0.02), Move("label", "worker.receipt", 1)],
    }
)


def test_ten_kills_and_a_killed_broker_lose_nothing_and_count_nothing_twice(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with Rig(tmp_path, rabbit_broker, s3_server, elements=LARGE) as rig:
        deal(rig, PLAN)
        rig.start()
        deaths = carry_out(rig, PLAN, 90)
        rabbit_broker.node.kill()
        rabbit_broker.node.start()
        rig.finish()
        rig.stop()

        assert violations(rig) == []
        assert {death.program for death in deaths} == {"aggregator", *SITES}
        assert all(death.code == -signal.SIGKILL for death in deaths)
        assert sum(death.planned for death in deaths) >= PLAN.kills - 1
        assert in_flight(deaths) >= 4
        assert tally(rig).merged > 0


def test_a_second_aggregator_takes_over_and_the_first_exits_with_code_3(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with Rig(tmp_path, rabbit_broker, s3_server) as rig:
        rig.start()
        rig.wait_version(2)
        first, second = rig.aggregator, rig.program("second")
        second.start()
        try:
            wait_for(rig.changed, lambda: bool(first.deaths), lambda: "the first aggregator goes on", 30)
            assert [death.code for death in first.deaths] == [3]
            rig.aggregator = second
            rig.wait_version(rig.version + 2)
            rig.finish()
            rig.stop()
            assert violations(rig) == []
        finally:
            second.stop(5)
