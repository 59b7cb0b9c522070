"""Which version of a run a command means that names none: the best, or else the newest."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator.config import RunConfig
from aggregator.domain import effects, events, writes
from aggregator.strategy.stopping import Stopping
from protocol.messages import Evaluation, RunState
from tests.support.aggregator_rules import RUN, Desk


def measured(stopping: Stopping | None = None) -> Desk:
    """Version 1 has the better accuracy, version 2 the smaller loss, and version 3 was measured by nobody."""
    desk = Desk(**({} if stopping is None else {"stopping": stopping}))
    desk.advance(3)
    for version, accuracy, loss in ((0, 0.1, 2.0), (1, 0.9, 0.7), (2, 0.8, 0.5)):
        for site in ("alpha", "beta"):
            said = Evaluation(examples=10, metrics={"accuracy": accuracy, "loss": loss})
            desk.turn(events.EvaluationArrived(delivery="e", site=site, run=RUN, version=version, evaluation=said))
    return desk


def order(desk: Desk, command: str, **arguments: Any) -> None:
    given = {"run": RUN, "name": "lung", **arguments}
    counter = 1 + desk.now
    desk.now += 1
    desk.turn(
        events.CommandArrived(
            delivery="d", operator="olga", counter=int(counter), command=command, arguments=given, id=b"c" * 16
        )
    )


@pytest.mark.parametrize("command", ["model.publish", "model.export"])
@pytest.mark.parametrize(
    ("stopping", "named", "version", "chosen"),
    [
        (None, None, 1, "the best by accuracy: 0.9"),
        (None, "best", 1, "the best by accuracy: 0.9"),
        (Stopping(metric="loss", direction="min"), None, 2, "the best by loss: 0.5"),
        (Stopping(metric="loss", direction="max"), None, 0, "the best by loss: 2"),
        (None, "newest", None, "the newest"),
        (None, 0, 0, ""),
        (Stopping(metric="dice"), None, None, "the newest, because no site has measured one"),
    ],
)
def test_a_command_means_the_best_version_unless_it_says_which(
    command: str, stopping: Stopping | None, named: object, version: int | None, chosen: str
) -> None:
    desk = measured(stopping)
    order(desk, command, **({} if named is None else {"version": named}))
    asked = desk.only(effects.Prepare)
    assert (asked.version, asked.chosen) == (version, chosen)


def test_the_best_is_still_known_after_a_restart() -> None:
    desk = measured()
    desk.start()
    order(desk, "model.publish")
    assert desk.only(effects.Prepare).version == 1


@pytest.mark.parametrize(("named", "reason"), [("best", "not_measured"), ("latest", "bad_argument")])
def test_a_version_that_is_not_known_is_refused_in_a_word(named: str, reason: str) -> None:
    desk = Desk()
    desk.advance()
    order(desk, "model.publish", version=named)
    assert desk.only(effects.AnswerCommand).reason == reason


def test_a_run_that_reached_its_end_goes_on_to_a_later_one() -> None:
    desk = Desk(stopping=Stopping(max_versions=1, metric="accuracy", target=0.9))
    desk.advance()
    for until, reason in ((None, "run_complete"), (1, "version_is_there"), (0, "bad_argument"), (True, "bad_argument")):
        order(desk, "run.start", **({} if until is None else {"until": until}))
        assert desk.only(effects.AnswerCommand).reason == reason
    desk.evaluate("alpha", 1, 0.99), desk.evaluate("beta", 1, 0.99)
    order(desk, "run.start", until=2)
    assert desk.only(effects.AnswerCommand).reason == "ok"
    assert writes.SetEnd(run=RUN, versions=2) in desk.writes
    assert RunConfig.model_validate_json(desk.journal.run(RUN).record().config).stop.max_versions == 2
    assert desk.state_of_run.state == RunState.RUNNING  # the target ends it no more
    desk.advance()
    assert (desk.state_of_run.version, desk.state_of_run.state) == (2, RunState.STOPPED)


def test_only_what_goes_on_takes_another_end() -> None:
    desk = Desk()
    order(desk, "run.pause", until=9)
    assert desk.state_of_run.rules.stopping == Stopping()


def test_what_is_measured_after_the_end_counts_for_the_best() -> None:
    desk = Desk(stopping=Stopping(max_versions=1))
    desk.evaluate("alpha", 0, 0.5)
    desk.evaluate("beta", 0, 0.5)
    desk.advance()
    assert desk.state_of_run.state == RunState.STOPPED
    for site in ("alpha", "beta"):
        desk.evaluate(site, 1, 0.75)
    best = desk.state_of_run.best
    assert best is not None
    assert (best.version, best.value) == (1, 0.75)
