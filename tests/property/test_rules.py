"""Properties of the learning rules that must hold for any input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aggregator.strategy.base import Scalars, Scratch, Span, ema_release, merge_buffers
from aggregator.strategy.buffer import BufferPolicy, Waiting, choose, next_deadline, outdated
from aggregator.strategy.staleness import Constant, Polynomial
from aggregator.strategy.strategies import STRATEGIES, strategy
from aggregator.strategy.weighting import MAX_SHARE, SiteStats, clip_factor, example_weights

VALUES = st.floats(-1e6, 1e6, width=32)
WEIGHTS = st.just(0.0) | st.floats(1e-9, 10)


@st.composite
def merges(draw: st.DrawFn) -> tuple[str, Span, list[Span | None], Scalars, list[Span]]:
    name = draw(st.sampled_from(sorted(STRATEGIES.builtins)))
    size = draw(st.integers(1, 80))
    vector = arrays.arrays(np.float32, size, elements=VALUES)
    deltas = draw(st.lists(st.none() | vector, min_size=1, max_size=5))
    weights = draw(st.lists(WEIGHTS, min_size=len(deltas), max_size=len(deltas)))
    step = Scalars(weights=tuple(weights), divisor=float(draw(st.integers(1, 8))), rate=draw(st.floats(0.01, 2)))
    state = [draw(arrays.arrays(np.float32, size, elements=st.floats(0, 10, width=32))) for _ in strategy(name).state]
    return name, draw(vector), deltas, step, state


def run(name: str, old: Span, deltas: list[Span | None], step: Scalars, state: list[Span], block: int) -> list[Span]:
    out = [np.empty_like(old), *(np.empty_like(stream) for stream in state)]
    strategy(name).merge(old, deltas, step, state, out[0], out[1:], Scratch(block))
    return out


@given(merges(), st.data())
def test_where_a_vector_is_cut_into_spans_and_blocks_does_not_change_a_bit(
    merge: tuple[str, Span, list[Span | None], Scalars, list[Span]], data: st.DataObject
) -> None:
    name, old, deltas, step, state = merge
    whole = run(name, old, deltas, step, state, 1000)
    cut = data.draw(st.integers(0, old.size))
    block = data.draw(st.integers(1, 40))
    parts = []
    for piece in (slice(0, cut), slice(cut, None)):
        cut_deltas = [None if delta is None else delta[piece] for delta in deltas]
        parts.append(run(name, old[piece], cut_deltas, step, [stream[piece] for stream in state], block))
    for together, first, second in zip(whole, *parts, strict=True):
        assert together.tobytes() == first.tobytes() + second.tobytes()


@given(merges())
def test_plain_strategies_compute_the_documented_formula(
    merge: tuple[str, Span, list[Span | None], Scalars, list[Span]],
) -> None:
    _, old, deltas, step, _ = merge
    out = run("fedbuff", old, deltas, step, [], 16)[0]
    present = [(w, d.astype(np.longdouble)) for w, d in zip(step.weights, deltas, strict=True) if d is not None]
    total = sum(w for w, _ in present)
    expected = old.astype(np.longdouble)
    if total > 0:
        mean = sum(w * d for w, d in present) / total
        expected = expected + step.rate * sum(step.weights) / step.divisor * mean
    scale = np.abs(old).max() + sum(np.abs(d).max() * step.rate * sum(step.weights) for _, d in present)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=float(scale) * 1e-12)


@given(merges(), st.integers(1, 40))
def test_the_running_statistics_stay_between_the_members(
    merge: tuple[str, Span, list[Span | None], Scalars, list[Span]], block: int
) -> None:
    _, old, deltas, step, _ = merge
    out = np.empty_like(old)
    merge_buffers(old, deltas, step.weights, out, Scratch(block))
    moved = [old + d for w, d in zip(step.weights, deltas, strict=True) if d is not None and w > 0] or [old]
    slack = 1e-5 * (1 + np.abs(np.stack([old, *moved])).max(0))
    assert (out >= np.min(moved, axis=0) - slack).all()
    assert (out <= np.max(moved, axis=0) + slack).all()


@given(merges(), st.floats(0, 1), st.integers(1, 40))
def test_the_released_model_lies_between_the_last_one_and_the_raw_one(
    merge: tuple[str, Span, list[Span | None], Scalars, list[Span]], decay: float, block: int
) -> None:
    raw = merge[1]
    last = raw[::-1].copy()
    out = np.empty_like(raw)
    ema_release(last, raw, decay, out, Scratch(block))
    slack = 1e-6 * np.maximum(np.abs(raw), np.abs(last))
    assert (out >= np.minimum(raw, last) - slack).all()
    assert (out <= np.maximum(raw, last) + slack).all()


@given(st.integers(0, 10**6), st.floats(0, 4))
def test_weight_never_grows_with_age(age: int, exponent: float) -> None:
    for policy in (Constant(), Polynomial(), Polynomial(exponent=exponent)):
        assert 1.0 >= policy.weight(age) >= policy.weight(age + 1) >= 0.0


POPULATIONS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.builds(SiteStats, examples=st.integers(0, 10**12), seconds=st.floats(1e-3, 1e9), updates=st.integers(1, 5)),
    min_size=1,
    max_size=12,
)


@given(POPULATIONS, st.booleans())
def test_example_weights_average_one_and_no_site_outvotes_the_rest(
    population: dict[str, SiteStats], corrected: bool
) -> None:
    weights = example_weights(population, corrected=corrected)
    assert weights.keys() == population.keys()
    assert abs(sum(weights.values()) / len(weights) - 1) < 1e-9
    assert min(weights.values()) >= 0
    if corrected and len(population) >= 4:
        assert max(weights.values()) <= MAX_SHARE * len(weights) * (1 + 1e-12)
    shuffled = dict(reversed(population.items()))
    assert example_weights(shuffled, corrected=corrected) == weights


@given(st.floats(0, 1e30), st.lists(st.floats(0, 1e30), max_size=80))
def test_the_clip_factor_only_ever_shrinks(norm: float, recent: list[float]) -> None:
    assert 0.0 <= clip_factor(norm, recent) <= 1.0


@st.composite
def buffers(draw: st.DrawFn) -> tuple[list[Waiting], BufferPolicy, dict[str, Any]]:
    version = draw(st.integers(0, 6))
    sites = st.sampled_from("abcde")
    drawn = draw(st.lists(st.tuples(sites, st.integers(0, version), st.floats(0, 100)), max_size=14))
    waiting = [
        Waiting(id=bytes([order]), site=site, base_version=base, order=order, since=since)
        for order, (site, base, since) in enumerate(drawn)
    ]
    policy = BufferPolicy(
        size=draw(st.integers(1, 6)),
        quota=draw(st.integers(1, 3)),
        min_sites=draw(st.integers(1, 4)),
        synchronous=draw(st.booleans()),
        max_wait=draw(st.floats(1, 50)),
        grace=draw(st.floats(0, 50)),
        max_staleness=draw(st.integers(0, 6)),
    )
    return waiting, policy, {"version": version, "live": draw(st.frozensets(sites))}


@given(buffers(), st.floats(0, 200), st.randoms())
def test_a_choice_keeps_every_rule_and_does_not_depend_on_the_order_it_is_asked_in(
    buffer: tuple[list[Waiting], BufferPolicy, dict[str, Any]], now: float, dice: Any
) -> None:
    waiting, policy, at = buffer
    choice = choose(waiting, policy, now=now, **at)
    shuffled = list(waiting)
    dice.shuffle(shuffled)
    assert choose(shuffled, policy, now=now, **at) == choice
    if choice is None:
        return
    members = choice.members
    settled = [*members, *choice.superseded, *choice.too_stale]
    assert len({update.id for update in settled}) == len(settled)
    assert set(settled) <= set(waiting)
    assert [update.order for update in members] == sorted(update.order for update in members)
    assert 1 <= len(members) <= choice.divisor <= policy.size
    assert all(0 <= at["version"] - update.base_version <= policy.max_staleness for update in members)
    for site in "abcde":
        assert sum(update.site == site for update in members) <= policy.quota


@given(buffers())
def test_the_deadline_is_exactly_when_time_alone_makes_a_version(
    buffer: tuple[list[Waiting], BufferPolicy, dict[str, Any]],
) -> None:
    waiting, policy, at = buffer
    deadline = next_deadline(waiting, policy, **at)
    if deadline is None:
        assert choose(waiting, policy, now=1e12, **at) is None
        return
    assert choose(waiting, policy, now=deadline, **at) is not None
    before = choose(waiting, policy, now=np.nextafter(deadline, -np.inf), **at)
    full = choose(waiting, policy, now=-1.0, **at)
    assert before == full  # ready because it is full, or not ready yet


@given(buffers())
def test_an_update_enters_at_most_one_version_and_all_are_settled_in_the_end(
    buffer: tuple[list[Waiting], BufferPolicy, dict[str, Any]],
) -> None:
    """Merging on until nothing is left: each update is merged once, or superseded, or too stale."""
    waiting, policy, at = buffer
    policy = replace(policy, synchronous=False, min_sites=1)
    left, seen = list(waiting), []
    while left:
        gone = outdated(left, policy, version=at["version"])
        choice = choose(left, policy, now=1e9, **at)
        done = {*gone.superseded, *gone.too_stale, *(choice.members if choice is not None else ())}
        assert done
        seen += sorted(done, key=lambda update: update.order)
        left = [update for update in left if update not in done]
        at["version"] += 1
    assert sorted(update.order for update in seen) == [update.order for update in waiting]
