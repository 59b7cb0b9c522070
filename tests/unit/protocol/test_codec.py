"""Strictness of what is read, determinism of what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgpack
import pytest

from protocol import codec, limits
from protocol.codec import (
    EXACT,
    Bytes,
    Count,
    Digest,
    Flag,
    Id,
    Metrics,
    Parameters,
    Plain,
    Real,
    Share,
    Text,
    Word,
    decode,
    encode,
    unpack,
)
from protocol.envelope import Core
from protocol.errors import Malformed, TooLarge, WrongContext
from protocol.messages import BODY, Kind, Outcome, Receipt
from protocol.registry import Entry, Registry
from protocol.spec import TensorSpec
from tests.support.wire import BODIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Two fields."""

    __pydantic_config__ = EXACT
    name: Word
    count: Count = 7


def one_field(kind: Any) -> type:
    """A wire dataclass whose only field is of this type."""
    return dataclass(frozen=True, kw_only=True)(
        type("One", (), {"__annotations__": {"x": kind}, "__pydantic_config__": EXACT})
    )


def accepts(kind: Any, value: Any) -> Any:
    """What a field of this type reads from a value packed in msgpack."""
    return decode(one_field(kind), msgpack.packb({"x": value}), limits.MESSAGE).x


GOOD: list[tuple[str, Any, list[Any]]] = [
    ("Count", Count, [0, 1, 2**63 - 1]),
    ("Real", Real, [0.0, -1.5, 1e308, 5e-324]),
    ("Share", Share, [0.0, 1.0]),
    ("Flag", Flag, [True, False]),
    ("Word", Word, ["a", "run-1", "A.b_c:d+e", "x" * 64]),
    ("Text", Text, ["", "any text: größe\n", "x" * 1024]),
    ("Bytes", Bytes, [b"", b"\0\xff"]),
    ("Digest", Digest, [bytes(32)]),
    ("Id", Id, [bytes(16)]),
    ("Metrics", Metrics, [{}, {"loss": 0.5}, {f"m{i}": 1.0 for i in range(256)}]),
    ("Plain", Plain, [None, True, 3, -(2**63), 3.0, "text"]),
    ("Parameters", Parameters, [{}, {"a": (1, 2.5, "x", None, False)}, {"a": ()}, {f"p{i}": i for i in range(64)}]),
    ("Outcome", Annotated[Outcome, codec.TEXT], ["merged"]),
]
BAD: list[tuple[str, Any, list[Any]]] = [
    ("Count", Count, [-1, 2**63, 2**64 - 1, 1.0, True, "1", b"1", None, [1]]),
    ("Real", Real, [float("nan"), float("inf"), -float("inf"), True, "1.5", b"1", None]),
    ("Share", Share, [-0.001, 1.001, 2, float("nan"), True]),
    ("Flag", Flag, [0, 1, "true", None, 1.0]),
    ("Word", Word, ["", "a b", "a\n", "\n", "é", "a/b", "x" * 65, b"abc", 1, None]),
    ("Text", Text, ["x" * 1025, b"abc", 1, None]),
    ("Bytes", Bytes, ["abc", 1, None, [1]]),
    ("Digest", Digest, [bytes(31), bytes(33), "x" * 32]),
    ("Id", Id, [bytes(15), bytes(17), "x" * 16]),
    ("Metrics", Metrics, [{"a b": 1.0}, {"a": None}, {"a": "1"}, [("a", 1.0)], {f"m{i}": 1.0 for i in range(257)}]),
    ("Plain", Plain, [2**63, b"x", float("nan"), {}, [1], "x" * 1025]),
    ("Parameters", Parameters, [{"": 1}, {"a": {}}, {"a": [[1]]}, {"a": [b""]}, {f"p{i}": i for i in range(65)}, []]),
    ("Parameters", Parameters, [{"a": [0] * (limits.PLAINS + 1)}, {"a": 2**63}, {"a": [2**63]}]),
    ("Outcome", Annotated[Outcome, codec.TEXT], [b"merged", "Merged", "", 1, None]),
]


@pytest.mark.parametrize(("name", "kind", "values"), GOOD, ids=[name for name, *_ in GOOD])
def test_a_field_takes_its_own_values_and_keeps_their_types(name: str, kind: Any, values: list[Any]) -> None:
    for value in values:
        assert repr(accepts(kind, value)) == repr(Outcome(value) if name == "Outcome" else value)


@pytest.mark.parametrize(("name", "kind", "values"), BAD, ids=[f"{name}{i}" for i, (name, *_) in enumerate(BAD)])
def test_a_field_refuses_everything_else(name: str, kind: Any, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(Malformed):
            accepts(kind, value)


def test_an_integer_is_read_as_a_real_where_a_real_is_meant() -> None:
    assert repr(accepts(Real, 3)) == "3.0"
    assert repr(accepts(Metrics, {"accuracy": 1})) == "{'accuracy': 1.0}"


def test_encoding_follows_the_declared_order() -> None:
    assert encode(Sample(name="a")) == b"\x82\xa4name\xa1a\xa5count\x07"
    assert encode({"b": (1, [None]), "a": b"x"}) == b"\x82\xa1b\x92\x01\x91\xc0\xa1a\xc4\x01x"
    assert encode(BODIES[Kind.UPDATE]) == encode(BODIES[Kind.UPDATE])


def test_fields_may_come_in_any_order() -> None:
    assert decode(Sample, b"\x82\xa5count\x05\xa4name\xa1a", 100) == Sample(name="a", count=5)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x82\xa4name\xa1a",
        b"\x81\xa4name\xa1a\x00",
        b"\x82\xa4name\xa1a\xa4name\xa1a",
        b"\x81\xc4\x04name\xa1a",
        b"\x81\x01\xa1a",
        b"\x81\xc0\xa1a",
        b"\x81\x90\xa1a",
        b"\x81\x80\xa1a",
        b"\x81\xa4name\xa1\xff",
        b"\x81\xa4name\xc7\x00\x05",
        b"\x81\xa4name\xd6\xff\0\0\0\0",
        b"\xc7\x00\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 5000 + b"\xc0",
        b"\xdc\x4e\x21" + b"\xc0" * 20_001,
        b"\xde\x01\x01" + b"".join(msgpack.packb(f"k{i}") + b"\xc0" for i in range(257)),
        b"\x82\xa4name\xa1a\xa5extra\x01",
        b"\x90",
        b"\xc0",
        b"\xa4name",
    ],
)
def test_whatever_is_not_exactly_a_message_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode(Sample, raw, limits.MESSAGE)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc7\x00\x05",
        b"\xd4\x05\0",
        msgpack.packb([0] * (limits.TENSORS + 1)),
        msgpack.packb({f"{i}": 0 for i in range(limits.FIELDS + 1)}),
        msgpack.packb([{b"a": 1}]),
    ],
    ids=["extension", "extension-of-one", "long-array", "wide-map", "binary-key"],
)
def test_plain_values_have_the_same_limits(raw: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(raw, limits.MESSAGE)


def test_arrays_become_tuples_and_the_largest_allowed_ones_pass() -> None:
    assert unpack(b"\x92\x01\x91\x02", 100) == (1, (2,))
    assert len(unpack(msgpack.packb([0] * limits.TENSORS), limits.MESSAGE)) == limits.TENSORS


def test_size_is_checked_before_anything_is_read() -> None:
    with pytest.raises(TooLarge, match="5 bytes, at most 4"):
        unpack(b"\xc1" * 5, 4)


def test_a_newer_version_is_named_whatever_else_it_says() -> None:
    raw = msgpack.packb({"v": 2, "what": "ever"})
    for kind in (Core, Sample):
        with pytest.raises(WrongContext) as refused:
            decode(kind, raw, 100)
        assert refused.value.reason == "upgrade_needed"
    for not_newer in ({"v": True, "a": 1}, {"v": "2"}, {"v": 0}, {"v": -5}, {"v": 2.5}):
        with pytest.raises(Malformed):
            decode(Core, msgpack.packb(not_newer), 100)


@pytest.mark.parametrize("secret", ["patient-4711 Müller", "\x1b[2J", "a\nb", "x" * 65])
def test_an_error_shows_no_value_and_no_name_that_the_sender_made_up(secret: str) -> None:
    for plain in ({"name": secret}, {"name": "a", secret: 1}, {secret: 1, "name": "a", "count": secret}):
        with pytest.raises(Malformed) as refused:
            decode(Sample, msgpack.packb(plain), 10_000)
        assert secret not in str(refused.value)
        assert str(refused.value).isprintable()
    with pytest.raises(Malformed) as refused:
        accepts(Metrics, {secret: "not a number"})
    assert secret not in str(refused.value)


def test_an_error_names_the_place() -> None:
    with pytest.raises(Malformed, match=r"^Sample: field count: "):
        decode(Sample, msgpack.packb({"name": "a", "count": -1}), 100)
    with pytest.raises(Malformed, match=r"^Sample: field \(whole\): "):
        decode(Sample, b"\x01", 100)
    with pytest.raises(Malformed, match=r"^One: field x\.a\."):
        accepts(Parameters, {"a": b""})


def _arrays(kind: Any) -> list[Any]:
    """Every variable-length array type inside a type, with its annotations."""
    found = []
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        if get_origin(inner) is tuple:
            found.append(notes)
            kind = inner
        else:
            return _arrays(inner)
    elif get_origin(kind) is tuple:
        found.append([])
    return found + [array for inner in get_args(kind) for array in _arrays(inner)]


@pytest.mark.parametrize("kind", [*BODY.values(), Entry, Registry, TensorSpec, Core], ids=lambda kind: kind.__name__)
def test_every_array_is_bounded_and_its_check_ends_at_the_first_error(kind: type) -> None:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for notes in _arrays(hint):
            told = [str(note) for note in notes]
            assert any("max_length" in note or "MaxLen" in note for note in told), f"{kind.__name__}.{name}"
            assert any("FailFast" in note or "fail_fast" in note for note in told), f"{kind.__name__}.{name}"


def test_enumerations_are_words() -> None:
    raw = encode(BODIES[Kind.RECEIPT])
    assert decode(Receipt, raw, 1000).outcome is Outcome.REJECTED
    with pytest.raises(Malformed, match="outcome"):
        decode(Receipt, raw.replace(b"\xa8rejected", b"\xc4\x08rejected"), 1000)
