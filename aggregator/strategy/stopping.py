"""When a run ends by itself: the first of target metric, patience, number of versions and wall time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import ConfigError
from protocol.metrics import Direction


class Reason(StrEnum):
    """Why a run ended; journalled and announced."""

    TARGET_METRIC = "target_metric"
    PATIENCE = "patience"
    MAX_VERSIONS = "max_versions"
    MAX_WALL_TIME = "max_wall_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The configured ends of a run; what is None never ends it.

    Args:
        metric: name of the evaluated metric that `target` and `patience` look at.
        direction: whether more ("max") or less ("min") of it is better.
        target: the value that is good enough.
        patience: versions evaluated since the best one without improvement.
        max_versions: the last version.
        max_wall_time: seconds since the run started.
    """

    metric: str | None = None
    direction: Direction = "max"
    target: float | None = None
    patience: int | None = None
    max_versions: int | None = None
    max_wall_time: float | None = None

    def __post_init__(self) -> None:
        if self.metric is None and (self.target is not None or self.patience is not None):
            raise ConfigError("target and patience need a metric: name the one to look at, for example accuracy")
        if self.direction not in ("max", "min"):
            raise ConfigError(f'the direction of {self.metric} must be "max" or "min", not {self.direction!r}')
        if self.target is not None and not math.isfinite(self.target):
            raise ConfigError(f"the target of {self.metric} must be a finite number, not {self.target}")
        for name in ("patience", "max_versions", "max_wall_time"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}; leave it out to have none")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionScore:
    """The metric's value for one version."""

    version: int
    value: float
    sites: int = 1
    """How many measured this very version."""


def reason_to_stop(
    rules: Stopping, *, version: int, elapsed: float, history: Sequence[VersionScore] = ()
) -> Reason | None:
    """Return why the run ends now, or None.

    Args:
        version: the current version.
        elapsed: seconds since the run started, pauses excluded.
        history: the metric by version, ascending; late or missing evaluations may leave gaps, and values that are
            not finite count as no improvement.
    """
    sign = 1.0 if rules.direction == "max" else -1.0
    scores = [(sign * entry.value, entry.version) for entry in history if math.isfinite(entry.value)]
    if rules.target is not None and any(score >= sign * rules.target for score, _ in scores):
        return Reason.TARGET_METRIC
    if rules.max_versions is not None and version >= rules.max_versions:
        return Reason.MAX_VERSIONS
    if rules.patience is not None and history:
        best = max(scores, key=lambda entry: (entry[0], -entry[1]))[1] if scores else history[0].version
        if history[-1].version - best >= rules.patience:
            return Reason.PATIENCE
    if rules.max_wall_time is not None and elapsed >= rules.max_wall_time:
        return Reason.MAX_WALL_TIME
    return None
