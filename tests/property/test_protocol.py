"""Whatever is sealed is read as it was; whatever is changed is refused with a `WireError`, and nothing else happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import msgpack
import nacl.bindings as sodium
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.blob import BlobReader, BlobWriter, Manifest
from protocol.cipher import NewStream, Suite
from protocol.codec import decode, encode, unpack
from protocol.envelope import Core
from protocol.errors import Tampered, WireError
from protocol.keys import Identity, Role
from protocol.messages import (
    BODY,
    Attestation,
    Bundle,
    Card,
    Checkpoint,
    Command,
    Evaluation,
    Event,
    Fingerprint,
    Grant,
    Head,
    Kind,
    Measurement,
    Named,
    Outcome,
    Receipt,
    Reply,
    Request,
    RunHead,
    RunState,
    State,
    Update,
    Version,
)
from protocol.registry import Entry, Registry, open_registry, sign_registry
from protocol.spec import FLOATS, OTHERS, ModelSpec, TensorKind, TensorSpec, _Tensors, records
from tests.support.chunks import collected, plaintext, small_records, write_blob
from tests.support.hostile import stream
from tests.support.wire import (
    AGGREGATOR,
    FEDERATION,
    PEOPLE,
    ROOT,
    SENDER,
    SITE_A,
    TO,
    Made,
    changed,
    fixed,
    make,
    parts,
    pattern,
    read,
    signed,
)

WORD = st.text("abcXYZ019._:+-", min_size=1, max_size=64)
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
COUNT = st.integers(0, 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)
DIGEST = st.binary(min_size=32, max_size=32)
ID = st.binary(min_size=16, max_size=16)
METRICS = st.dictionaries(WORD, REAL, max_size=5)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | REAL | TEXT
PARAMETERS = st.dictionaries(WORD, PLAIN | st.lists(PLAIN, max_size=4).map(tuple), max_size=5)
NAMED = st.builds(Named, name=WORD, parameters=PARAMETERS)
RUN_HEAD = st.builds(RunHead, run=WORD, state=st.sampled_from(RunState), reason=WORD, version=COUNT, record=DIGEST)
REPLY = st.builds(Reply, message=ID, ok=st.booleans(), reason=WORD, text=TEXT, values=PARAMETERS)
BODIES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.UPDATE: st.builds(
        Update,
        encoding=NAMED,
        examples=st.integers(1, 2**40),
        steps=COUNT,
        seconds=st.floats(0, 1e9),
        filters=st.lists(NAMED, min_size=1, max_size=3).map(tuple),
        trainer=WORD,
        bundle=st.none() | DIGEST,
        absent=st.lists(TEXT, max_size=4).map(tuple),
        fingerprint=st.none() | st.builds(Fingerprint, count=COUNT, root=DIGEST),
        metrics=METRICS,
    ),
    Kind.EVALUATION: st.builds(Evaluation, examples=COUNT, metrics=METRICS),
    Kind.EVENT: st.builds(Event, state=WORD, progress=SHARE, metrics=METRICS, software=WORD, code=WORD, case=WORD),
    Kind.VERSION: st.builds(
        Version,
        parent=st.none() | DIGEST,
        spec_record=DIGEST,
        updates_per_base=st.integers(1, 64),
        max_staleness=COUNT,
        evaluate=st.booleans(),
        task=PARAMETERS,
        registry=COUNT,
        bundle=st.none() | DIGEST,
    ),
    Kind.RECEIPT: st.builds(
        Receipt,
        message=ID,
        epoch=COUNT,
        sequence=COUNT,
        outcome=st.sampled_from(Outcome),
        reason=WORD,
        highest_epoch=COUNT,
    ),
    Kind.HEAD: st.builds(
        Head,
        number=COUNT,
        issued=COUNT,
        not_after=COUNT,
        registry=DIGEST,
        runs=st.lists(RUN_HEAD, max_size=3).map(tuple),
    ),
    Kind.COMMAND: st.builds(
        Command,
        counter=COUNT,
        expires=COUNT,
        command=WORD,
        arguments=PARAMETERS,
        targets=st.lists(WORD, max_size=3).map(tuple),
    ),
    Kind.REPLY: REPLY,
    Kind.ANSWER: REPLY,
    Kind.REQUEST: st.builds(
        Request, puts=st.lists(DIGEST, max_size=3).map(tuple), gets=st.lists(TEXT, max_size=3).map(tuple)
    ),
    Kind.GRANT: st.builds(
        Grant, message=ID, head=st.binary(max_size=50), urls=st.lists(TEXT, max_size=3).map(tuple), expires=COUNT
    ),
    Kind.STATE: st.builds(State, stream=WORD, weight=REAL),
    Kind.BUNDLE: st.builds(
        Bundle,
        config=st.binary(min_size=1, max_size=50),
        code=st.integers(0, limits.CODE),
        spec=st.integers(1, limits.SPEC),
    ),
    Kind.CARD: st.builds(
        Card,
        name=WORD,
        publisher=WORD,
        published=COUNT,
        application=TEXT,
        description=TEXT,
        framework=TEXT,
        precision=WORD,
        licence=TEXT,
        labels=st.lists(WORD, max_size=3).map(tuple),
        released=st.booleans(),
        parameters=COUNT,
        sites=st.lists(WORD, max_size=3).map(tuple),
        measurements=st.lists(st.builds(Measurement, site=WORD, examples=COUNT, metrics=METRICS), max_size=2).map(
            tuple
        ),
    ),
    Kind.ATTESTATION: st.builds(
        Attestation,
        update=ID,
        site=WORD,
        base_version=COUNT,
        outcome=st.sampled_from(Outcome),
        reason=WORD,
        digest=st.none() | DIGEST,
        examples=COUNT,
        weight=st.none() | REAL,
        model=st.none() | DIGEST,
        arrived=st.none() | COUNT,
        settled=st.none() | COUNT,
        issued=COUNT,
    ),
    Kind.CHECKPOINT: st.builds(Checkpoint, number=COUNT, hash=st.none() | DIGEST, issued=COUNT),
}
CONTEXTS = st.fixed_dictionaries(
    {
        "run": WORD,
        "epoch": COUNT,
        "sequence": COUNT,
        "version": COUNT,
        "message_id": ID,
        "spec": st.just(b"") | DIGEST,
    }
)


def test_every_kind_with_a_body_is_drawn() -> None:
    assert set(BODIES) == set(BODY)


# ---- messages


@pytest.mark.parametrize("kind", BODIES)
@settings(max_examples=40)
@given(data=st.data(), context=CONTEXTS)
def test_whatever_is_sealed_is_read_as_it_was(kind: Kind, data: st.DataObject, context: dict[str, Any]) -> None:
    said, blob = data.draw(BODIES[kind]), data.draw(st.binary(max_size=50)) if TO[kind] else b""
    made = make(kind, body=said, data=blob, **context)
    got = read(made, (*TO[kind], AGGREGATOR)[0])
    assert repr(got.body) == repr(said)
    assert got.blob == (blob or None)
    core = got.core
    assert (core.run, core.epoch, core.sequence, core.version, core.id, core.spec) == tuple(
        context[name] for name in ("run", "epoch", "sequence", "version", "message_id", "spec")
    )


@settings(max_examples=30)
@given(names=st.lists(WORD, max_size=5, unique=True), gone=st.sets(st.integers(0, 4)))
def test_a_registry_is_read_as_it_was_signed(names: list[str], gone: set[int]) -> None:
    registry = Registry(version=0, entries=())
    for name in names:
        registry = registry.with_entry(Identity.generate(name, Role.SITE).public)
    for index in gone:
        if index < len(names):
            registry = registry.revoke(names[index])
    raw = sign_registry(registry, ROOT, FEDERATION, bytes(16))
    assert open_registry(raw, ROOT.public.verify_key, FEDERATION) == registry


PLAINS: st.SearchStrategy[Any] = st.recursive(
    PLAIN | st.binary(max_size=40) | st.integers(2**63, 2**64 - 1) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORD | COUNT | st.binary(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
READABLE = [*BODY.values(), Registry, Entry, Core, _Tensors]


@given(raw=st.binary(max_size=200) | PLAINS.map(msgpack.packb), kind=st.sampled_from(READABLE))
def test_any_bytes_are_a_value_or_a_wire_error(raw: bytes, kind: type) -> None:
    for act in (lambda: decode(kind, raw, 1000), lambda: unpack(raw, 1000)):
        with suppress(WireError):
            act()


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused_as_envelope_identity_registry_or_specification(raw: bytes) -> None:
    for act in (
        lambda: read(Made(raw)),
        lambda: read(Made(b"FLDG1" + raw)),
        lambda: read(Made(signed(raw, signer=SITE_A, kind=1))),
        lambda: Identity.from_bytes(raw),
        lambda: open_registry(raw, ROOT.public.verify_key, FEDERATION),
        lambda: ModelSpec.from_bytes(raw),
    ):
        with pytest.raises(WireError):
            act()


UPDATES = {suite: make(Kind.UPDATE, data=pattern(100), suite=suite) for suite in Suite}
UPDATE = UPDATES[Suite.XCHACHA20]
CORE_FIELDS = [field.name for field in fields(Core)]
HEADER_FIELDS = ["core", "to", "wraps", "chunks", "digest", "body"]


@settings(max_examples=150)
@given(
    core=st.dictionaries(
        st.sampled_from(CORE_FIELDS), PLAINS | st.sampled_from([2**60, 10**10, -1, b"", 2]), max_size=3
    ),
    header=st.dictionaries(st.sampled_from(HEADER_FIELDS[1:]), PLAINS | st.binary(max_size=200), max_size=2),
    suite=st.sampled_from(Suite),
)
def test_any_values_a_member_signs_are_read_or_refused(
    core: dict[str, Any], header: dict[str, Any], suite: Suite
) -> None:
    """Only what the core does not bind and the cipher does not cover can be changed by its sender."""
    before = read(UPDATES[suite])
    try:
        after = read(changed(UPDATES[suite], core=core, **header))
    except WireError:
        return
    assert replace(after, sender=before.sender) == before


@pytest.mark.parametrize("field", HEADER_FIELDS)
@given(data=st.data())
def test_a_header_field_cut_or_flipped_by_its_sender_is_refused(field: str, data: st.DataObject) -> None:
    value = parts(UPDATE.raw)[0][field]
    raw: bytes = value[0] if isinstance(value, list) else value
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    turned = bytearray(raw)
    turned[bit // 8] ^= 1 << bit % 8
    for wrong in (bytes(turned), raw[: bit // 8]):
        header = {**parts(UPDATE.raw)[0], field: [wrong] if isinstance(value, list) else wrong}
        with pytest.raises(WireError):
            read(replace(UPDATE, raw=signed(header, signer=SITE_A, kind=Kind.UPDATE)))


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(set(Kind) - {Kind.REGISTRY})), data=st.data())
def test_any_change_of_any_message_is_refused(kind: Kind, data: st.DataObject) -> None:
    made = make(kind)
    place = data.draw(st.integers(0, len(made.raw) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    other = data.draw(st.binary(min_size=1, max_size=5))
    flipped = made.raw[:place] + bytes([made.raw[place] ^ bit]) + made.raw[place + 1 :]
    for raw in (flipped, made.raw[:place], made.raw[:place] + other + made.raw[place:], other + made.raw):
        with pytest.raises(WireError):
            read(replace(made, raw=raw), (*TO[kind], AGGREGATOR)[0])


@given(kind=st.sampled_from(sorted(Kind)), name=st.sampled_from(sorted(PEOPLE)))
def test_nobody_but_the_one_role_signs_a_kind(kind: Kind, name: str) -> None:
    assume(PEOPLE[name].role != SENDER[kind].role)
    with pytest.raises(WireError):
        read(make(kind, signer=PEOPLE[name], to=[AGGREGATOR]))


# ---- blobs, with records of 32 bytes so that many fit into an example


KEY, BOUND = fixed("key"), fixed("bound")
FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE


def blob(data: bytes, suite: Suite = Suite.XCHACHA20) -> tuple[Manifest, list[bytes]]:
    begun = NewStream(suite, KEY)
    chunks: list[bytes] = []
    writer = BlobWriter(begun.cipher(BOUND), begun.header, len(data), collected(chunks), digest=True)
    write_blob(writer, data)
    return writer.finish(), chunks


def opened(manifest: Manifest, chunks: list[bytes], verify: bool = True) -> bytes:
    return plaintext(BlobReader(KEY, BOUND, manifest), chunks, checked=not verify)


LENGTHS = st.integers(1, 1200) | st.sampled_from([n + d for n in (32, 64, 256, 512, 1024) for d in (-1, 0, 1)])


SUITES = st.sampled_from(Suite)


@given(length=LENGTHS, suite=SUITES)
def test_a_blob_of_any_length_comes_back(length: int, suite: Suite) -> None:
    with small_records():
        data = pattern(length)
        manifest, chunks = blob(data, suite)
        manifest.check()
        assert len(chunks) == -(-length // 256)
        assert [len(chunk) for chunk in chunks] == [manifest.chunk_size(i) for i in range(len(chunks))]
        assert manifest.size == sum(map(len, chunks)) == length + suite.overhead * -(-length // 32)
        assert opened(manifest, chunks) == opened(manifest, chunks, verify=False) == data


@given(length=LENGTHS, suite=SUITES, verify=st.booleans(), data=st.data())
def test_any_change_of_any_chunk_is_refused(length: int, suite: Suite, verify: bool, data: st.DataObject) -> None:
    with small_records():
        manifest, chunks = blob(pattern(length), suite)
        which = data.draw(st.integers(0, len(chunks) - 1))
        place = data.draw(st.integers(0, len(chunks[which]) - 1))
        old = chunks[which]
        flipped = old[:place] + bytes([old[place] ^ (1 << data.draw(st.integers(0, 7)))]) + old[place + 1 :]
        other = data.draw(st.integers(0, len(chunks) - 1))
        swapped = list(chunks)
        swapped[which], swapped[other] = swapped[other], swapped[which]
        for wrong in (
            [*chunks[:which], flipped, *chunks[which + 1 :]],
            [*chunks[:which], old[:place], *chunks[which + 1 :]],
            [*chunks[:which], old + b"x", *chunks[which + 1 :]],
            [*chunks[:which], *chunks[which + 1 :]],
            [*chunks[:which], old, old, *chunks[which + 1 :]],
            *([swapped] if other != which else []),
        ):
            with pytest.raises(Tampered):
                opened(manifest, wrong, verify)


@given(length=LENGTHS, suite=SUITES, data=st.data())
def test_records_in_any_other_order_are_refused(length: int, suite: Suite, data: st.DataObject) -> None:
    with small_records():
        manifest, chunks = blob(pattern(length), suite)
        step = limits.RECORD + suite.overhead
        sealed = b"".join(chunks)
        encrypted = [sealed[at : at + step] for at in range(0, len(sealed), step)]
        order = data.draw(st.permutations(range(len(encrypted))))
        assume(order != list(range(len(encrypted))))
        with pytest.raises(Tampered):
            opened(manifest, chunked(encrypted[i] for i in order), verify=False)


def chunked(encrypted: Iterable[bytes]) -> list[bytes]:
    """Records put together eight by eight."""
    rest = list(encrypted)
    return [b"".join(rest[at : at + 8]) for at in range(0, len(rest), 8)]


@given(tags=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_stream_is_read_exactly_if_its_end_is_where_it_belongs(tags: list[int]) -> None:
    with small_records():
        plain = [pattern(32)] * len(tags)
        pushes = [(p, BOUND + i.to_bytes(8, "big"), tag) for i, (p, tag) in enumerate(zip(plain, tags, strict=True))]
        header, encrypted = stream(KEY, pushes)
        digest = hashlib.sha256(b"".join(plain)).digest()
        chunks = (bytes(32),) * -(-len(tags) // 8)
        manifest = Manifest(length=32 * len(tags), stream=header, chunks=chunks, digest=digest)
        if tags == [MESSAGE] * (len(tags) - 1) + [FINAL]:
            assert opened(manifest, chunked(encrypted), verify=False) == b"".join(plain)
        else:
            with pytest.raises(Tampered):
                opened(manifest, chunked(encrypted), verify=False)


# ---- model specifications


@st.composite
def tensors(draw: st.DrawFn) -> TensorSpec:
    kind = draw(st.sampled_from(TensorKind))
    return TensorSpec(
        name=draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter("__metadata__".__ne__)),
        shape=tuple(draw(st.lists(st.integers(0, 4), max_size=4))),
        dtype=draw(st.sampled_from(sorted(OTHERS if kind == TensorKind.OTHER else FLOATS))),
        kind=kind,
    )


SPECS = st.lists(tensors(), min_size=1, max_size=8, unique_by=lambda tensor: tensor.name).map(
    lambda drawn: ModelSpec(tuple(drawn))
)
NUMPY = {"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1"}


@given(spec=SPECS, seed=st.integers(0, 2**32 - 1))
def test_the_safetensors_library_reads_the_same_arrays(spec: ModelSpec, seed: int) -> None:
    dice = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for placed in spec.placed:
        tensor = placed.tensor
        if tensor.kind != TensorKind.OTHER:
            arrays[tensor.name] = dice.standard_normal(tensor.shape).astype("<f4")
        elif tensor.dtype == "BOOL":
            arrays[tensor.name] = dice.integers(0, 2, tensor.shape).astype(bool)
        else:
            arrays[tensor.name] = dice.integers(0, 100, tensor.shape).astype("<" + NUMPY[tensor.dtype])
    payload = spec.header + b"".join(np.asarray(array).tobytes() for array in arrays.values())
    assert len(payload) == spec.model_length
    read_back = safetensors.numpy.load(payload)
    assert set(read_back) == set(arrays)
    for name, array in arrays.items():
        assert read_back[name].dtype == array.dtype
        np.testing.assert_array_equal(read_back[name], array)
    for placed in spec.placed:
        raw = payload[placed.start : placed.stop]
        assert raw == arrays[placed.tensor.name].tobytes()
    assert spec.update_length == spec.model_length - sum(
        p.stop - p.start for p in spec.placed if p.tensor.kind == TensorKind.OTHER
    )


@given(spec=SPECS)
def test_a_specification_is_read_as_it_was_written(spec: ModelSpec) -> None:
    again = ModelSpec.from_bytes(spec.to_bytes())
    assert again == spec
    assert (again.to_bytes(), again.digest, again.header) == (spec.to_bytes(), spec.digest, spec.header)


@st.composite
def large_specs(draw: st.DrawFn) -> ModelSpec:
    """Tensors from nothing to several records."""
    sizes = draw(st.lists(st.integers(0, 3) | st.integers(0, 700_000), min_size=1, max_size=8))
    kinds = st.sampled_from([TensorKind.PARAMETER, TensorKind.BUFFER, TensorKind.OTHER])
    return ModelSpec(
        tuple(
            TensorSpec(name=f"t{i}", shape=(size,), dtype="I8" if kind == TensorKind.OTHER else "F32", kind=kind)
            for i, (size, kind) in enumerate((size, draw(kinds)) for size in sizes)
        )
    )


@given(spec=large_specs())
def test_spans_cover_every_float_exactly_once_and_in_order(spec: ModelSpec) -> None:
    reached = {placed.tensor.name: 0 for placed in spec.placed if placed.tensor.kind != TensorKind.OTHER}
    position = len(spec.header)
    for record in range(records(spec.model_length) + 1):
        for span in spec.spans(record):
            assert 0 <= span.start < span.stop <= limits.RECORD
            assert record * limits.RECORD + span.start == position
            assert (span.stop - span.start) % 4 == 0
            assert span.offset == reached[span.tensor.name]
            reached[span.tensor.name] += (span.stop - span.start) // 4
            position += span.stop - span.start
    assert reached == {name: _elements(spec, name) for name in reached}
    assert position == spec.update_length


def _elements(spec: ModelSpec, name: str) -> int:
    return next(tensor.elements for tensor in spec.tensors if tensor.name == name)


@given(spec=SPECS)
def test_a_specification_encodes_as_any_other_value(spec: ModelSpec) -> None:
    assert spec.to_bytes() == encode(_Tensors(v=1, tensors=spec.tensors))
