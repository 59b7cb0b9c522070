"""Staleness policies."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from aggregator.strategy.staleness import Constant, Polynomial, staleness_policy
from broker.runtime import plugins
from protocol.errors import ConfigError


def test_a_fresh_update_counts_fully() -> None:
    assert Polynomial().weight(0) == 1.0
    assert Constant().weight(0) == 1.0


def test_the_default_is_the_inverse_square_root() -> None:
    assert [Polynomial().weight(age) for age in (3, 8, 99)] == [1 / 2, 1 / 3, 1 / 10]


def test_the_exponent_sets_how_fast_weight_falls() -> None:
    assert Polynomial(exponent=1.0).weight(4) == pytest.approx(0.2)
    assert Polynomial(exponent=0.0).weight(1000) == 1.0


def test_age_cannot_be_rewarded() -> None:
    for exponent in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="exponent"):
            Polynomial(exponent=exponent)


def test_policies_are_found_by_name() -> None:
    assert staleness_policy("polynomial", exponent=0.25) == Polynomial(exponent=0.25)
    assert staleness_policy("constant") == Constant()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no staleness rule called 'hinge'; known: constant, polynomial"):
        staleness_policy("hinge")


def test_a_wrong_parameter_names_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="a is unknown; known: exponent"):
        staleness_policy("polynomial", a=0.5)


@dataclass(frozen=True)
class Cliff:
    """A third party's policy."""

    edge: int = 3

    def weight(self, staleness: int) -> float:
        return 1.0 if staleness <= self.edge else 0.0


def test_an_installed_package_may_add_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="cliff", group="fledge.staleness", value=f"{__name__}:Cliff")
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    policy = staleness_policy("cliff", edge=5)
    assert (policy.weight(5), policy.weight(6)) == (1.0, 0.0)
    with pytest.raises(ConfigError, match="known: cliff, constant, polynomial"):
        staleness_policy("clif")
