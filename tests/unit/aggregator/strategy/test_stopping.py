"""When a run ends by itself."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator.strategy.stopping import Reason, Stopping, VersionScore, reason_to_stop
from protocol.errors import ConfigError


def history(*values: float) -> list[VersionScore]:
    return [VersionScore(version=version, value=value) for version, value in enumerate(values)]


def reason(rules: Stopping, *values: float, version: int = 3, elapsed: float = 0.0) -> Reason | None:
    return reason_to_stop(rules, version=version, elapsed=elapsed, history=history(*values))


def test_a_run_without_rules_never_ends() -> None:
    assert reason(Stopping(), 1.0, 0.0, version=10**9, elapsed=1e12) is None


def test_the_target_ends_a_run_in_either_direction() -> None:
    most = Stopping(metric="accuracy", target=0.95)
    assert reason(most, 0.5, 0.949) is None
    assert reason(most, 0.5, 0.95) is Reason.TARGET_METRIC
    least = Stopping(metric="loss", direction="min", target=0.1)
    assert reason(least, 0.5, 0.11) is None
    assert reason(least, 0.5, 0.1) is Reason.TARGET_METRIC


def test_a_target_once_reached_stays_reached_though_a_later_evaluation_came_first() -> None:
    assert reason(Stopping(metric="accuracy", target=0.9), 0.91, 0.85) is Reason.TARGET_METRIC


def test_patience_counts_versions_since_the_best() -> None:
    rules = Stopping(metric="accuracy", patience=3)
    assert reason(rules, 0.1, 0.8, 0.7, 0.8) is None
    assert reason(rules, 0.1, 0.8, 0.7, 0.8, 0.8) is Reason.PATIENCE
    assert reason(rules, 0.1, 0.8, 0.7, 0.8, 0.81) is None


def test_patience_looks_at_the_least_where_less_is_better() -> None:
    rules = Stopping(metric="loss", direction="min", patience=2)
    assert reason(rules, 3.0, 2.0, 1.0) is None
    assert reason(rules, 1.0, 2.0, 3.0) is Reason.PATIENCE


def test_patience_counts_over_versions_nobody_evaluated() -> None:
    rules = Stopping(metric="accuracy", patience=5)
    gaps = [VersionScore(version=2, value=0.9), VersionScore(version=7, value=0.8)]
    assert reason_to_stop(rules, version=7, elapsed=0.0, history=gaps) is Reason.PATIENCE


def test_a_metric_that_is_not_finite_is_no_improvement() -> None:
    rules = Stopping(metric="accuracy", target=0.99, patience=2)
    assert reason(rules, 0.5, float("nan")) is None
    assert reason(rules, 0.5, float("inf"), float("nan")) is Reason.PATIENCE
    assert reason(rules, *[float("nan")] * 3) is Reason.PATIENCE


def test_versions_and_wall_time_end_a_run() -> None:
    assert reason(Stopping(max_versions=4), version=3) is None
    assert reason(Stopping(max_versions=4), version=4) is Reason.MAX_VERSIONS
    assert reason(Stopping(max_wall_time=60.0), elapsed=59.9) is None
    assert reason(Stopping(max_wall_time=60.0), elapsed=60.0) is Reason.MAX_WALL_TIME


def test_success_is_told_before_exhaustion() -> None:
    rules = Stopping(metric="accuracy", target=0.9, patience=1, max_versions=1, max_wall_time=1.0)
    assert reason(rules, 0.95, 0.9, version=5, elapsed=9.0) is Reason.TARGET_METRIC


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": 0.9}, "need a metric"),
        ({"patience": 3}, "need a metric"),
        ({"metric": "loss", "direction": "down"}, '"max" or "min"'),
        ({"metric": "loss", "target": float("nan")}, "finite"),
        ({"metric": "loss", "patience": 0}, "patience must be above 0"),
        ({"max_versions": 0}, "max_versions must be above 0"),
        ({"max_wall_time": float("nan")}, "max_wall_time must be above 0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stopping(**fields)
