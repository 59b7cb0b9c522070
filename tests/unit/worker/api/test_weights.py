"""Weights as streams: into arrays of any type and layout, and out of them."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from protocol import limits
from protocol.errors import Tampered, TrainingError
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from tests.support.training import model
from worker.api.weights import OwnValues, Weights, read_pieces, tensor_spec, write_records

BIG = limits.RECORD // 4 + 5


def arrays() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(1)
    return {
        "first": dice.normal(size=(3, 5)).astype(np.float32),
        "big": dice.normal(size=BIG).astype(np.float32),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "counter": np.array(7, np.int64),
        "flags": np.array([True, False, True]),
        "last": dice.normal(size=(2, 2)).astype(np.float64),
    }


def test_a_payload_is_a_file_the_safetensors_library_opens() -> None:
    given = arrays()
    spec, records = model(given)
    raw = b"".join(records())
    assert len(raw) == spec.model_length
    opened = safetensors.numpy.load(raw)
    assert set(opened) == set(given)
    for name, array in given.items():
        expected = array.astype(np.float32) if array.dtype.kind == "f" else array
        assert opened[name].dtype == expected.dtype
        np.testing.assert_array_equal(opened[name], expected)


def test_every_record_but_the_last_has_the_full_size() -> None:
    spec, records = model(arrays())
    sizes = [len(record) for record in records()]
    assert sizes[:-1] == [limits.RECORD]
    assert sum(sizes) == spec.model_length


def test_weights_are_copied_into_arrays_of_other_types_and_layouts() -> None:
    given = arrays()
    spec, records = model(given)
    targets = {
        "first": np.zeros((5, 3), np.float64).T,
        "big": np.zeros(2 * BIG, np.float32)[::2],
        "scalar": np.zeros((), np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "last": np.zeros((2, 2), np.float32, order="F"),
    }
    Weights(spec, records).copy_into(targets)
    for name, target in targets.items():
        np.testing.assert_array_equal(target, given[name].astype(np.float32).astype(target.dtype), err_msg=name)


def test_tensors_that_are_not_floating_are_copied_where_there_is_room_for_them() -> None:
    given = arrays()
    spec, records = model(given)
    targets = {name: np.zeros_like(array) for name, array in given.items()}
    Weights(spec, records).copy_into(targets)
    assert int(targets["counter"]) == 7
    assert targets["flags"].tolist() == [True, False, True]


def test_a_number_of_eight_bytes_may_lie_across_two_records() -> None:
    # An odd number of float32 before it puts the counter at a place that is not a multiple of eight.
    for length in range(BIG - 60, BIG):
        spec, records = model({"w": np.ones(length, np.float32), "n": np.array([5, 2**40, -3], np.int64)})
        found = dict(Weights(spec, records).tensors())
        assert found["n"].tolist() == [5, 2**40, -3], length
        if any(p.start < limits.RECORD < p.stop and (limits.RECORD - p.start) % 8 for p in spec.placed[1:]):
            return
    raise AssertionError("no length put the tensor across the boundary")


def test_tensors_come_one_at_a_time_in_their_shapes() -> None:
    given = arrays()
    spec, records = model(given)
    found = dict(Weights(spec, records).tensors())
    assert set(found) == set(given)
    for name, array in given.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array.astype(found[name].dtype))


def test_a_sites_own_values_go_before_the_versions() -> None:
    spec, records = model({"shared": np.ones(3, np.float32), "own": np.ones(2, np.float32)})
    mine, kept = model({"own": np.full(2, 9, np.float32), "shared": np.full(3, 9, np.float32)})
    own = OwnValues(spec=mine, names=frozenset({"own"}), records=kept)
    targets = {"shared": np.zeros(3, np.float32), "own": np.zeros(2, np.float32)}
    Weights(spec, records, own).copy_into(targets)
    assert targets["shared"].tolist() == [1, 1, 1]
    assert targets["own"].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": None}, "no tensor 'first'"),
        ({"stranger": np.zeros(1, np.float32)}, "does not know: 'stranger'"),
        ({"first": np.zeros((5, 3), np.float32)}, r"'first' has the shape \[5, 3\].*\[3, 5\]"),
        ({"first": np.zeros((3, 5), np.int32)}, "'first' is int32"),
        ({"counter": np.zeros((), np.float32)}, "'counter' is float32"),
        ({"first": np.broadcast_to(np.float32(0), (3, 5))}, "'first'.*read-only"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(change: dict[str, np.ndarray | None], message: str) -> None:
    given = arrays()
    spec, records = model(given)
    targets = {name: np.zeros_like(array) for name, array in given.items()} | change
    with pytest.raises(TrainingError, match=message):
        Weights(spec, records).copy_into({k: v for k, v in targets.items() if v is not None})


def test_a_value_too_large_for_half_precision_is_an_error_and_no_infinity() -> None:
    spec, records = model({"w": np.array([1e6], np.float32)})
    with pytest.raises(TrainingError, match=r"'w'.*too large for float16"):
        Weights(spec, records).copy_into({"w": np.zeros(1, np.float16)})


def test_a_payload_of_another_model_is_refused() -> None:
    spec, records = model({"w": np.zeros(4, np.float32)})
    _, other = model({"v": np.zeros(4, np.float32)})
    with pytest.raises(Tampered, match="header"):
        list(read_pieces(spec, other()))
    whole = b"".join(records())
    for wrong in (whole[:-4], whole + b"0000"):
        with pytest.raises(Tampered):
            list(read_pieces(spec, iter([wrong])))


def test_values_that_are_not_finite_never_become_a_payload() -> None:
    spec, _ = model({"w": np.zeros(4, np.float32)})
    for wrong in (np.array([0, np.nan, 0, 0], np.float32), np.array([0, 0, 0, 1e300])):
        with pytest.raises(TrainingError, match=r"'w'.*not finite"):
            list(write_records(spec, {"w": wrong}.__getitem__))


def test_arrays_of_types_that_no_model_holds_are_refused() -> None:
    for wrong in (np.zeros(1, np.complex64), np.zeros(1, "U3")):
        with pytest.raises(TrainingError, match="'w'"):
            tensor_spec("w", wrong, TensorKind.PARAMETER)


def test_big_endian_arrays_are_specified_and_written_like_others() -> None:
    given = np.arange(3, dtype=">f4")
    spec, records = model({"w": given})
    assert spec == ModelSpec((TensorSpec(name="w", shape=(3,), dtype="F32", kind=TensorKind.PARAMETER),))
    assert dict(Weights(spec, records).tensors())["w"].tolist() == [0, 1, 2]
