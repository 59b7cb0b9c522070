"""What operators are told of a run's learning."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sqlalchemy import Executable, Row

from aggregator.domain import events
from aggregator.operators.run_metrics import amiss, of_sites, outcome
from aggregator.strategy.stopping import Stopping
from protocol.messages import Evaluation
from tests.support.aggregator_rules import RUN, Desk


def say(desk: Desk, site: str, version: int, metrics: Mapping[str, float], examples: int = 10) -> None:
    said = Evaluation(examples=examples, metrics=dict(metrics))
    desk.turn(events.EvaluationArrived(delivery="e", site=site, run=RUN, version=version, evaluation=said))


def rows(desk: Desk, statement: Executable) -> list[Row[tuple[object, ...]]]:
    with desk.engine.connect() as db:
        return list(db.execute(statement))


def test_the_metric_its_newest_and_its_best_value_are_told() -> None:
    desk = Desk()
    assert outcome(desk.state_of_run) == {}
    desk.advance(2)
    for version, loss in ((0, 0.9), (1, 0.25), (2, 0.5)):
        for site in ("alpha", "beta"):
            say(desk, site, version, {"loss": loss})
    assert outcome(desk.state_of_run) == {
        "metric": "loss",
        "better": "less",
        "measured": 0.5,
        "measured_version": 2,
        "best": 0.25,
        "best_version": 1,
    }


def test_each_site_has_the_loss_of_its_newest_training_and_what_it_measured_last() -> None:
    desk = Desk()
    for loss in (0.9, 0.75):
        desk.arrive(desk.notice("alpha", metrics={"loss": loss, "grad": 3.0}, steps=4))
    desk.arrive(desk.notice("beta", metrics={"dice": 0.5}))
    say(desk, "alpha", 0, {"accuracy": 0.5})
    found = of_sites(desk.state_of_run, lambda statement: rows(desk, statement), ["alpha", "beta", "gamma"])
    assert found == {"alpha": (0.75, 0.5), "beta": (0.5, None), "gamma": (None, None)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], ""),
        (
            [("alpha", {"accuracy": 0.5, "loss": 1.0})],
            "no site reports dice, which the run is to be compared by; they report accuracy, loss",
        ),
        ([("alpha", {})], "no site reports dice, which the run is to be compared by; they report no number at all"),
        ([("alpha", {"dice": 0.5})], "dice does not count yet: 1 of 2 sites report it, and more than half have to"),
        (
            [("alpha", {"dice": 0.5}), ("beta", {"loss": 0.5})],
            "1 of 2 sites that measure do not report dice, and are left out of it",
        ),
        ([("alpha", {"dice": 0.5}), ("beta", {"dice": 0.6})], ""),
    ],
)
def test_a_stop_metric_that_cannot_end_the_run_is_said_with_what_is_reported(
    words: list[tuple[str, dict[str, float]]], says: str
) -> None:
    desk = Desk(stopping=Stopping(metric="dice", target=0.9))
    for site, metrics in words:
        say(desk, site, 0, metrics)
    assert amiss(desk.state_of_run) == says
    assert outcome(desk.state_of_run).get("note", "") == says
