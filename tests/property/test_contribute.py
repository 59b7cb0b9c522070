"""Whatever the model and wherever its tensors lie in the records: an update is trained − base, filtered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import NothingLearned
from protocol.messages import Named
from protocol.spec import records
from tests.support.training import RAW, Adding, Arrays, form, model
from worker.api.filters import FilterChain, build

RECORD = limits.RECORD // 4
SIZES = st.one_of(
    st.integers(0, 40), st.integers(RECORD - 60, RECORD + 3), st.integers(2 * RECORD - 60, 2 * RECORD + 3)
)
FLOATS = st.sampled_from([np.float16, np.float32, np.float64])
OTHERS = st.sampled_from([np.int64, np.int32, np.uint8, np.bool_])


@st.composite
def models(draw: st.DrawFn) -> tuple[Arrays, list[str]]:
    """A model of up to six tensors, at least one of them floating, and which of those are excluded."""
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays: Arrays = {}
    for index in range(draw(st.integers(1, 6))):
        if index and draw(st.integers(0, 3)) == 0:
            other = dice.integers(0, 2, draw(st.integers(0, 9)))
            arrays[f"other{index}"] = other.astype(draw(OTHERS))
        else:
            size = draw(SIZES)
            shape = (2, size // 2) if draw(st.booleans()) else (size,)
            arrays[f"float{index}"] = dice.normal(size=shape).astype(draw(FLOATS))
    floats = [name for name in arrays if name.startswith("float")]
    excluded = draw(st.lists(st.sampled_from(floats), unique=True, max_size=len(floats) - 1))
    return arrays, excluded


def expected(arrays: Arrays, excluded: list[str], step: float) -> Arrays:
    """The unfiltered delta."""
    found: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            trained = array + np.asarray(step, array.dtype)
            exact = trained.astype(np.float64) - array.astype(np.float64)
            found[name] = (exact * (name not in excluded)).astype(np.float32)
    return found


@settings(max_examples=40, deadline=None)
@given(models(), st.floats(-2, 2, width=16))
def test_a_delta_is_trained_minus_base_in_every_record(chosen: tuple[Arrays, list[str]], step: float) -> None:
    arrays, excluded = chosen
    spec, base = model(arrays)
    trainer = Adding({name: np.zeros_like(array) for name, array in arrays.items() if array.dtype.kind == "f"}, step)
    if not any(values.any() for values in expected(arrays, excluded, step).values()):
        with pytest.raises(NothingLearned):
            form(trainer, spec, base, exclude=excluded)
        return
    formed = form(trainer, spec, base, exclude=excluded)
    assert formed.update.absent == tuple(sorted(excluded))
    assert len(formed.payload) == spec.update_length
    assert len(formed.manifest.chunks) == -(-records(spec.update_length) // limits.RECORDS_PER_CHUNK)
    for name, values in expected(arrays, excluded, step).items():
        np.testing.assert_array_equal(formed.delta[name], values)


def clip(norm: float) -> FilterChain:
    """One clip."""
    return build([Named(name="clip", parameters={"norm": norm})])


@settings(max_examples=25, deadline=None)
@given(models(), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_bounds_the_norm(chosen: tuple[Arrays, list[str]], norm: float) -> None:
    arrays, excluded = chosen
    assume(any(values.any() for values in expected(arrays, excluded, 1.0).values()))
    spec, base = model(arrays)
    floats = {name: np.zeros_like(array) for name, array in arrays.items() if array.dtype.kind == "f"}
    raw = form(Adding({n: a.copy() for n, a in floats.items()}), spec, base, exclude=excluded, filters=RAW).delta
    clipped = form(Adding(floats), spec, base, exclude=excluded, filters=clip(norm)).delta
    before = np.concatenate([raw[name].ravel() for name in raw]).astype(np.float64)
    after = np.concatenate([clipped[name].ravel() for name in raw]).astype(np.float64)
    assert np.linalg.norm(after) <= norm
    factor = min(1.0, norm / np.linalg.norm(before)) if before.any() else 1.0
    np.testing.assert_allclose(after, before * factor, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(models(), st.integers(0, 2**32))
def test_noise_touches_every_shared_value_and_nothing_else(chosen: tuple[Arrays, list[str]], seed: int) -> None:
    arrays, excluded = chosen
    assume(any(values.any() for values in expected(arrays, excluded, 1.0).values()))
    spec, base = model(arrays)
    floats = {name: np.zeros_like(array) for name, array in arrays.items() if array.dtype.kind == "f"}
    noisy = build(
        [Named(name="clip", parameters={"norm": 1.0}), Named(name="gaussian", parameters={"noise_multiplier": 1.0})]
    )
    trainer = Adding(floats, step=1.0)
    formed = form(trainer, spec, base, exclude=excluded, filters=noisy, dice=np.random.default_rng(seed))
    assert formed.payload.startswith(spec.header)
    for name, values in formed.delta.items():
        # A float32 normal number is made from 23 random bits, so one in some millions is exactly 0.
        zeros = values.size - np.count_nonzero(values)
        assert not values.any() if name in excluded else zeros <= 1 + values.size // 100_000
