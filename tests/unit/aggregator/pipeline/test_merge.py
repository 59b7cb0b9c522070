"""The lockstep merge against the same arithmetic on whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator.pipeline.merge import Sinks, Sources, blank, merge
from aggregator.strategy.base import Strategy
from aggregator.strategy.plan import MergePlan
from aggregator.strategy.strategies import strategy
from protocol.errors import StoreError, StrategyFailed, Tampered, TrainingError
from protocol.spec import ModelSpec
from tests.support.chunks import cut
from tests.support.federation import SMALL, payload, tensors, wide
from tests.support.plans import member, plan


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


def some(spec: ModelSpec, seed: int) -> dict[str, NDArray[Any]]:
    dice = np.random.default_rng(seed)
    return {
        t.name: dice.integers(0, 9, t.shape) if t.dtype == "I64" else dice.standard_normal(t.shape).astype(np.float32)
        for t in spec.tensors
    }


def run(
    spec: ModelSpec,
    made: MergePlan,
    old: Mapping[str, NDArray[Any]],
    deltas: Sequence[Mapping[str, NDArray[Any]]],
    pool: ThreadPoolExecutor,
    released: Mapping[str, NDArray[Any]] | None = None,
    by: Strategy | None = None,
) -> tuple[bytes, bytes, list[bytes]]:
    chosen = by or strategy(made.strategy)
    model, average = bytearray(), bytearray()
    states = [bytearray() for _ in chosen.state]
    merge(
        spec,
        made,
        chosen,
        Sources(
            old=cut(payload(spec, old, update=False)),
            deltas=[cut(payload(spec, delta, update=True)) for delta in deltas],
            states=[blank(spec) for _ in chosen.state],
            released=None if released is None else cut(payload(spec, released, update=False)),
        ),
        Sinks(
            model=model.extend,
            states=[state.extend for state in states],
            released=None if released is None else average.extend,
        ),
        pool,
    )
    return bytes(model), bytes(average), [bytes(state) for state in states]


@pytest.mark.parametrize("spec", [SMALL, wide(700_001)], ids=["one record", "three records"])
def test_parameters_move_by_the_strategy_buffers_by_the_mean_and_integers_not_at_all(
    spec: ModelSpec, pool: ThreadPoolExecutor
) -> None:
    old, one, two = some(spec, 1), some(spec, 2), some(spec, 3)
    made = plan([member(1, weight=0.5), member(2, weight=1.5)], rate=2.0)
    model, _, _ = run(spec, made, old, [one, two], pool)
    got = tensors(spec, model)
    wide64 = {name: (a.astype(np.float64), two[name].astype(np.float64)) for name, a in one.items()}
    for name in ("weight", "running_mean"):
        a, b = wide64[name]
        mean = (0.5 * a + 1.5 * b) / 2
        expected = old[name] + (2.0 if name == "weight" else 1.0) * mean
        np.testing.assert_allclose(got[name], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got["batches"], old["batches"])
    assert model[: len(spec.header)] == spec.header


class _Others(Strategy):
    """Another package's, which does in `merge` what it is told."""

    name = "others"
    state = ("m",)

    def __init__(self, does: Callable[..., object]) -> None:
        self.does = does

    def merge(self, old: Any, deltas: Any, step: Any, state: Any, out: Any, out_state: Any, scratch: Any) -> None:
        self.does(old, out, out_state[0])


def _fails(*given: Any) -> None:
    raise given[0] if isinstance(given[0], BaseException) else ValueError("too late")


def _write(target: int, value: float) -> Callable[..., None]:
    return lambda *given: given[target].__setitem__(-1, value)


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (_fails, "strategy 'others': merge fails: ValueError: too late"),
        (lambda *given: _fails(SystemExit(0)), "merge fails: SystemExit"),
        (lambda *given: _fails(StoreError("not its business")), "merge fails: StoreError"),
        (lambda old, out, own: old.__setitem__(0, 1.0), "merge fails: ValueError: assignment destination is read-only"),
        (_write(1, np.nan), "merge leaves values that are no finite numbers"),
        (_write(1, np.inf), "merge leaves values that are no finite numbers"),
        (_write(2, np.nan), "merge leaves values that are no finite numbers"),
    ],
)
def test_what_another_packages_strategy_does_wrong_makes_no_version(
    does: Callable[..., object], message: str, pool: ThreadPoolExecutor
) -> None:
    with pytest.raises(StrategyFailed, match=message):
        run(SMALL, plan([member(1)]), some(SMALL, 1), [some(SMALL, 2)], pool, by=_Others(does))


def test_what_does_not_fit_float32_is_the_members_fault_and_not_its_strategys(pool: ThreadPoolExecutor) -> None:
    def overflows(old: Any, out: Any, own: Any) -> None:
        out[...] = old * np.float64(1e300)

    with pytest.raises(TrainingError, match="do not fit float32") as refused:
        run(SMALL, plan([member(1)]), some(SMALL, 1), [some(SMALL, 2)], pool, by=_Others(overflows))
    assert not isinstance(refused.value, StrategyFailed)


def test_a_tensor_one_member_keeps_to_itself_is_moved_by_the_others_alone(pool: ThreadPoolExecutor) -> None:
    old, one, two = some(SMALL, 1), some(SMALL, 2), some(SMALL, 3)
    made = plan([member(1, absent=("weight",)), member(2)])
    got = tensors(SMALL, run(SMALL, made, old, [one, two], pool)[0])
    np.testing.assert_allclose(got["weight"], old["weight"] + two["weight"], rtol=1e-6)
    np.testing.assert_allclose(got["bias"], old["bias"] + (one["bias"] + two["bias"]) / 2, rtol=1e-6)


def test_a_tensor_nobody_has_keeps_its_old_value(pool: ThreadPoolExecutor) -> None:
    old, one = some(SMALL, 1), some(SMALL, 2)
    got = tensors(SMALL, run(SMALL, plan([member(1, absent=("weight", "running_mean"))]), old, [one], pool)[0])
    np.testing.assert_array_equal(got["weight"], old["weight"])
    np.testing.assert_array_equal(got["running_mean"], old["running_mean"])


def test_the_released_average_follows_the_raw_version(pool: ThreadPoolExecutor) -> None:
    old, one, before = some(SMALL, 1), some(SMALL, 2), some(SMALL, 3)
    model, average, _ = run(SMALL, plan([member(1)], decay=0.8), old, [one], pool, released=before)
    raw, got = tensors(SMALL, model), tensors(SMALL, average)
    for name in ("weight", "bias", "running_mean"):
        np.testing.assert_allclose(got[name], 0.8 * before[name] + 0.2 * raw[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["batches"], raw["batches"])


def test_an_optimizers_moments_are_streams_like_any_other(pool: ThreadPoolExecutor) -> None:
    spec = wide(300_000)
    old, one = some(spec, 1), some(spec, 2)
    _, _, states = run(spec, plan([member(1)], name="fedadam"), old, [one], pool)
    m = tensors(spec, states[0])
    np.testing.assert_allclose(m["weight"], 0.1 * one["weight"], rtol=1e-5)
    assert [len(state) for state in states] == [spec.update_length] * 2
    np.testing.assert_array_equal(m["running_mean"], np.zeros(7, np.float32))


def test_the_same_inputs_give_the_same_bytes(pool: ThreadPoolExecutor) -> None:
    spec = wide(600_000)
    old, deltas = some(spec, 1), [some(spec, seed) for seed in range(2, 6)]
    made = plan([member(i, weight=0.3 * i) for i in range(1, 5)], rate=1.25, decay=0.5)
    assert run(spec, made, old, deltas, pool, old) == run(spec, made, old, deltas, pool, old)


@pytest.mark.parametrize("change", ["short", "long"])
def test_streams_of_the_wrong_length_are_refused(change: str, pool: ThreadPoolExecutor) -> None:
    spec = wide(600_000)
    delta = list(cut(payload(spec, some(spec, 2), update=True)))
    delta = delta[:-1] if change == "short" else [*delta, delta[-1]]
    with pytest.raises(Tampered):
        merge(
            spec,
            plan([member(1)]),
            strategy("fedbuff"),
            Sources(
                old=cut(payload(spec, some(spec, 1), update=False)), deltas=[iter(delta)], states=[], released=None
            ),
            Sinks(model=lambda _: None, states=[], released=None),
            pool,
        )
