"""No buffer is read after it was given back, whenever threads do their work: all comes out as it does of bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator.audit.export import write_file
from aggregator.pipeline import merge as merging
from aggregator.pipeline.admission import inspect
from aggregator.pipeline.merge import Sinks, Sources, merge
from aggregator.strategy.strategies import strategy
from broker.blobs.chunks import BufferChunk
from broker.blobs.transfer import ChunkUploads, read_blob
from broker.runtime.threads import InlineExecutor
from protocol import limits
from protocol.blob import BlobReader, BlobWriter, Chunk, Manifest
from protocol.buffers import new_buffer
from protocol.cipher import NewStream, Suite
from protocol.envelope import Sealer, unlock, verify
from protocol.errors import FledgeError
from protocol.messages import Kind, Named
from protocol.spec import ModelSpec
from protocol.topology import model_chunk
from tests.support.chunks import small_records
from tests.support.plans import member, plan
from tests.support.poison import EXECUTORS, PooledBlobs, executor, poisoned
from tests.support.training import RAW, Adding, control, delta_of, model
from tests.support.wire import AGGREGATOR, FEDERATION, REGISTRY, SITE_A, fixed
from worker.api.filters import build
from worker.api.weights import Weights
from worker.domain.state import Sealed, UpdateRow
from worker.intake import Reader
from worker.pipeline import contribute as contributing
from worker.pipeline.contribute import BaseVersion, Egress, UpdateOutput, contribute
from worker.pipeline.reseal import reseal, wrap

KEY, BOUND = fixed("key"), fixed("bound")
CLIP = build([Named(name="clip", parameters={"norm": 0.5})])
SUITES = st.sampled_from(Suite)
KINDS = st.sampled_from(EXECUTORS)
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """A blob in a store, and how to read it."""

    manifest: Manifest
    store: PooledBlobs

    def read(self, kind: str, pools: ExitStack, *, ahead: int = 1) -> Iterator[memoryview]:
        pool = pools.enter_context(executor(kind))
        return read_blob(self.store, BlobReader(KEY, BOUND, self.manifest), model_chunk, pool=pool, ahead=ahead)


class Output:
    """A blob that is being written into a store."""

    def __init__(self, length: int, suite: Suite, kind: str, pools: ExitStack) -> None:
        self._store = PooledBlobs()
        self._uploads = ChunkUploads.to(self._store, model_chunk, pools.enter_context(executor(kind)))
        begun = NewStream(suite, KEY)
        self._writer = BlobWriter(begun.cipher(BOUND), begun.header, length, self._uploads, digest=True)
        self.write = self._writer.write

    def finish(self) -> Stored:
        manifest = self._writer.finish()
        self._uploads.finish()
        return Stored(manifest, self._store)


def stored(parts: Sequence[bytes], suite: Suite, kind: str = "here") -> Stored:
    with ExitStack() as pools:
        output = Output(sum(map(len, parts)), suite, kind, pools)
        for part in parts:
            output.write(part)
        return output.finish()


def whole(blob: Stored) -> bytes:
    with ExitStack() as pools:
        return b"".join([bytes(record) for record in blob.read("here", pools)])


@st.composite
def models(draw: st.DrawFn) -> Arrays:
    """Up to four tensors, of nothing to some records, of which some do not float."""
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays: Arrays = {"first": dice.normal(size=draw(st.integers(1, 400))).astype(np.float32)}
    for index in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            arrays[f"float{index}"] = dice.normal(size=draw(st.integers(0, 300))).astype(np.float32)
        else:
            arrays[f"whole{index}"] = dice.integers(0, 9, draw(st.integers(0, 60)))
    return arrays


BUFFERS = ("float0",)


def cut(arrays: Arrays, *, update: bool = False, seed: int | None = None) -> tuple[ModelSpec, list[bytes]]:
    """A model's (or an update's) records of these values, or of others of the same shapes."""
    spec, payload = model(arrays, buffers=BUFFERS)
    if seed is not None:
        dice = np.random.default_rng(seed)
        _, payload = model({name: dice.random(size=a.shape).astype(a.dtype) for name, a in arrays.items()})
    data = b"".join(map(bytes, payload()))[: spec.update_length if update else None]
    return spec, [data[at : at + limits.RECORD] for at in range(0, len(data), limits.RECORD)]


# ---- what each of the pipelines does, and what it does with bytes


def check_admission(arrays: Arrays, suite: Suite, kind: str) -> None:
    spec, parts = cut(arrays, update=True, seed=1)
    expected = inspect(spec, iter(parts))
    with ExitStack() as pools:
        assert inspect(spec, stored(parts, suite, kind).read(kind, pools, ahead=2)) == expected


def check_merge(arrays: Arrays, suite: Suite, kind: str, name: str, members: int) -> None:
    """Everything at once: deltas, a strategy's streams and the released average, in and out."""
    spec, old = cut(arrays)
    lacking = (("first",) if number == 2 else () for number in range(members))
    each = [member(number, weight=0.5 + number, absent=absent) for number, absent in enumerate(lacking)]
    chosen, made = strategy(name), plan(each, rate=0.5, decay=0.75, name=name)
    deltas = [cut(arrays, update=True, seed=10 + number)[1] for number in range(members)]
    states = [cut(arrays, update=True, seed=20 + number)[1] for number in range(len(chosen.state))]
    average = cut(arrays, seed=5)[1]
    expected: list[bytearray] = [bytearray() for _ in range(2 + len(states))]
    merge(
        spec,
        made,
        chosen,
        Sources(old=iter(old), deltas=list(map(iter, deltas)), states=list(map(iter, states)), released=iter(average)),
        Sinks(model=expected[0].extend, released=expected[1].extend, states=[each.extend for each in expected[2:]]),
        InlineExecutor(),
    )
    with ExitStack() as pools:
        lengths = [spec.model_length, spec.model_length, *(spec.update_length for _ in states)]
        outputs = [Output(length, suite, kind, pools) for length in lengths]

        def read(parts: list[bytes]) -> Iterator[memoryview]:
            return stored(parts, suite).read(kind, pools)

        merge(
            spec,
            made,
            chosen,
            Sources(
                old=read(old), deltas=list(map(read, deltas)), states=list(map(read, states)), released=read(average)
            ),
            Sinks(model=outputs[0].write, released=outputs[1].write, states=[each.write for each in outputs[2:]]),
            pools.enter_context(executor(kind)),
        )
        for output, right in zip(outputs, expected, strict=True):
            assert whole(output.finish()) == right


def check_form(arrays: Arrays, suite: Suite, kind: str, clipped: bool) -> None:
    """A training from a stored base, formed into an update that is then sealed again."""
    spec, parts = cut(arrays)
    floats = {name: np.zeros_like(array) for name, array in arrays.items() if array.dtype.kind == "f"}
    with ExitStack() as pools, pytest.MonkeyPatch.context() as patch:
        patch.setattr(contributing, "ThreadPoolExecutor", lambda *_, **__: executor(kind))
        store, pool = PooledBlobs(), pools.enter_context(executor(kind))
        sealer = Sealer(
            SITE_A,
            Kind.UPDATE,
            federation=FEDERATION,
            message_id=bytes(16),
            spec=spec.digest,
            length=spec.update_length,
            suite=suite,
        )
        sink = ChunkUploads.to(store, model_chunk, pool, pending=1)
        base = BaseVersion(spec, lambda: stored(parts, suite).read(kind, pools, ahead=2))
        egress = Egress(filters=CLIP if clipped else RAW)
        _, manifest = contribute(Adding(floats, 0.25), base, egress, UpdateOutput(sealer, sink), control=control())
        sink.finish()
        payload = b"".join([bytes(record) for record in read_blob(store, sealer.key.reader(manifest), model_chunk)])
        exact = {name: (array + np.float32(0.25)) - array for name, array in arrays.items() if name in floats}
        norm = float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in exact.values())))
        got = delta_of(spec, payload)
        for name, array in exact.items():
            if clipped:
                np.testing.assert_allclose(got[name], array * min(1.0, 0.5 / norm), rtol=1e-6)
            else:
                np.testing.assert_array_equal(got[name], array)
        check_reseal(sealer, manifest, store, payload, kind, pools)


def check_reseal(
    sealer: Sealer, manifest: Manifest, store: PooledBlobs, payload: bytes, kind: str, pools: ExitStack
) -> None:
    raw = sealer.finish(b"", [AGGREGATOR.public], manifest)
    row = UpdateRow(row=1, id=bytes(16), run="-", base_version=0, epoch=0, sequence=1, chunks=manifest.chunks)
    old = Sealed(envelope=raw, chunks=manifest.chunks, key=wrap(sealer.key, SITE_A))
    reader = Reader(identity=SITE_A, federation=FEDERATION, registry=REGISTRY)
    sink = ChunkUploads.to(store, model_chunk, pools.enter_context(executor(kind)), pending=1)

    def load(name: bytes) -> Chunk:
        return store.open(model_chunk(name.hex()), limits.CHUNK)

    again = reseal(row, old, reader, (2, 3), load=load, sink=sink)
    sink.finish()
    verified = verify(again.envelope, REGISTRY, federation=FEDERATION, kinds={Kind.UPDATE})
    assert verified.manifest is not None
    assert set(again.chunks).isdisjoint(manifest.chunks)
    resealed = read_blob(store, unlock(verified, AGGREGATOR).reader(verified.manifest), model_chunk)
    assert b"".join([bytes(record) for record in resealed]) == payload


def check_load(arrays: Arrays, suite: Suite, kind: str) -> None:
    spec, parts = cut(arrays)
    with ExitStack() as pools:
        weights = Weights(spec, partial(stored(parts, suite).read, kind, pools))
        found = {name: np.full(array.shape, 7, array.dtype) for name, array in arrays.items()}
        weights.copy_into(found)
        pieces = {name: np.full(array.size, 7, array.dtype) for name, array in arrays.items()}
        for piece in weights.pieces():
            pieces[piece.tensor.name][piece.offset : piece.offset + piece.values.size] = piece.values
        kept = dict(weights.tensors())
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            np.testing.assert_array_equal(pieces[name], array.reshape(-1))
            np.testing.assert_array_equal(kept[name], array)


def check_export(arrays: Arrays, suite: Suite, kind: str) -> None:
    _, parts = cut(arrays)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as pools:
        path = Path(folder) / "model.safetensors"
        write_file(path, stored(parts, suite, kind).read(kind, pools))
        assert path.read_bytes() == b"".join(parts)


# ---- with promises kept


@settings(max_examples=40)
@given(arrays=models(), suite=SUITES, kind=KINDS)
def test_an_update_is_admitted_by_what_it_holds(arrays: Arrays, suite: Suite, kind: str) -> None:
    with small_records(64), poisoned():
        check_admission(arrays, suite, kind)


@settings(max_examples=60)
@given(
    arrays=models(),
    suite=SUITES,
    kind=KINDS,
    name=st.sampled_from(["fedbuff", "fedadam"]),
    members=st.integers(1, 4),
)
def test_a_merge_has_the_same_bits_as_one_of_bytes(
    arrays: Arrays, suite: Suite, kind: str, name: str, members: int
) -> None:
    with small_records(64), poisoned():
        check_merge(arrays, suite, kind, name, members)


@settings(max_examples=40)
@given(arrays=models(), suite=SUITES, kind=KINDS, clipped=st.booleans())
def test_an_update_is_what_was_learned_also_when_it_is_sealed_again(
    arrays: Arrays, suite: Suite, kind: str, clipped: bool
) -> None:
    with small_records(64), poisoned():
        check_form(arrays, suite, kind, clipped)


@settings(max_examples=40)
@given(arrays=models(), suite=SUITES, kind=KINDS)
def test_a_trainer_gets_the_versions_values(arrays: Arrays, suite: Suite, kind: str) -> None:
    with small_records(64), poisoned():
        check_load(arrays, suite, kind)


@settings(max_examples=20)
@given(arrays=models(), suite=SUITES, kind=KINDS)
def test_an_exported_file_holds_the_model(arrays: Arrays, suite: Suite, kind: str) -> None:
    with small_records(64), poisoned():
        check_export(arrays, suite, kind)


# ---- with promises broken: what is above would see it

FIXED: Arrays = {
    "first": np.linspace(1, 2, 400, dtype=np.float32),
    "whole0": np.arange(40),
    "float0": np.linspace(-3, 5, 300, dtype=np.float32),
}


def one_plaintext_buffer(patch: pytest.MonkeyPatch) -> None:
    begin = BlobReader.__init__

    def begun(self: BlobReader, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self._plain = self._plain[:1]

    patch.setattr(BlobReader, "__init__", begun)


def one_upload_buffer(patch: pytest.MonkeyPatch) -> None:
    own: dict[ChunkUploads, memoryview] = {}
    patch.setattr(ChunkUploads, "room", lambda self, size: own.setdefault(self, new_buffer(limits.CHUNK))[:size])


def one_new_record(patch: pytest.MonkeyPatch) -> None:
    record = merging._Made.record
    patch.setattr(merging._Made, "record", lambda self, _index, old, states: record(self, 0, old, states))


def one_delta(patch: pytest.MonkeyPatch) -> None:
    begin = contributing._Delta.__init__

    def begun(self: Any, *args: Any) -> None:
        begin(self, *args)
        self._turns = self._turns[:1]

    patch.setattr(contributing._Delta, "__init__", begun)


def chunks_closed_early(patch: pytest.MonkeyPatch) -> None:
    part = BufferChunk.part

    def closing(self: BufferChunk, start: int, stop: int, spare: memoryview) -> memoryview:
        found = part(self, start, stop, spare)
        if stop == len(self):
            self.close(right=True)
        return found

    patch.setattr(BufferChunk, "part", closing)


def nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave everything as it is."""


ADMISSION, LOAD, EXPORT = check_admission, check_load, check_export
MERGE = partial(check_merge, name="fedadam", members=3)
FORM = partial(check_form, clipped=True)
BROKEN = {
    "admission reads closed chunks": (ADMISSION, chunks_closed_early, "here", 1),
    "load reads closed chunks": (LOAD, chunks_closed_early, "late", 1),
    "export reads closed chunks": (EXPORT, chunks_closed_early, "jittery", 1),
    "merge keeps records too long": (MERGE, nothing, "here", 0),
    "merge reads into one buffer": (MERGE, one_plaintext_buffer, "here", None),
    "merge writes what is filled again": (MERGE, one_new_record, "late", 1),
    "merge fills what is uploaded": (MERGE, one_upload_buffer, "late", 1),
    "form writes what is filled again": (FORM, one_delta, "late", 1),
    "form fills what is uploaded": (FORM, one_upload_buffer, "late", 1),
}


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_seen(name: str, suite: Suite) -> None:
    check, broken, kind, lent = BROKEN[name]
    with small_records(64):
        with poisoned():
            check(FIXED, suite, kind)
        with pytest.MonkeyPatch.context() as patch, ExitStack() as double:
            broken(patch)
            if lent is not None:
                double.enter_context(poisoned(lent=lent))
            with pytest.raises((AssertionError, FledgeError, ValueError)):
                check(FIXED, suite, kind)
