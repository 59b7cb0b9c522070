"""Who gets which examples: nobody's are another's, groups stay together, and the seed decides alone."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.trial.division import Terms, divide
from protocol.errors import ConfigError


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, Terms, list[int] | None, list[int] | None]:
    examples = draw(st.integers(1, 120))
    classes = draw(st.none() | st.lists(st.integers(0, 4), min_size=examples, max_size=examples))
    groups = draw(st.none() | st.lists(st.integers(0, 40), min_size=examples, max_size=examples))
    alpha = draw(st.none() | st.sampled_from([1e-9, 0.05, 1.0, 1e6]))
    terms = Terms(
        sites=draw(st.integers(1, 7)),
        seed=draw(st.integers(0, 9)),
        alpha=alpha,
        held_out=draw(st.sampled_from([0.0, 0.2, 0.99])),
    )
    return examples, terms, classes, groups


@settings(deadline=None)
@given(problems())
def test_every_example_goes_one_way_and_every_site_gets_some(
    problem: tuple[int, Terms, list[int] | None, list[int] | None],
) -> None:
    examples, terms, classes, groups = problem
    units = examples if groups is None else len(set(groups))
    if units < terms.sites + (terms.held_out > 0):
        with pytest.raises(ConfigError, match="too few"):
            divide(examples, terms, classes=classes, groups=groups)
        return
    dealt = divide(examples, terms, classes=classes, groups=groups)
    everyone = [*dealt.shares, dealt.held_out]
    assert sorted(chain.from_iterable(everyone)) == list(range(examples))
    assert len(dealt.shares) == terms.sites
    assert all(dealt.shares)
    assert bool(dealt.held_out) == (terms.held_out > 0)
    assert sorted(chain.from_iterable(dealt.shares)) == list(dealt.pooled)
    if groups is not None:
        owners = [{groups[index] for index in share} for share in everyone]
        assert sum(map(len, owners)) == len(set(groups))
    assert divide(examples, terms, classes=classes, groups=groups) == dealt


def test_alike_means_the_same_part_of_every_class_and_of_the_whole() -> None:
    classes = [index % 4 for index in range(400)]
    dealt = divide(400, Terms(sites=3, seed=5), classes=classes)
    assert Counter(classes[index] for index in dealt.held_out) == dict.fromkeys(range(4), 20)
    assert max(map(len, dealt.shares)) - min(map(len, dealt.shares)) <= 1
    for share in dealt.shares:
        assert set(Counter(classes[index] for index in share).values()) <= {26, 27}


def test_a_small_alpha_divides_classes_unevenly_and_a_large_one_evenly() -> None:
    classes = [index % 4 for index in range(800)]

    def largest(alpha: float) -> float:
        shares = divide(800, Terms(sites=4, seed=1, alpha=alpha), classes=classes).shares
        parts = [Counter(classes[index] for index in share).most_common(1)[0][1] / len(share) for share in shares]
        return sum(parts) / len(parts)

    assert largest(0.05) > 0.6 > 0.3 > largest(1000)


def test_another_seed_divides_otherwise() -> None:
    one, other = (divide(50, Terms(sites=2, seed=seed)) for seed in (1, 2))
    assert one != other
