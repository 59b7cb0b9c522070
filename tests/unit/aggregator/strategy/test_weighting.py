"""Example weights, the participation correction and the norm bound."""

from __future__ import annotations

import math

import pytest

from aggregator.strategy.weighting import SiteStats, clip_factor, example_weights, observe


def stats(examples: int, seconds: float) -> SiteStats:
    return SiteStats(examples=examples, seconds=seconds, updates=1)


def test_weights_follow_the_examples_and_average_one() -> None:
    weights = example_weights({"a": stats(30, 1), "b": stats(10, 99)}, corrected=False)
    assert weights == {"a": 1.5, "b": 0.5}


def test_the_correction_makes_influence_proportional_to_examples() -> None:
    population = {"a": stats(100, 1.0), "b": stats(100, 2.0), "c": stats(50, 4.0), "d": stats(150, 1.0)}
    weights = example_weights(population, corrected=True)
    influence = {site: weights[site] / population[site].seconds for site in population}
    assert sum(weights.values()) == pytest.approx(4)
    assert influence["a"] == pytest.approx(influence["b"])
    assert influence["c"] == pytest.approx(influence["a"] / 2)
    assert influence["d"] == pytest.approx(influence["a"] * 1.5)


def test_one_site_weighs_one() -> None:
    assert example_weights({"a": stats(5, 3.0)}, corrected=True) == {"a": 1.0}


def test_sites_without_examples_weigh_alike_when_nobody_has_any() -> None:
    assert example_weights({"a": stats(0, 1), "b": stats(0, 2)}, corrected=True) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("lie", [stats(10**12, 1.0), stats(100, 1e12)])
def test_a_lie_gains_at_most_half_and_leaves_the_others_their_proportions(lie: SiteStats) -> None:
    population = {"liar": lie, "a": stats(100, 1), "b": stats(200, 1), "c": stats(300, 1)}
    weights = example_weights(population, corrected=True)
    assert weights["liar"] == 2.0
    assert [weights[site] for site in "abc"] == pytest.approx([2 / 6, 4 / 6, 6 / 6])


def test_a_liar_among_sites_without_examples_leaves_them_equal_shares() -> None:
    population = {"liar": stats(10, 1), "a": stats(0, 1), "b": stats(0, 1), "c": stats(0, 1)}
    weights = example_weights(population, corrected=True)
    assert weights["liar"] == 2.0
    assert [weights[site] for site in "abc"] == pytest.approx([2 / 3] * 3)


def test_the_training_time_is_a_plain_mean_at_first_and_then_follows_changes() -> None:
    known = observe(None, examples=10, seconds=1.0)
    for seconds in (2.0, 3.0):
        known = observe(known, examples=10, seconds=seconds)
    assert known.seconds == pytest.approx(2.0)
    assert (known.examples, known.updates) == (10, 3)
    for _ in range(30):
        known = observe(known, examples=12, seconds=9.0)
    assert known.seconds == pytest.approx(9.0, rel=0.01)
    assert known.examples == 12


def test_a_trainer_too_fast_for_the_clock_counts_as_a_millisecond() -> None:
    assert observe(None, examples=1, seconds=0.0).seconds == 1e-3


def test_a_site_that_claims_to_train_for_ever_breaks_no_sum() -> None:
    liars = {name: observe(None, examples=2**40, seconds=1.7e308) for name in ("a", "b", "c")}
    weights = example_weights({**liars, "d": observe(None, examples=1, seconds=1.0)}, corrected=True)
    assert all(math.isfinite(weight) for weight in weights.values())
    assert observe(liars["a"], examples=1, seconds=float("inf")).seconds == 1e9


def test_a_norm_ten_times_the_median_is_the_most_that_passes_unclipped() -> None:
    recent = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert clip_factor(30.0, recent) == 1.0
    assert clip_factor(60.0, recent) == 0.5


def test_there_is_no_bound_before_five_norms_are_known() -> None:
    assert clip_factor(1e9, [1.0] * 4) == 1.0
    assert clip_factor(1e9, [0.0] * 20) == 1.0


def test_a_zero_delta_is_left_alone() -> None:
    assert clip_factor(0.0, [1.0] * 9) == 1.0


def test_only_the_last_norms_count() -> None:
    assert clip_factor(100.0, [1e6] * 100 + [1.0] * 64) == 0.1
