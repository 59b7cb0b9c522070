"""The step under way: writes and effects as the rules decide them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from worker.domain.effects import Effect
from worker.domain.writes import Write


@dataclass(slots=True)
class Decisions:
    """What the step under way has come to so far."""

    writes: list[Write] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


def pause(dice: random.Random, attempts: int, *, longest: float) -> float:
    """Seconds to wait after the n-th failure in a row: doubling, with half of it left to chance."""
    return dice.uniform(0.5, 1.0) * min(longest, 2.0 ** min(attempts, 16))
