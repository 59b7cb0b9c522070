"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Iterator


def full_jitter(dice: random.Random, *, base: float = 0.2, cap: float = 30.0) -> Iterator[float]:
    """Yield the seconds to wait before each further attempt: uniform in [0, min(cap, base · 2ⁿ)], n = 0, 1, …

    Full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015) spreads clients that lost their server in the
    same instant. Starting over after a success means making a new iterator.
    """
    ceiling = base
    while True:
        yield dice.uniform(0.0, ceiling)
        ceiling = min(cap, 2.0 * ceiling)
