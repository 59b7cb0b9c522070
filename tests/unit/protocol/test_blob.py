"""Blobs: record by record, chunk by chunk, and what memory they take."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace

import nacl.bindings as sodium
import pytest

from protocol import limits
from protocol.blob import FINAL, MESSAGE, BlobReader, BlobWriter, Manifest, split_chunks
from protocol.errors import Malformed, Tampered, TooLarge
from tests.support.hostile import stream
from tests.support.wire import fixed, pattern, write_blob

KEY, BOUND = fixed("key"), fixed("bound")
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


def writer(length: int, chunks: list[bytes]) -> BlobWriter:
    """A writer under the fixed key."""
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    header = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, KEY)
    return BlobWriter(header, state, BOUND, length, lambda name, chunk: chunks.append(chunk))


def written(data: bytes) -> tuple[Manifest, list[bytes]]:
    """A blob of `data`."""
    chunks: list[bytes] = []
    blob = writer(len(data), chunks)
    write_blob(blob, data)
    return blob.finish(), chunks


def read(manifest: Manifest, chunks: list[bytes], **options: bool) -> bytes:
    """A blob's plaintext."""
    reader = BlobReader(KEY, BOUND, manifest, digest=options.pop("digest", True))
    return b"".join(reader.read(split_chunks(manifest, chunks, **options)))


@pytest.mark.parametrize("length", EDGES)
def test_a_blob_comes_back_as_it_was(length: int) -> None:
    data = pattern(length)
    manifest, chunks = written(data)
    manifest.check()
    assert read(manifest, chunks) == data
    assert (manifest.length, manifest.digest) == (length, hashlib.sha256(data).digest())
    assert [hashlib.sha256(chunk).digest() for chunk in chunks] == list(manifest.chunks)
    assert [len(chunk) for chunk in chunks] == [manifest.chunk_size(i) for i in range(len(chunks))]
    assert manifest.size == sum(map(len, chunks))
    assert all(len(chunk) == limits.CHUNK for chunk in chunks[:-1])


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


@pytest.mark.parametrize("verify", [True, False])
def test_chunks_in_another_order_or_number_are_refused(verify: bool) -> None:
    manifest, (a, b, c) = written(pattern(17 * MIB))
    for wrong in ([b, a, c], [a, c, b], [a, b], [a], [], [a, b, c, c], [a, a, c], [a, b, c[:-1]], [a, b, c + b"x"]):
        with pytest.raises(Tampered):
            read(manifest, wrong, verify=verify, digest=False)


def test_records_swapped_within_a_chunk_are_refused_by_the_cipher() -> None:
    manifest, (chunk,) = written(pattern(3 * MIB))
    step = MIB + 17
    swapped = chunk[step : 2 * step] + chunk[:step] + chunk[2 * step :]
    with pytest.raises(Tampered, match="record 0"):
        read(manifest, [swapped], verify=False)


def test_another_key_or_another_core_opens_nothing() -> None:
    manifest, (chunk,) = written(b"data")
    for key, bound in ((fixed("other"), BOUND), (KEY, fixed("other"))):
        with pytest.raises(Tampered):
            BlobReader(key, bound, manifest).open(chunk)


def sealed_records(tags: list[int], sizes: list[int]) -> tuple[Manifest, list[bytes]]:
    """Records with these tags, each otherwise right."""
    plain = [pattern(size) for size in sizes]
    header, encrypted = stream(
        KEY, [(p, BOUND + i.to_bytes(8, "big"), t) for i, (p, t) in enumerate(zip(plain, tags, strict=True))]
    )
    digest = hashlib.sha256(b"".join(plain)).digest()
    return Manifest(length=sum(sizes), stream=header, chunks=(bytes(32),), digest=digest), encrypted


@pytest.mark.parametrize(
    "tags", [[FINAL, FINAL], [MESSAGE, MESSAGE], [1, FINAL], [2, FINAL], [MESSAGE, 1], [MESSAGE, 2]]
)
def test_the_end_stands_on_the_last_record_and_nowhere_else(tags: list[int]) -> None:
    manifest, encrypted = sealed_records(tags, [MIB, 9])
    with pytest.raises(Tampered) as refused:
        list(BlobReader(KEY, BOUND, manifest).read(encrypted))
    assert refused.value.reason == "truncated"
    manifest, encrypted = sealed_records([MESSAGE, FINAL], [MIB, 9])
    assert len(list(BlobReader(KEY, BOUND, manifest).read(encrypted))) == 2


def test_a_stream_that_stops_early_or_goes_on_is_refused() -> None:
    manifest, encrypted = sealed_records([MESSAGE, FINAL], [MIB, 9])
    with pytest.raises(Tampered, match="stops after record 1 of 2"):
        list(BlobReader(KEY, BOUND, manifest).read(encrypted[:1]))
    reader = BlobReader(KEY, BOUND, manifest)
    assert len(list(reader.read(encrypted))) == 2
    with pytest.raises(Tampered):
        reader.open(encrypted[1])


def test_nothing_is_read_after_the_end_not_even_an_empty_record() -> None:
    manifest, encrypted = sealed_records([FINAL, MESSAGE], [MIB, 0])
    assert manifest.length == MIB
    reader = BlobReader(KEY, BOUND, manifest)
    assert len(reader.open(encrypted[0])) == MIB
    with pytest.raises(Tampered, match="record 1"):
        reader.open(encrypted[1])


def test_missing_chunks_are_noticed_where_chunks_are_split() -> None:
    manifest, chunks = written(pattern(9 * MIB))
    with pytest.raises(Tampered, match="1 of 2 chunks"):
        list(split_chunks(manifest, chunks[:1]))


def test_the_plaintext_hash_is_compared_unless_it_was_before() -> None:
    manifest, chunks = written(b"data")
    lying = replace(manifest, digest=bytes(32))
    with pytest.raises(Tampered, match="not the one that was signed"):
        read(lying, chunks)
    assert read(lying, chunks, digest=False) == b"data"


def test_a_wrong_chunk_is_found_by_its_hash_before_it_is_decrypted() -> None:
    manifest, _ = written(b"data")
    with pytest.raises(Tampered, match="chunk 0 is not the one"):
        next(split_chunks(manifest, [bytes(21)]))


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


def test_writing_takes_about_two_chunks_of_memory_whatever_the_length() -> None:
    record = bytes(MIB)
    tracemalloc.start()
    try:
        state = sodium.crypto_secretstream_xchacha20poly1305_state()
        header = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, KEY)
        blob = BlobWriter(header, state, BOUND, 40 * MIB, lambda name, chunk: None)
        tracemalloc.reset_peak()
        for _ in range(40):
            blob.write(record)
        assert tracemalloc.get_traced_memory()[1] < 2 * limits.CHUNK + 3 * MIB
    finally:
        tracemalloc.stop()


def test_reading_takes_one_chunk_and_a_few_records() -> None:
    manifest, chunks = written(pattern(24 * MIB))
    tracemalloc.start()
    try:
        fetched = (bytes(bytearray(chunk)) for chunk in chunks)
        for _ in BlobReader(KEY, BOUND, manifest).read(split_chunks(manifest, fetched)):
            pass
        # The fetch itself copies a chunk here while the one before is still held.
        assert tracemalloc.get_traced_memory()[1] < 3 * limits.CHUNK + 4 * MIB
    finally:
        tracemalloc.stop()
