"""Bounds of each kind's body that the field types do not say; and SPEC.md agrees with the code."""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import msgpack
import pytest

from protocol import errors, limits
from protocol.codec import decode, encode
from protocol.encodings import DENSE_F32
from protocol.envelope import Core, _Header
from protocol.errors import Malformed, WireError
from protocol.messages import BODY, SIGNER, Fingerprint, Kind, Measurement, Named, Outcome, RunHead, RunState
from protocol.registry import Entry, Registry
from protocol.rights import Group, Organisation, Policy
from protocol.spec import FLOATS, OTHERS, TensorKind, TensorSpec
from tests.support.wire import BODIES

PROTOCOL = Path(errors.__file__).parent
SPECIFICATION = (PROTOCOL / "SPEC.md").read_text(encoding="utf-8")


def altered(kind: Kind, **change: Any) -> bytes:
    """The kind's usual body with some values changed."""
    plain = msgpack.unpackb(encode(BODIES[kind]))
    return msgpack.packb({**plain, **change})


@pytest.mark.parametrize("kind", BODY)
def test_a_body_survives_the_wire(kind: Kind) -> None:
    again = decode(BODY[kind], encode(BODIES[kind]), limits.BODY)
    assert repr(again) == repr(BODIES[kind])


@pytest.mark.parametrize("kind", BODY)
def test_every_field_is_needed_and_no_other_is_known(kind: Kind) -> None:
    plain = msgpack.unpackb(encode(BODIES[kind]))
    later = {field.name for field in fields(BODY[kind]) if field.default is not MISSING}
    for name in plain.keys() - later:
        with pytest.raises(Malformed, match=name):
            decode(BODY[kind], msgpack.packb({k: v for k, v in plain.items() if k != name}), limits.BODY)
    with pytest.raises(Malformed, match="surprise"):
        decode(BODY[kind], msgpack.packb({**plain, "surprise": 1}), limits.BODY)


def named(**change: Any) -> dict[str, Any]:
    return {"name": "clip", "parameters": {}, **change}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Kind.UPDATE, {"examples": 0}),
        (Kind.UPDATE, {"examples": 2**40 + 1}),
        (Kind.UPDATE, {"examples": 1.0}),
        (Kind.UPDATE, {"seconds": -0.1}),
        (Kind.UPDATE, {"seconds": float("inf")}),
        (Kind.UPDATE, {"steps": -1}),
        (Kind.UPDATE, {"filters": []}),
        (Kind.UPDATE, {"filters": [named()] * 17}),
        (Kind.UPDATE, {"filters": {"name": "clip"}}),
        (Kind.UPDATE, {"filters": [named(name="a b")]}),
        (Kind.UPDATE, {"encoding": "dense-f32"}),
        (Kind.UPDATE, {"encoding": named(parameters=[])}),
        (Kind.UPDATE, {"bundle": b""}),
        (Kind.UPDATE, {"absent": ["x" * 257]}),
        (Kind.UPDATE, {"absent": ["x"] * (limits.ABSENT + 1)}),
        (Kind.UPDATE, {"absent": "weights"}),
        (Kind.UPDATE, {"fingerprint": {"count": 1, "root": bytes(31)}}),
        (Kind.UPDATE, {"metrics": {"loss": float("nan")}}),
        (Kind.EVENT, {"progress": 1.01}),
        (Kind.EVENT, {"state": "not a word"}),
        (Kind.VERSION, {"updates_per_base": 0}),
        (Kind.VERSION, {"updates_per_base": 65}),
        (Kind.VERSION, {"evaluate": 1}),
        (Kind.VERSION, {"parent": bytes(31)}),
        (Kind.RECEIPT, {"outcome": "lost"}),
        (Kind.RECEIPT, {"message": bytes(15)}),
        (Kind.HEAD, {"runs": [{}]}),
        (Kind.HEAD, {"registry": b""}),
        (Kind.REPLY, {"text": "x" * 1025}),
        (Kind.REPLY, {"ok": None}),
        (Kind.COMMAND, {"counter": -1}),
        (Kind.STATE, {"weight": float("inf")}),
        (Kind.VERSION, {"bundle": b""}),
        (Kind.BUNDLE, {"config": b""}),
        (Kind.BUNDLE, {"config": bytes(limits.CONFIG + 1)}),
        (Kind.BUNDLE, {"code": limits.CODE + 1}),
        (Kind.BUNDLE, {"code": -1}),
        (Kind.BUNDLE, {"spec": 0}),
        (Kind.BUNDLE, {"spec": limits.SPEC + 1}),
        (Kind.CARD, {"name": "../secret"}),
        (Kind.CARD, {"description": "x" * 1025}),
        (Kind.CARD, {"labels": ["x"] * 33}),
        (Kind.CARD, {"measurements": [{"site": "a", "examples": 1, "metrics": {"x": float("nan")}}]}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.name.lower(),
)
def test_a_value_out_of_bounds_is_refused(kind: Kind, change: dict[str, Any]) -> None:
    (field,) = change
    with pytest.raises(Malformed, match=field):
        decode(BODY[kind], altered(kind, **change), limits.BODY)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Kind.UPDATE, {"examples": 2**40, "seconds": 0.0, "bundle": None, "fingerprint": None}),
        (Kind.UPDATE, {"absent": ["x"] * limits.ABSENT, "filters": [named()] * 16}),
        (Kind.VERSION, {"parent": None, "updates_per_base": 64, "bundle": bytes(32)}),
        (Kind.BUNDLE, {"config": bytes(limits.CONFIG), "code": limits.CODE, "spec": limits.SPEC}),
        (Kind.BUNDLE, {"code": 0}),
        (Kind.CARD, {"labels": ["x"] * 32, "sites": [], "measurements": []}),
        (Kind.HEAD, {"runs": []}),
        (Kind.HEAD, {"runs": [msgpack.unpackb(encode(BODIES[Kind.HEAD].runs[0]))] * 64}),
    ],
)
def test_a_value_at_its_bound_is_read(kind: Kind, change: dict[str, Any]) -> None:
    decode(BODY[kind], altered(kind, **change), limits.BODY)


def test_an_error_has_the_reason_of_its_class_unless_it_names_another() -> None:
    assert WireError("text").reason == "malformed"
    assert WireError("text", "expired").reason == "expired"
    assert errors.Tampered("text").reason == "tampered"
    assert str(errors.Tampered("text", "truncated")) == "text"


# ---- the written specification


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of SPEC.md, without its head."""
    section = re.split(r"^#+ ", SPECIFICATION.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def first_words(heading: str) -> list[str]:
    return [row[0].strip("`") for row in table(heading)]


DATACLASSES = [
    Core,
    _Header,
    Registry,
    Entry,
    Policy,
    Group,
    Organisation,
    TensorSpec,
    Named,
    Fingerprint,
    RunHead,
    Measurement,
    *BODY.values(),
]


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_the_specification_lists_the_fields_of_every_map_in_order(kind: type) -> None:
    assert first_words(f"`{kind.__name__.strip('_')}`") == [field.name for field in fields(kind)]


def test_the_specification_lists_the_kinds_with_their_signers() -> None:
    rows = [(int(row[0]), row[1].strip("`"), row[2]) for row in table("Kinds")]
    assert rows == [(kind.value, kind.name, SIGNER[kind].value) for kind in Kind]


def test_the_specification_lists_every_limit() -> None:
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert {row[0].strip("`"): int(row[1].replace(",", "")) for row in table("Limits")} == known


def _literal(node: ast.expr | None) -> set[str]:
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def reasons_in_code() -> set[str]:
    """Every reason that a `WireError` raised in this package can carry."""
    names = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, WireError)}
    found = {vars(errors)[name].reason for name in names}
    for path in PROTOCOL.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                found |= _literal(node.args[1] if len(node.args) > 1 else None)
    return found


def test_the_specification_lists_every_reason() -> None:
    assert set(first_words("Reasons")) == reasons_in_code()


def test_the_specification_lists_every_word_of_every_enumeration() -> None:
    for enumeration in (Outcome, RunState, TensorKind):
        for word in enumeration:
            assert f"`{word.value}`" in SPECIFICATION
    for dtype in (*FLOATS, *OTHERS):
        assert dtype in SPECIFICATION
    assert DENSE_F32.name in SPECIFICATION
