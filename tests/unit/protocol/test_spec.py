"""The layout that follows from a model specification."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from protocol import limits
from protocol.errors import Malformed, TooLarge, WireError
from protocol.spec import ModelSpec, Span, TensorKind, TensorSpec, records
from tests.support.wire import SPEC


def tensor(name: str, *shape: int, dtype: str = "F32", kind: TensorKind = TensorKind.PARAMETER) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, kind=kind)


def other(name: str, *shape: int, dtype: str = "I64") -> TensorSpec:
    return tensor(name, *shape, dtype=dtype, kind=TensorKind.OTHER)


def packed(**change: Any) -> bytes:
    """One tensor's specification with some values changed."""
    plain = {"name": "w", "shape": [2, 3], "dtype": "F32", "kind": "parameter"}
    return msgpack.packb({"v": 1, "tensors": [{**plain, **change}]})


def test_floating_tensors_come_first_as_float32_and_the_rest_as_it_is() -> None:
    header = json.loads(SPEC.header[8:])
    assert list(header) == ["layer.weight", "norm.running_mean", "layer.bias", "empty", "norm.batches", 'größe "1"\n']
    assert [entry["dtype"] for entry in header.values()] == ["F32", "F32", "F32", "F32", "I64", "BOOL"]
    assert [entry["data_offsets"] for entry in header.values()] == [
        [0, 60], [60, 72], [72, 84], [84, 84], [84, 92], [92, 94]
    ]  # fmt: skip
    assert int.from_bytes(SPEC.header[:8], "little") == len(SPEC.header) - 8
    assert len(SPEC.header) % 8 == 0
    assert SPEC.update_length == len(SPEC.header) + 84
    assert SPEC.model_length == len(SPEC.header) + 94
    assert SPEC.names == {"layer.weight", "norm.running_mean", "layer.bias", "empty"}


def test_names_are_written_in_the_one_documented_way() -> None:
    name = 'a"\\/\b\f\n\r\t\0\x1f\x7f é€𝔘'
    text = ModelSpec((tensor(name),)).header[8:]
    written = rb'"a\"\\/\b\f\n\r\t\u0000\u001f\u007f \u00e9\u20ac\ud835\udd18"'
    assert text.rstrip(b" ") == b"{" + written + b':{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'


def test_equal_specifications_are_equal_in_every_way() -> None:
    again = ModelSpec.from_bytes(SPEC.to_bytes())
    assert (again, hash(again), again.digest, again.header) == (SPEC, hash(SPEC), SPEC.digest, SPEC.header)
    assert again.to_bytes() == SPEC.to_bytes()
    reordered = ModelSpec(SPEC.tensors[::-1])
    assert reordered != SPEC
    assert reordered.digest != SPEC.digest
    assert SPEC != "a specification"
    assert repr(SPEC) == f"ModelSpec(6 tensors, {SPEC.model_length} bytes, {SPEC.digest.hex()[:12]})"


def test_a_model_may_have_scalars_empty_tensors_and_no_floats_at_all() -> None:
    scalar = ModelSpec((tensor("s"),))
    assert scalar.update_length == scalar.model_length == len(scalar.header) + 4
    assert [(s.start, s.stop, s.offset) for s in scalar.spans(0)] == [(len(scalar.header), len(scalar.header) + 4, 0)]
    empty = ModelSpec((tensor("e", 0, 7), tensor("f", 3, 0)))
    assert empty.update_length == empty.model_length == len(empty.header)
    assert list(empty.spans(0)) == []
    counters = ModelSpec((other("a", 2), other("b", dtype="BOOL")))
    assert counters.update_length == len(counters.header)
    assert counters.model_length == len(counters.header) + 17
    assert counters.names == frozenset()
    assert list(counters.spans(0)) == []


def test_half_precision_and_double_precision_travel_as_float32() -> None:
    for dtype in ("F64", "F32", "F16", "BF16"):
        spec = ModelSpec((tensor("w", 5, dtype=dtype),))
        assert spec.model_length == len(spec.header) + 20
        assert json.loads(spec.header[8:])["w"]["dtype"] == "F32"


def test_spans_cut_a_tensor_where_records_end() -> None:
    spec = ModelSpec((tensor("a", 3), tensor("b", 2 * limits.RECORD // 4), tensor("e", 0), tensor("c", 1)))
    start = len(spec.header)
    a, b, _, c = spec.tensors
    cut = limits.RECORD - start - 12
    assert list(spec.spans(0)) == [Span(a, start, start + 12, 0), Span(b, start + 12, limits.RECORD, 0)]
    assert list(spec.spans(1)) == [Span(b, 0, limits.RECORD, cut // 4)]
    left = 2 * limits.RECORD - cut - limits.RECORD
    assert list(spec.spans(2)) == [
        Span(b, 0, left, (cut + limits.RECORD) // 4),
        Span(c, left, left + 4, 0),
    ]
    assert list(spec.spans(3)) == []
    assert records(spec.model_length) == 3


@pytest.mark.parametrize(
    ("length", "count"),
    [(0, 1), (1, 1), (limits.RECORD, 1), (limits.RECORD + 1, 2), (limits.BLOB, 8 * limits.CHUNKS)],
)
def test_a_payload_has_at_least_one_record(length: int, count: int) -> None:
    assert records(length) == count


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * (limits.TENSOR_NAME + 1)},
        {"name": b"w"},
        {"name": "__metadata__"},
        {"shape": [-1]},
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": [2**63]},
        {"shape": [1] * 9},
        {"shape": None},
        {"shape": "23"},
        {"dtype": "F8"},
        {"dtype": "I64"},
        {"dtype": b"F32"},
        {"dtype": "float32"},
        {"kind": "non-float"},
        {"kind": "other"},
        {"kind": b"parameter"},
        {"kind": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_wrong_tensor_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        ModelSpec.from_bytes(packed(**change))


def test_a_specification_without_tensors_or_with_a_name_twice_is_refused() -> None:
    with pytest.raises(Malformed):
        ModelSpec.from_bytes(msgpack.packb({"v": 1, "tensors": []}))
    with pytest.raises(TooLarge):
        ModelSpec(())
    with pytest.raises(Malformed, match="'w' appears twice"):
        ModelSpec((tensor("w", 1), other("w", 1)))


def test_a_newer_specification_says_so() -> None:
    with pytest.raises(WireError) as refused:
        ModelSpec.from_bytes(packed()[:1] + packed()[1:].replace(b"\xa1v\x01", b"\xa1v\x02"))
    assert refused.value.reason == "upgrade_needed"


@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62], [2**63 - 1] * 8, [2**32 + 1]], ids=str)
def test_a_model_larger_than_a_blob_is_refused_whatever_the_product_overflows(shape: list[int]) -> None:
    with pytest.raises(TooLarge):
        ModelSpec.from_bytes(packed(shape=shape))


def test_a_huge_shape_with_a_zero_in_it_is_empty() -> None:
    spec = ModelSpec.from_bytes(packed(shape=[2**40, 0, 2**40]))
    assert spec.model_length == len(spec.header)


def test_header_and_data_together_fit_into_a_blob() -> None:
    most = (limits.BLOB - 200) // 4
    assert ModelSpec((tensor("w", most),)).model_length <= limits.BLOB
    with pytest.raises(TooLarge):
        ModelSpec((tensor("w", limits.BLOB // 4),))


def test_limits_of_a_specification_hold_when_it_is_made_and_when_it_is_read() -> None:
    many = tuple(tensor(f"t{i}", 1) for i in range(limits.TENSORS))
    spec = ModelSpec(many)
    assert ModelSpec.from_bytes(spec.to_bytes()) == spec
    with pytest.raises(TooLarge):
        ModelSpec((*many, tensor("more", 1)))
    with pytest.raises(TooLarge, match="specification"):
        ModelSpec(tuple(tensor(f"{i:05}" + "𝔘" * 200, 1) for i in range(limits.TENSORS)))
    with pytest.raises(TooLarge):
        ModelSpec.from_bytes(bytes(limits.SPEC + 1))
