"""Blobs: record by record, chunk by chunk, and what memory they take."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nacl.bindings as sodium
import pytest

from broker.blobs.chunks import FileChunk
from protocol import limits
from protocol.blob import BlobReader, BlobWriter, CallbackSink, HeldChunk, Manifest
from protocol.cipher import NewStream, Suite
from protocol.errors import DiskFull, Malformed, Tampered, TooLarge
from tests.support.chunks import collected, plaintext, write_blob
from tests.support.hostile import stream
from tests.support.wire import fixed, pattern

KEY, BOUND = fixed("key"), fixed("bound")
FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
MIB = 2**20
EDGES = [
    1,
    MIB - 1,
    MIB,
    MIB + 1,
    8 * MIB - 1,
    8 * MIB,
    8 * MIB + 1,
    16 * MIB,
    17 * MIB + 5,
]


def writer(length: int, chunks: list[bytes], suite: Suite = Suite.XCHACHA20) -> BlobWriter:
    """A writer under the fixed key."""
    begun = NewStream(suite, KEY)
    return BlobWriter(begun.cipher(BOUND), begun.header, length, collected(chunks), digest=True)


def written(data: bytes, suite: Suite = Suite.XCHACHA20) -> tuple[Manifest, list[bytes]]:
    """A blob of `data`."""
    chunks: list[bytes] = []
    blob = writer(len(data), chunks, suite)
    write_blob(blob, data)
    return blob.finish(), chunks


def read(manifest: Manifest, chunks: list[bytes], **options: bool) -> bytes:
    """A blob's plaintext."""
    reader = BlobReader(KEY, BOUND, manifest, digest=options.get("digest", True))
    return plaintext(reader, chunks, checked=not options.get("verify", True))


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("length", EDGES)
def test_a_blob_comes_back_as_it_was(length: int, suite: Suite) -> None:
    data = pattern(length)
    manifest, chunks = written(data, suite)
    manifest.check()
    assert read(manifest, chunks) == data
    assert (manifest.length, manifest.digest) == (length, hashlib.sha256(data).digest())
    assert [hashlib.sha256(chunk).digest() for chunk in chunks] == list(manifest.chunks)
    assert [len(chunk) for chunk in chunks] == [manifest.chunk_size(i) for i in range(len(chunks))]
    assert manifest.size == sum(map(len, chunks))
    assert all(len(chunk) == 8 * (MIB + suite.overhead) <= limits.CHUNK for chunk in chunks[:-1])


def test_the_record_layout_is_the_documented_one() -> None:
    data = pattern(2 * MIB + 7)
    manifest, (chunk,) = written(data)
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, manifest.stream, KEY)
    place = 0
    for index, (size, expected) in enumerate([(MIB, MESSAGE), (MIB, MESSAGE), (7, FINAL)]):
        sealed = chunk[place : place + size + 17]
        plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, sealed, BOUND + index.to_bytes(8, "big"))
        assert (plain, tag) == (data[index * MIB : index * MIB + size], expected)
        place += size + 17
    assert place == len(chunk)


def test_a_writer_takes_whole_records_only() -> None:
    blob = writer(MIB + 5, [])
    for wrong in (b"", bytes(MIB - 1), bytes(MIB + 1)):
        with pytest.raises(Tampered, match="record 0"):
            blob.write(wrong)
    blob.write(bytes(MIB))
    with pytest.raises(Tampered, match="record 1"):
        blob.write(bytes(6))
    with pytest.raises(Tampered, match="ends after record 1 of 2"):
        blob.finish()
    blob.write(bytes(5))
    with pytest.raises(Tampered, match="record 2"):
        blob.write(b"")
    assert blob.finish().length == MIB + 5


def test_a_chunk_that_was_handed_over_does_not_change_any_more() -> None:
    manifest, chunks = written(pattern(9 * MIB))
    assert all(isinstance(chunk, bytes) for chunk in chunks)
    assert hashlib.sha256(chunks[0]).digest() == manifest.chunks[0]


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("verify", [True, False])
def test_chunks_in_another_order_or_number_are_refused(verify: bool, suite: Suite) -> None:
    manifest, (a, b, c) = written(pattern(17 * MIB), suite)
    for wrong in ([b, a, c], [a, c, b], [a, b], [a], [], [a, b, c, c], [a, a, c], [a, b, c[:-1]], [a, b, c + b"x"]):
        with pytest.raises(Tampered):
            read(manifest, wrong, verify=verify, digest=False)


@pytest.mark.parametrize("suite", Suite)
def test_records_swapped_within_a_chunk_are_refused_by_the_cipher(suite: Suite) -> None:
    manifest, (chunk,) = written(pattern(3 * MIB), suite)
    step = MIB + suite.overhead
    swapped = chunk[step : 2 * step] + chunk[:step] + chunk[2 * step :]
    with pytest.raises(Tampered, match="record 0"):
        read(replace(manifest, chunks=(hashlib.sha256(swapped).digest(),)), [swapped])


@pytest.mark.parametrize("suite", Suite)
def test_another_key_or_another_core_opens_nothing(suite: Suite) -> None:
    manifest, (chunk,) = written(b"data", suite)
    for key, bound in ((fixed("other"), BOUND), (KEY, fixed("other"))):
        with pytest.raises(Tampered):
            plaintext(BlobReader(key, bound, manifest), [chunk])


def sealed_records(tags: list[int], sizes: list[int]) -> tuple[Manifest, list[bytes]]:
    """Records with these tags, each otherwise right."""
    plain = [pattern(size) for size in sizes]
    header, encrypted = stream(
        KEY, [(p, BOUND + i.to_bytes(8, "big"), t) for i, (p, t) in enumerate(zip(plain, tags, strict=True))]
    )
    digest = hashlib.sha256(b"".join(plain)).digest()
    name = hashlib.sha256(b"".join(encrypted)).digest()
    return Manifest(length=sum(sizes), stream=header, chunks=(name,), digest=digest), encrypted


@pytest.mark.parametrize(
    "tags", [[FINAL, FINAL], [MESSAGE, MESSAGE], [1, FINAL], [2, FINAL], [MESSAGE, 1], [MESSAGE, 2]]
)
def test_the_end_stands_on_the_last_record_and_nowhere_else(tags: list[int]) -> None:
    manifest, encrypted = sealed_records(tags, [MIB, 9])
    with pytest.raises(Tampered) as refused:
        read(manifest, [b"".join(encrypted)])
    assert refused.value.reason == "truncated"
    manifest, encrypted = sealed_records([MESSAGE, FINAL], [MIB, 9])
    assert len(read(manifest, [b"".join(encrypted)], verify=False)) == MIB + 9


@pytest.mark.parametrize("suite", Suite)
def test_a_stream_that_stops_early_or_goes_on_is_refused(suite: Suite) -> None:
    manifest, chunks = written(pattern(9 * MIB), suite)
    for length, some in ((8 * MIB, chunks[:1]), (10 * MIB, [chunks[0], chunks[1] * 2])):
        with pytest.raises(Tampered):
            read(replace(manifest, length=length, chunks=manifest.chunks[: len(some)]), some, verify=False)
    with pytest.raises(Tampered, match="1 of 2 chunks"):
        read(manifest, chunks[:1])


def test_the_plaintext_hash_is_compared_unless_it_was_before() -> None:
    manifest, chunks = written(b"data")
    lying = replace(manifest, digest=bytes(32))
    with pytest.raises(Tampered, match="not the one that was signed"):
        read(lying, chunks)
    assert read(lying, chunks, digest=False) == b"data"


def test_a_wrong_chunk_is_found_by_its_hash_before_it_is_decrypted() -> None:
    manifest, _ = written(b"data")
    with pytest.raises(Tampered, match="not the one that was signed"):
        read(manifest, [bytes(21)])


def test_a_manifest_that_contradicts_itself_is_refused() -> None:
    manifest, _ = written(pattern(MIB + 1))
    for length, chunks in ((MIB + 1, ()), (MIB + 1, (bytes(32),) * 2), (8 * MIB + 1, (bytes(32),))):
        with pytest.raises(Tampered) as refused:
            replace(manifest, length=length, chunks=chunks).check()
        assert refused.value.reason == "truncated"
    with pytest.raises(TooLarge):
        replace(manifest, length=limits.BLOB + 1).check()
    for wrong in ({"stream": bytes(23)}, {"stream": b""}, {"digest": bytes(31)}):
        with pytest.raises(Malformed):
            BlobReader(KEY, BOUND, replace(manifest, **wrong))
    full = (bytes(32),) * limits.CHUNKS
    replace(manifest, length=limits.BLOB, chunks=full).check()


@pytest.mark.parametrize("suite", Suite)
def test_writing_takes_the_chunk_that_is_being_made_whatever_the_length(suite: Suite) -> None:
    record, begun = bytes(MIB), NewStream(suite, KEY)
    blob = BlobWriter(begun.cipher(BOUND), begun.header, 40 * MIB, CallbackSink(ignore), digest=True)
    tracemalloc.start()
    try:
        for _ in range(40):
            blob.write(record)
        assert tracemalloc.get_traced_memory()[1] < limits.CHUNK + MIB // 4
    finally:
        tracemalloc.stop()


def ignore(name: bytes, chunk: memoryview) -> None:
    """Put a chunk nowhere."""


def test_writing_fails_where_the_last_chunk_cannot_be_kept() -> None:
    begun = NewStream(Suite.XCHACHA20, KEY)

    def full(name: bytes, chunk: memoryview) -> None:
        raise DiskFull("no room for a chunk")

    blob = BlobWriter(begun.cipher(BOUND), begun.header, 8 * MIB, CallbackSink(full), digest=True)
    with pytest.raises(DiskFull):
        write_blob(blob, bytes(8 * MIB))


@pytest.mark.parametrize("suite", Suite)
def test_reading_takes_three_records(tmp_path: Path, suite: Suite) -> None:
    manifest, chunks = written(pattern(24 * MIB), suite)
    for index, chunk in enumerate(chunks):
        (tmp_path / str(index)).write_bytes(chunk)
    del chunks
    tracemalloc.start()
    try:
        reader = BlobReader(KEY, BOUND, manifest)
        for _ in reader.read(FileChunk(tmp_path / str(index), "a chunk") for index in range(3)):
            pass
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB + MIB // 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suite", Suite)
def test_a_record_is_valid_until_the_next_but_one_is_asked_for(suite: Suite) -> None:
    data = pattern(5 * MIB)
    manifest, chunks = written(data, suite)
    held = None
    for index, record in enumerate(BlobReader(KEY, BOUND, manifest).read(map(HeldChunk, chunks))):
        assert record == data[index * MIB : (index + 1) * MIB]
        assert held is None or held == data[(index - 1) * MIB : index * MIB]
        assert record.readonly
        held = record
