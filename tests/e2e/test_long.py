"""What takes minutes: thirty kills, and mutants on the real servers that the same checks have to find out."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.checks import violations
from tests.e2e.killer import Plan, carry_out, deal
from tests.e2e.long import out, report, run
from tests.e2e.mutant_main import MUTANTS
from tests.e2e.program import Move, wait_for
from tests.e2e.rig import MUTANT, SITES, Rig
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

pytestmark = [pytest.mark.long, pytest.mark.servers]

KILLS = 30
MOVES: dict[str, Sequence[Move]] = {
    "ack-before-journal": [Move("label", "aggregator.received", 5), Move("label", "aggregator.received", 3)],
    "no-unique-key": [Move("label", "aggregator.journalled", 5), Move("label", "aggregator.journalled", 3)],
    "announce-before-commit": [Move("label", "aggregator.merged", 3), Move("label", "aggregator.merged", 2)],
}
"""Where each mutant has to die to show what it has broken."""
SHOWN_BY = {
    "ack-before-journal": "never got a receipt",
    "no-unique-key": "rows with the same site, id",
    "announce-before-commit": "was announced that is not in the journal",
}
"""The finding that gives each of them away."""


def test_thirty_kills_lose_nothing_and_count_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FLEDGE_SEED") or secrets.randbelow(2**31))
    with capsys.disabled():
        out(f"\nseed={seed}")
    ordeal = run(seed, KILLS)
    with capsys.disabled():
        out(report(ordeal))
    assert ordeal.violations == ()
    assert len(ordeal.deaths) == KILLS
    assert {name: count for name, count in ordeal.by_program.items() if count < 6} == {}
    assert ordeal.in_flight >= 20


@pytest.mark.parametrize("mutant", [None, *MOVES])
def test_the_checks_find_a_mutant_out_and_nothing_else(
    mutant: str | None, tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    """Every mutant is killed where it hurts; the same kills do the product no harm."""
    plans = [MOVES[mutant]] if mutant else list(MOVES.values())
    moves = [move for plan in plans for move in plan]
    plan = Plan({"aggregator": moves, **dict.fromkeys(SITES, ())})
    with Rig(tmp_path, rabbit_broker, s3_server, main=MUTANT, mutant=mutant) as rig:
        deal(rig, plan)
        rig.start()
        found = ordeal_findings(rig, plan)
    if mutant is None:
        assert found == []
    else:
        assert any(SHOWN_BY[mutant] in finding for finding in found), found


def ordeal_findings(rig: Rig, plan: Plan) -> list[str]:
    """What is wrong after the kills: broken promises, or that the run does not even come to its end."""
    try:
        carry_out(rig, plan, 60)
        rig.finish(timeout=30)
    except AssertionError as stuck:
        rig.stop()
        return [str(stuck), *violations(rig)]
    rig.stop()
    return violations(rig)


@pytest.mark.parametrize("mutant", [None, "no-fence"])
def test_without_the_fence_the_first_aggregator_does_not_give_way(
    mutant: str | None, tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with Rig(tmp_path, rabbit_broker, s3_server, main=MUTANT, mutant=mutant) as rig:
        rig.start()
        rig.wait_version(2)
        first, second = rig.aggregator, rig.program("second")
        second.start()
        try:
            wait_for(rig.changed, lambda: second.count("version.committed") >= 3 or bool(first.deaths), _nothing, 30)
            wait_for(rig.changed, lambda: bool(first.deaths), _nothing, 10 if mutant is None else 5)
        except AssertionError:
            pass  # whoever is not fenced goes on, or both get in each other's way until nothing goes on
        finally:
            second.stop(5)
        assert ([death.code for death in first.deaths] == [3]) == (mutant is None)


def _nothing() -> str:
    return "nothing happened"


def test_every_mutant_is_tried() -> None:
    assert set(MOVES) | {"no-fence"} == set(MUTANTS)
