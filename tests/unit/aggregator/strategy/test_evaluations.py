"""How versions did at the sites, and which one did best."""

from __future__ import annotations

import math
from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from aggregator.strategy.evaluations import Evaluations, best_of
from aggregator.strategy.stopping import Stopping, VersionScore, reason_to_stop
from protocol.messages import Evaluation
from protocol.metrics import Direction


def said(value: float, examples: int = 10, metric: str = "dice") -> Evaluation:
    return Evaluation(examples=examples, metrics={metric: value})


def of(*words: tuple[int, str, Evaluation]) -> Evaluations:
    kept = Evaluations()
    for word in words:
        kept.add(*word)
    return kept


def values(kept: Evaluations, live: Collection[str] = ()) -> dict[int, float]:
    return {score.version: score.value for score in kept.history("dice", live)}


def test_a_versions_value_is_the_mean_weighted_by_examples() -> None:
    assert values(of((3, "a", said(1.0, 30)), (3, "b", said(0.0, 10)))) == {3: 0.75}


def test_who_did_not_measure_a_version_counts_with_what_it_measured_nearest() -> None:
    """Otherwise version 2, which the site with the easy images measured alone, would be the best."""
    kept = of(
        *((1, "easy", said(0.95)), (1, "hard", said(0.5))),
        (2, "easy", said(0.94)),
        *((3, "easy", said(0.96)), (3, "hard", said(0.6))),
    )
    assert values(kept) == {1: 0.725, 2: 0.72, 3: 0.78}
    best = best_of(kept.history("dice"), "max")
    assert best is not None
    assert best.version == 3


def test_before_its_first_word_a_site_counts_with_that() -> None:
    kept = of((0, "a", said(0.2)), (1, "a", said(0.4)), (1, "b", said(0.0)))
    assert values(kept) == {0: 0.1, 1: 0.2}


def test_half_of_those_who_can_have_to_measure_a_version() -> None:
    kept = of(*((0, site, said(0.5)) for site in "abc"), (1, "a", said(0.9)), *((2, site, said(0.6)) for site in "ab"))
    assert set(values(kept)) == {0, 2}


def test_there_is_no_history_before_more_than_half_of_the_live_sites_reported() -> None:
    kept = of((0, "a", said(0.9)))
    assert values(kept, {"a", "b"}) == {}
    kept.add(0, "b", said(0.5, metric="loss"))  # it measures, but not this: nothing is to be waited for
    assert values(kept, {"a", "b"}) == {0: 0.9}


def test_what_is_no_number_and_what_was_measured_on_nothing_do_not_count() -> None:
    kept = of((0, "a", said(math.nan)), (0, "b", said(math.inf)), (0, "c", said(1e300)), (0, "d", said(1.0, 0)))
    assert values(kept) == {}
    assert kept.names() == []
    assert best_of(kept.history("dice"), "max") is None


def test_of_equal_versions_the_newest_is_the_best() -> None:
    scores = [VersionScore(version=version, value=value) for version, value in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6))]
    best = best_of(scores, "max")
    assert best is not None
    assert best.version == 3


ANY = st.floats(allow_nan=True, allow_infinity=True)
WORDS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from("abcd"), ANY, st.integers(0, 100), st.sampled_from(["dice", "loss"]))
)


@given(WORDS, st.sampled_from(["max", "min"]), st.sets(st.sampled_from("abcdef")), ANY)
def test_the_best_is_finite_measured_and_not_beaten(
    words: list[tuple[int, str, float, int, str]], direction: Direction, live: set[str], target: float
) -> None:
    kept = of(*((version, site, said(value, examples, name)) for version, site, value, examples, name in words))
    history = kept.history("dice", live)
    best = best_of(history, direction)
    assert [score.version for score in history] == sorted({score.version for score in history})
    lowest = min((v for _, _, v, n, m in words if m == "dice" and n and abs(v) < 1e100), default=0.0)
    highest = max((v for _, _, v, n, m in words if m == "dice" and n and abs(v) < 1e100), default=0.0)
    slack = 1e-9 * max(abs(lowest), abs(highest))
    for score in history:
        assert lowest - slack <= score.value <= highest + slack
        assert best is not None
        assert score.value <= best.value if direction == "max" else score.value >= best.value
        assert score.value != best.value or score.version <= best.version
    if math.isfinite(target):
        rules = Stopping(metric="dice", direction=direction, target=target)
        met = reason_to_stop(rules, version=9, elapsed=0.0, history=history) is not None
        assert met == (best is not None and (best.value >= target if direction == "max" else best.value <= target))


@given(st.permutations(range(4)), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_the_order_of_arrival_does_not_matter(order: list[int], found: list[float]) -> None:
    words = [(index % 2, "ab"[index // 2], said(value, 1 + index)) for index, value in enumerate(found)]
    assert of(*words).history("dice") == of(*(words[index] for index in order)).history("dice")
