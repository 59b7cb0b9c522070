"""Strategies: what they compute, on numbers small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.strategy.base import Scalars, Scratch, Span, Strategy, ema_decay, ema_release, merge_buffers
from aggregator.strategy.staleness import Constant, Polynomial
from aggregator.strategy.strategies import STRATEGIES, FedAdam, FedAsync, FedAvg, FedBuff, strategy
from protocol.errors import ConfigError, TrainingError


def span(*values: float) -> Span:
    return np.array(values, np.float32)


def merged(rule: Strategy, old: Span, deltas: list[Span | None], step: Scalars) -> Span:
    out = np.full_like(old, 7.0)
    state = [np.zeros_like(old) for _ in rule.state]
    rule.merge(old, deltas, step, state, out, [np.empty_like(old) for _ in rule.state], Scratch())
    return out


def test_the_server_adds_deltas() -> None:
    out = merged(FedBuff(), span(1, 1), [span(2, -4)], Scalars(weights=(1.0,), divisor=1, rate=1.0))
    assert out.tolist() == [3, -3]


def test_fedbuff_divides_the_weighted_sum_by_the_divisor_not_by_the_weights() -> None:
    step = Scalars(weights=(0.5, 0.25), divisor=2, rate=2.0)
    out = merged(FedBuff(), span(0), [span(8), span(16)], step)
    assert out.tolist() == [(0.5 * 8 + 0.25 * 16) / 2 * 2]


def test_a_half_filled_buffer_makes_a_smaller_step() -> None:
    full = merged(FedBuff(), span(0), [span(4), span(4)], Scalars(weights=(1, 1), divisor=2, rate=1))
    half = merged(FedBuff(), span(0), [span(4)], Scalars(weights=(1,), divisor=2, rate=1))
    assert (full.item(), half.item()) == (4, 2)


def test_fedavg_with_normalised_weights_is_the_mean_of_the_models() -> None:
    models, examples = [span(1, 2), span(5, 10)], [30, 10]
    base = span(0.5, -0.5)
    weights = tuple(2 * n / 40 for n in examples)
    out = merged(FedAvg(), base, [m - base for m in models], Scalars(weights=weights, divisor=2, rate=1.0))
    np.testing.assert_allclose(out, 0.75 * models[0] + 0.25 * models[1])


def test_a_tensor_some_members_lack_moves_by_those_that_have_it_at_full_weight() -> None:
    step = Scalars(weights=(1.0, 3.0), divisor=2, rate=1.0)
    out = merged(FedBuff(), span(0), [span(5), None], step)
    # direction = (1 + 3) / 2 * (1 * 5) / 1
    assert out.item() == 10


@pytest.mark.parametrize("name", STRATEGIES.builtins)
def test_a_tensor_nobody_has_keeps_its_value_and_its_state(name: str) -> None:
    rule, old = strategy(name), span(1, 2, 3)
    out, state = span(0, 0, 0), [span(4, 5, 6) for _ in rule.state]
    out_state = [span(0, 0, 0) for _ in rule.state]
    rule.merge(old, [None, None], Scalars(weights=(1, 1), divisor=2, rate=1), state, out, out_state, Scratch())
    assert out.tolist() == [1, 2, 3]
    assert all(stream.tolist() == [4, 5, 6] for stream in out_state)


@pytest.mark.parametrize("weight", [0.0, 5e-324])
@pytest.mark.parametrize("name", STRATEGIES.builtins)
def test_members_without_weight_change_nothing(name: str, weight: float) -> None:
    out = merged(strategy(name), span(1, 2), [span(9, 9)], Scalars(weights=(weight,), divisor=1, rate=1.0))
    assert out.tolist() == [1, 2]


@pytest.mark.parametrize("name", STRATEGIES.builtins)
def test_the_result_may_overwrite_its_input(name: str) -> None:
    rule, dice = strategy(name), np.random.default_rng(3)
    old, delta = (dice.standard_normal(100).astype(np.float32) for _ in range(2))
    step = Scalars(weights=(0.7,), divisor=1, rate=0.5)
    state = [np.full_like(old, 0.01) for _ in rule.state]
    out, out_state = np.empty_like(old), [np.empty_like(old) for _ in rule.state]
    rule.merge(old, [delta], step, state, out, out_state, Scratch(32))
    rule.merge(old, [delta], step, state, old, state, Scratch(32))
    assert old.tobytes() == out.tobytes()
    assert [a.tobytes() for a in state] == [b.tobytes() for b in out_state]


def test_sums_run_in_float64() -> None:
    """In float32, 1 + 2^-24 + ... would stay 1; the exact sum rounds up."""
    tiny = float(2.0**-24)
    deltas: list[Span | None] = [span(1.0), *[span(tiny)] * 4]
    out = merged(FedBuff(), span(0), deltas, Scalars(weights=(1.0,) * 5, divisor=1, rate=1.0))
    assert out.item() == 1.0 + 4 * tiny


@pytest.mark.parametrize("name", ["fedbuff", "fedavg"])
def test_an_overflow_is_an_error_and_not_an_infinite_model(name: str) -> None:
    with pytest.raises(TrainingError, match="do not fit float32"):
        merged(strategy(name), span(3e38), [span(3e38)], Scalars(weights=(1.0,), divisor=1, rate=1.0))


def test_fedadam_follows_the_paper_from_its_start_at_tau_squared() -> None:
    rule, dice = FedAdam(beta1=0.9, beta2=0.99, tau=1e-3), np.random.default_rng(5)
    w = dice.standard_normal(50)
    m, v = np.zeros(50), np.full(50, 1e-6)
    ours, state = w.astype(np.float32), [np.zeros(50, np.float32), np.zeros(50, np.float32)]
    for _ in range(30):
        delta = (dice.standard_normal(50) * 10.0 ** dice.uniform(-6, 0, 50)).astype(np.float32)
        direction = delta.astype(np.float64) / 2
        m = 0.9 * m + 0.1 * direction
        v = 0.99 * v + 0.01 * direction**2
        w = w + 0.005 * m / (np.sqrt(v) + 1e-3)
        rule.merge(ours, [delta], Scalars(weights=(1.0,), divisor=2, rate=0.005), state, ours, state, Scratch())
    np.testing.assert_allclose(ours, w, rtol=1e-5, atol=1e-6)


def test_running_statistics_move_by_the_plain_weighted_mean() -> None:
    out = span(0, 0)
    merge_buffers(span(1, 1), [span(2, 4), None, span(6, 8)], (1.0, 50.0, 3.0), out, Scratch())
    assert out.tolist() == [1 + (2 + 18) / 4, 1 + (4 + 24) / 4]


@pytest.mark.parametrize(("delta", "weight"), [(None, 1.0), (span(1), 0.0), (span(1), 5e-324)])
def test_running_statistics_nobody_sent_stay(delta: Span | None, weight: float) -> None:
    out = span(0)
    merge_buffers(span(3), [delta], (weight,), out, Scratch())
    assert out.item() == 3


def test_the_first_released_models_are_the_mean_of_the_versions_so_far() -> None:
    released = span(100)  # version 0, untrained
    for version, raw in enumerate((1.0, 2.0, 6.0), start=1):
        ema_release(released, span(raw), ema_decay(version), released, Scratch())
    assert released.item() == pytest.approx(3.0)


def test_the_released_average_settles_at_its_decay() -> None:
    assert ema_decay(5) == ema_decay(500) == 0.8
    assert ema_decay(500, 0.95) == 0.95
    out = span(0)
    ema_release(span(10), span(20), 0.8, out, Scratch())
    assert out.item() == 12


def test_a_decay_of_zero_releases_the_raw_model() -> None:
    raw, out = np.random.default_rng(1).standard_normal(1000).astype(np.float32), np.empty(1000, np.float32)
    ema_release(np.ones(1000, np.float32), raw, ema_decay(9, 0.0), out, Scratch())
    assert out.tobytes() == raw.tobytes()


@pytest.mark.parametrize(
    ("sites", "buffer", "stale"), [(1, 2, 8), (3, 2, 24), (8, 2, 64), (20, 5, 64), (1000, 128, 125)]
)
def test_fedbuff_sizes_its_buffer_by_the_federation(sites: int, buffer: int, stale: int) -> None:
    assert (FedBuff().buffer_size(sites), FedBuff().max_staleness(sites)) == (buffer, stale)


def test_configured_sizes_win() -> None:
    rule = FedBuff(buffer=4, stale_limit=9)
    assert (rule.buffer_size(100), rule.max_staleness(100)) == (4, 9)
    assert FedBuff(buffer=4).max_staleness(8) == 32


def test_fedasync_makes_a_version_of_every_update() -> None:
    assert FedAsync().buffer_size(50) == 1


def test_fedavg_waits_for_all_and_takes_only_fresh_updates() -> None:
    rule = FedAvg()
    assert (rule.buffer_size(7), rule.max_staleness(7), rule.updates_per_base) == (7, 0, 1)
    assert rule.synchronous
    assert not rule.corrected
    assert rule.staleness == Constant()


def test_strategies_are_made_by_name_with_their_parameters() -> None:
    assert strategy("fedbuff") == FedBuff()
    assert strategy("fedbuff", rate=0.5, staleness="constant") == FedBuff(rate=0.5, staleness=Constant())
    table = {"name": "polynomial", "exponent": 1.0}
    assert strategy("fedadam", staleness=table) == FedAdam(staleness=Polynomial(exponent=1.0))
    assert {name: strategy(name).name for name in STRATEGIES.builtins} == {name: name for name in STRATEGIES.builtins}


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fedprox", {}, "known: fedadam, fedasync, fedavg, fedbuff"),
        ("fedbuff", {"learning_rate": 1.0}, "learning_rate is unknown; known: rate, buffer"),
        ("fedbuff", {"bufer": 3}, "bufer is unknown; did you mean 'buffer'"),
        ("fedbuff", {"rate": 0.0}, "rate must be a number above 0"),
        ("fedbuff", {"rate": float("nan")}, "rate must be a number above 0"),
        ("fedbuff", {"buffer": 129}, "from 1 to 128"),
        ("fedbuff", {"stale_limit": -1}, "stale_limit"),
        ("fedbuff", {"updates_per_base": 0}, "updates_per_base"),
        ("fedbuff", {"staleness": {"exponent": 1.0}}, "has no name"),
        ("fedbuff", {"staleness": "hinge"}, "staleness rule called 'hinge'"),
        ("fedadam", {"beta1": 1.0}, "beta1"),
        ("fedadam", {"tau": float("inf")}, "tau"),
        ("fedbuff", {"buffer": 1.5}, "buffer must be a whole number"),
        ("fedbuff", {"buffer": True}, "buffer must be a whole number"),
        ("fedbuff", {"updates_per_base": 100_000}, "from 1 to 64"),
        ("fedavg", {"stale_limit": 10**23}, "stale_limit"),
        ("fedbuff", {"staleness": 5}, "staleness must be"),
        ("fedbuff", {"staleness": {"name": "polynomial", "exponent": "2"}}, "exponent"),
        ("fedadam", {"rate": -1.0}, "rate must be a number above 0"),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(name, **parameters)
