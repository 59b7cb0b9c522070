"""Staleness policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.strategy.staleness import Constant, Polynomial, staleness_policy
from protocol.errors import ConfigError
from tests.support.packages import install


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


CLIFF = """
class Cliff:
    def __init__(self, edge=3, height=1.0):
        self.edge, self.height = edge, height

    def weight(self, staleness):
        return self.height if staleness <= self.edge else 0.0


class Nothing:
    pass
"""


def test_an_installed_package_may_add_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"cliff": "cliffs:Cliff", "nothing": "cliffs:Nothing"}
    install(tmp_path, monkeypatch, "cliffs", {"cliffs": CLIFF}, {"fledge.staleness": rules})
    policy = staleness_policy("cliff", edge=5)
    assert (policy.weight(5), policy.weight(6)) == (1.0, 0.0)
    with pytest.raises(ConfigError, match="known: cliff, constant, nothing, polynomial"):
        staleness_policy("clif")
    with pytest.raises(ConfigError, match=r"'cliff': weight\(0\) is 2.0; it has to be a number from 0 to 1"):
        staleness_policy("cliff", height=2.0)
    with pytest.raises(ConfigError, match=r"staleness rule 'nothing' has no method weight\(staleness\)"):
        staleness_policy("nothing")
