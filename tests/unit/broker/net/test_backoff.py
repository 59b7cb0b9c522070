"""Waits between attempts."""

from __future__ import annotations

import random
from itertools import islice

from broker.net.backoff import full_jitter


class Longest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_longest_wait_doubles_up_to_the_cap() -> None:
    assert list(islice(full_jitter(Longest(), base=1.0, cap=10.0), 6)) == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_waits_are_spread_over_the_whole_interval() -> None:
    waits = list(islice(full_jitter(random.Random(1), base=8.0, cap=8.0), 1000))
    assert min(waits) < 0.1
    assert max(waits) > 7.9
    assert 3.7 < sum(waits) / 1000 < 4.3


def test_the_same_dice_give_the_same_waits() -> None:
    first, second = (list(islice(full_jitter(random.Random(7)), 20)) for _ in range(2))
    assert first == second
