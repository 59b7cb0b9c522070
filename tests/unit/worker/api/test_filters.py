"""Privacy filters: what they do to a delta, and which configurations are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from protocol.errors import ConfigError, TrainingError
from protocol.messages import Named
from tests.support.packages import install
from worker.api.filters import FILTERS, Clip, FilterChain, Gaussian, PrivacyFilter, Slice, build, change, fresh_dice


def chain(*chosen: tuple[str, dict[str, Any]]) -> FilterChain:
    return build([Named(name=name, parameters=parameters) for name, parameters in chosen])


def through(filters: FilterChain, *slices: np.ndarray, seed: int = 1) -> list[np.ndarray]:
    """What comes out, as `contribute` runs a chain."""
    filters.begin(np.random.default_rng(seed))
    for measuring, before in filters.measuring():
        for each in slices:
            seen = each.copy()
            for earlier in before:
                earlier.apply(seen)
            measuring.measure(seen)
    result = [each.copy() for each in slices]
    for each in result:
        filters.apply(each)
    return result


def norm(slices: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(each, dtype=np.float64).sum() for each in slices)))


def test_clip_bounds_the_norm_of_all_slices_together() -> None:
    given = [np.full(100, 3, np.float32), np.full(50, -4, np.float32)]
    found = through(chain(("clip", {"norm": 2.0})), *given)
    assert 2.0 * (1 - 1e-5) < norm(found) <= 2.0
    np.testing.assert_allclose(found[0][0] / found[1][0], -0.75, rtol=1e-6)


def test_clip_leaves_small_deltas_exactly_as_they_are() -> None:
    given = np.array([0.1, -0.2, 1e-30], np.float32)
    (found,) = through(chain(("clip", {"norm": 1})), given)
    np.testing.assert_array_equal(found, given)


def test_clip_measures_norms_that_float32_cannot() -> None:
    given = np.full(1000, 1e30, np.float32)
    (found,) = through(chain(("clip", {"norm": 1.0})), given)
    assert 0.9999 < norm([found]) <= 1.0


def test_clip_begins_anew_with_every_update() -> None:
    filters = chain(("clip", {"norm": 1.0}))
    through(filters, np.full(10, 100, np.float32))
    given = np.full(4, 0.25, np.float32)
    (found,) = through(filters, given)
    np.testing.assert_array_equal(found, given)


def test_a_second_clip_sees_what_the_first_one_leaves() -> None:
    given = np.full(16, 10, np.float32)
    (found,) = through(chain(("clip", {"norm": 2.0}), ("clip", {"norm": 1.0})), given)
    assert 0.9999 < norm([found]) <= 1.0


def test_gaussian_noise_has_the_multiple_of_the_clip_norm_as_its_deviation() -> None:
    filters = chain(("clip", {"norm": 0.5}), ("gaussian", {"noise_multiplier": 3.0}))
    noise = np.concatenate(through(filters, *(np.zeros(100_000, np.float32) for _ in range(3))))
    assert abs(noise.mean()) < 5 * 1.5 / np.sqrt(noise.size)
    assert abs(noise.std() / 1.5 - 1) < 0.01
    assert abs((np.abs(noise) < 1.5).mean() - 0.6827) < 0.005


def test_gaussian_noise_is_relative_to_the_smallest_clip_before_it() -> None:
    filters = chain(("clip", {"norm": 0.5}), ("clip", {"norm": 9.0}), ("gaussian", {"noise_multiplier": 1.0}))
    (noise,) = through(filters, np.zeros(100_000, np.float32))
    assert abs(noise.std() / 0.5 - 1) < 0.02


def test_noise_is_fresh_for_every_slice_and_every_update() -> None:
    filters = chain(("clip", {"norm": 1.0}), ("gaussian", {"noise_multiplier": 1.0}))
    zeros = np.zeros(64, np.float32)
    first, second = through(filters, zeros, zeros)
    assert not np.array_equal(first, second)
    assert fresh_dice().integers(2**63) != fresh_dice().integers(2**63)


def test_the_dice_decide_the_noise() -> None:
    filters = chain(("clip", {"norm": 1.0}), ("gaussian", {"noise_multiplier": 1.0}))
    zeros = np.zeros(64, np.float32)
    same, again, other = (through(filters, zeros, seed=seed)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def test_unsafe_none_changes_nothing_and_warns_each_time() -> None:
    filters = chain(("unsafe-none", {}))
    given = np.array([1e9, -1], np.float32)
    with capture_logs() as logs:
        for _ in range(2):
            np.testing.assert_array_equal(through(filters, given)[0], given)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["privacy.off"] * 2


def test_an_empty_chain_is_refused_and_the_way_out_named() -> None:
    with pytest.raises(ConfigError, match="unsafe-none"):
        build([])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([("clipp", {})], "no privacy filter called 'clipp'; known: clip, gaussian, unsafe-none"),
        ([("clip", {})], "norm"),
        ([("clip", {"norm": 1.0, "p": 2})], "p is unknown; known: norm"),
        ([("unsafe-none", {"norm": 1.0})], "norm is unknown; known: none"),
        ([("clip", {"norm": 0})], "positive"),
        ([("clip", {"norm": "1"})], "positive"),
        ([("clip", {"norm": True})], "positive"),
        ([("clip", {"norm": float("inf")})], "positive"),
        ([("gaussian", {"noise_multiplier": 1.0})], "needs `clip` before it"),
        ([("gaussian", {"noise_multiplier": 1.0}), ("clip", {"norm": 1.0})], "'clip'.*before 'gaussian'"),
        ([("clip", {"norm": 1.0}), ("gaussian", {"noise_multiplier": -1.0})], "positive"),
        ([("clip", {"norm": 1.0}), ("gaussian", {"noise_multiplier": 1.0}), ("clip", {"norm": 1.0})], "before"),
        (
            [("clip", {"norm": 1.0}), ("gaussian", {"noise_multiplier": 1.0}), ("gaussian", {"noise_multiplier": 1.0})],
            "needs `clip`",
        ),
    ],
)
def test_filters_that_cannot_work_are_refused(chosen: list[tuple[str, dict[str, Any]]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chain(*chosen)


class _Elsewhere(PrivacyFilter):
    """Takes the result of `apply` for what is sent."""

    def apply(self, values: Slice) -> Any:
        return values * 0


class _InPlace(PrivacyFilter):
    def apply(self, values: Slice) -> Any:
        values *= 0
        return values


class _Claims(PrivacyFilter):
    """Says what it likes of the norm that comes out."""

    def __init__(self, bound: Any) -> None:
        self.bound = bound

    def begin(self, bound: float | None, dice: np.random.Generator) -> Any:
        return self.bound

    def apply(self, values: Slice) -> None:
        """Nothing."""


def test_a_filter_that_returns_other_values_instead_of_changing_them_sends_nothing() -> None:
    for use in (FilterChain((), (_Elsewhere(),)).apply, lambda values: change(_Elsewhere(), values)):
        with pytest.raises(TrainingError, match="_Elsewhere returns values instead of changing"):
            use(np.ones(4, np.float32))
    values = np.ones(4, np.float32)
    FilterChain((), (_InPlace(),)).apply(values)
    assert not values.any()


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_norm_that_is_none_is_refused_before_noise_is_drawn_by_it(bound: object) -> None:
    with pytest.raises(ConfigError, match=r"_Claims: begin returns .* has to be a positive number, or None"):
        FilterChain((), (_Claims(bound), Gaussian(1.0))).begin(fresh_dice())


@pytest.mark.parametrize("bound", [2, np.float32(2)])
def test_a_norm_may_be_a_number_of_any_kind(bound: object) -> None:
    FilterChain((), (_Claims(bound), Gaussian(1.0))).begin(fresh_dice())


def test_a_chain_names_its_filters_as_they_were_configured() -> None:
    chosen = (("clip", {"norm": 2}), ("gaussian", {"noise_multiplier": 0.5}))
    assert [(each.name, each.parameters) for each in chain(*chosen).named] == list(chosen)


def test_the_built_in_filters_can_be_read_in_one_place() -> None:
    assert FILTERS.builtins["clip"] is Clip
    assert FILTERS.builtins["gaussian"] is Gaussian


def test_a_filter_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from fledge import PrivacyFilter\n"
        "class Halve(PrivacyFilter):\n"
        "    def apply(self, values):\n"
        "        values *= 0.5\n"
        "class Bare:\n"
        "    def apply(self, values):\n"
        "        pass\n"
    )
    filters = {"halve": "theirs:Halve", "bare": "theirs:Bare"}
    install(tmp_path, monkeypatch, "theirs", {"theirs": source}, {"fledge.filters": filters})
    (found,) = through(chain(("halve", {})), np.array([2.0], np.float32))
    assert found.tolist() == [1.0]
    with pytest.raises(ConfigError, match="'bare' is not complete: it lacks measures, random, begin, measure"):
        chain(("bare", {}))
    with pytest.raises(ConfigError, match="needs `clip` before it"):
        chain(("clip", {"norm": 1.0}), ("halve", {}), ("gaussian", {"noise_multiplier": 1.0}))
