"""A strategy that somebody else wrote is refused in a sentence before a run depends on it, or serves like ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.strategy.base import Scalars, Scratch, Strategy, directions
from aggregator.strategy.staleness import Constant, Polynomial
from aggregator.strategy.strategies import STRATEGIES, FedBuff, strategy
from aggregator.strategy.trial import check_strategy
from protocol.errors import ConfigError
from tests.support.packages import install


class Plain(Strategy):
    """As little as there can be."""

    name = "plain"

    def merge(self, old: Any, deltas: Any, step: Any, state: Any, out: Any, out_state: Any, scratch: Any) -> None:
        for part, direction in directions(old.size, deltas, step, scratch):
            out[part] = old[part] + step.rate * direction


def test_a_name_and_a_merge_are_enough() -> None:
    made = Plain()
    check_strategy(made, "plain")
    assert (made.state, made.synchronous, made.corrected, made.rate) == ((), False, True, 1.0)
    assert (made.staleness, made.updates_per_base) == (Polynomial(), 2)
    assert [made.buffer_size(sites) for sites in (1, 9, 40, 9999)] == [2, 2, 10, 128]
    assert [made.max_staleness(sites) for sites in (1, 40)] == [8, 64]


def test_a_synchronous_one_waits_for_all_and_takes_only_fresh_updates() -> None:
    class Together(Plain):
        synchronous = True

    made = Together()
    check_strategy(made, "plain")
    assert (made.buffer_size(7), made.buffer_size(1000), made.max_staleness(7)) == (7, 128, 0)


@pytest.mark.parametrize("name", STRATEGIES.builtins)
def test_ours_pass_the_trial_too(name: str) -> None:
    check_strategy(strategy(name), name)


def test_directions_are_what_fedbuff_adds() -> None:
    dice = np.random.default_rng(1)
    old, *deltas = (dice.normal(size=70).astype(np.float32) for _ in range(4))
    step = Scalars(weights=(0.5, 1.0, 0.25), divisor=2.0, rate=1.25)
    for given in (deltas, [deltas[0], None, deltas[2]], [None, None, None]):
        ours, theirs = np.empty_like(old), np.empty_like(old)
        FedBuff().merge(old, given, step, (), ours, (), Scratch())
        Plain().merge(old, given, step, (), theirs, (), Scratch(16))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


class _Counting(Plain):
    """Keeps something from one merge to the next."""

    def __init__(self) -> None:
        self.calls = 0

    def merge(self, old: Any, *others: Any) -> None:
        self.calls += 1
        others[3][...] = old + self.calls


def _set(**attributes: Any) -> Callable[[], Any]:
    return type("Changed", (Plain,), attributes)


def _merge(body: Callable[..., None]) -> Callable[[], Any]:
    return _set(merge=lambda self, *given: body(*given))


def _first_only(old: Any, deltas: Any, step: Any, state: Any, out: Any, *rest: Any) -> None:
    out[:1] = old[:1]


def _mean_of_span(old: Any, deltas: Any, step: Any, state: Any, out: Any, *rest: Any) -> None:
    out[...] = old.mean()


def _forgets_none(old: Any, deltas: Any, step: Any, state: Any, out: Any, *rest: Any) -> None:
    out[...] = old + sum(deltas)


class _Edge:
    """Has no answer for one age."""

    def weight(self, staleness: int) -> float:
        return 1 / (50 - staleness) ** 2


def _leave(*given: Any) -> None:
    raise SystemExit(0)


def _into_old(old: Any, *rest: Any) -> None:
    old += 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            object,
            "is not complete: it lacks name, state, synchronous, corrected, rate, .* derive it from fledge.Strategy",
        ),
        (_set(name="another"), "calls itself 'another', and versions could not be replayed; set name = \"plain\""),
        (_set(state=["m"]), "it has to be a tuple of short names"),
        (_set(state=("m", "m")), "names a stream twice"),
        (_set(state=("released",)), "one 'released', which is fledge's own"),
        (_set(synchronous=1), "synchronous is 1; it has to be True or False"),
        (_set(corrected=None), "corrected is None"),
        (_set(rate=0), "rate is 0; it has to be a number above 0"),
        (_set(rate=float("nan")), "rate is nan"),
        (_set(updates_per_base=65), "updates_per_base is 65; it has to be a whole number from 1 to 64"),
        (_set(staleness=3), r"its staleness has no method weight\(staleness\)"),
        (_set(buffer_size=lambda self, sites: sites / 4), r"buffer_size\(1\) is 0.25"),
        (_set(buffer_size=lambda self, sites: 200), r"buffer_size\(1\) is 200; .* from 1 to 128"),
        (_set(buffer_size=lambda self: 2), "buffer_size fails: TypeError"),
        (_set(buffer_size=lambda self, sites: {1: 2, 2: 2, 5: 2, 128: 9}[sites]), "buffer_size fails: KeyError: 3"),
        (_set(buffer_size=_leave), "buffer_size fails: SystemExit"),
        (_set(rate=property(lambda self: 1 / 0)), "cannot be looked at: ZeroDivisionError"),
        (_set(staleness=_Edge()), r"its staleness: weight\(50\) fails: ZeroDivisionError"),
        (_merge(_leave), "merge fails: SystemExit"),
        (_set(max_staleness=lambda self, sites: -1), r"max_staleness\(1\) is -1"),
        (
            _set(synchronous=True, max_staleness=lambda self, sites: 3),
            "synchronous and would merge updates 3 versions old",
        ),
        (
            _set(merge=lambda self, old, deltas: None),
            "merge has to take old, deltas, step, state, out, out_state, scratch",
        ),
        (_merge(_first_only), "leaves values of the model unwritten"),
        (_set(state=("m",)), "leaves values of m unwritten"),
        (_merge(_mean_of_span), "gives other values for a span than for its pieces"),
        (_Counting, "gives other values for a span than for its pieces, or for the second time"),
        (_merge(_forgets_none), r"where a member lacks the tensor \(its delta is None\): merge fails: TypeError"),
        (_merge(_into_old), "merge fails: ValueError: output array is read-only"),
    ],
)
def test_what_is_missing_or_wrong_is_said_when_the_run_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        check_strategy(make(), "plain")
    assert str(refused.value).startswith("strategy 'plain'")


SOURCE = """
from dataclasses import dataclass, field
from fledge import Strategy, StalenessPolicy, directions

@dataclass(kw_only=True)
class Scaled(Strategy):
    name = "scaled"
    factor: float = 1.0
    rate: float = 0.5
    staleness: StalenessPolicy = field(default_factory=lambda: Strategy.staleness)

    def merge(self, old, deltas, step, state, out, out_state, scratch):
        for part, direction in directions(old.size, deltas, step, scratch):
            out[part] = old[part] + self.factor * step.rate * direction

class Half(Strategy):
    name = "half"
"""


def test_a_package_brings_one_with_parameters_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"scaled": "scaling:Scaled", "half": "scaling:Half", "other": "scaling:Scaled"}
    install(tmp_path, monkeypatch, "scaling", {"scaling": SOURCE}, {"fledge.strategies": rules})
    made = strategy("scaled", factor=2.0, staleness="constant")
    assert (made.name, made.rate, made.staleness) == ("scaled", 0.5, Constant())
    with pytest.raises(ConfigError, match=r"scaled = scaling:Scaled of the package scaling\).* did you mean 'factor'"):
        strategy("scaled", facto=2.0)
    with pytest.raises(ConfigError, match=r"half = scaling:Half of the package scaling\) is not complete: .* merge"):
        strategy("half")
    with pytest.raises(ConfigError, match=re.escape("strategy 'other' calls itself 'scaled'")):
        strategy("other")


def test_a_rule_from_before_there_was_a_base_class_still_serves() -> None:
    @dataclass
    class Old:
        name: str = "old"
        state: tuple[str, ...] = ()
        synchronous: bool = False
        corrected: bool = False
        rate: float = 1.0
        updates_per_base: int = 1
        staleness: Any = Constant()  # noqa: RUF009 - it is frozen
        merge = Plain.merge

        def buffer_size(self, sites: int) -> int:
            return 2

        def max_staleness(self, sites: int) -> int:
            return 9

    check_strategy(Old(), "old")
