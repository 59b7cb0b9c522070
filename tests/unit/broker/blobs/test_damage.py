"""Copies that are damaged, in the cache or in the store: which bytes come out of a stream, or which error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.blobs.cache import CachedBlobs
from broker.blobs.directory import FileBlobs
from broker.blobs.transfer import read_blob
from protocol import limits
from protocol.blob import BlobReader, BlobWriter, Manifest
from protocol.cipher import NewStream, Suite
from protocol.errors import Corrupt, Tampered
from protocol.topology import model_chunk
from tests.support.chunks import Counted, collected, small_records, stored, write_blob
from tests.support.wire import fixed, pattern

KEY, BOUND = fixed("key"), fixed("bound")
RECORDS = 19
DATA = pattern(32 * RECORDS - 5)
SUITES = pytest.mark.parametrize("suite", Suite)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda chunk: b"",
    "one byte less": lambda chunk: chunk[:-1],
    "cut within the first record": lambda chunk: chunk[:20],
    "one byte more": lambda chunk: chunk + b"\0",
    "zeros": lambda chunk: bytes(len(chunk)),
    "reversed": lambda chunk: chunk[::-1],
}


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_records():
        yield


def written(suite: Suite, data: bytes = DATA) -> tuple[Manifest, list[bytes]]:
    begun, chunks = NewStream(suite, KEY), list[bytes]()
    writer = BlobWriter(begun.cipher(BOUND), begun.header, len(data), collected(chunks), digest=True)
    write_blob(writer, data)
    return writer.finish(), chunks


def keys(chunks: list[bytes]) -> list[str]:
    return [model_chunk(hashlib.sha256(chunk).hexdigest()) for chunk in chunks]


def counted(chunks: list[bytes]) -> Counted:
    """A store that holds these and notes what is fetched."""
    store = Counted()
    for key, chunk in zip(keys(chunks), chunks, strict=True):
        store.put(key, chunk)
    return store


def reader(manifest: Manifest, *, proven: bool = False) -> BlobReader:
    return BlobReader(KEY, BOUND, manifest, digest=True, proven=proven)


def flipped(chunk: bytes, at: int) -> bytes:
    return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]


@SUITES
@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize("record", range(RECORDS))
def test_a_bit_turned_in_the_cache_is_fetched_again_in_the_middle_of_a_stream(
    tmp_path: Path, suite: Suite, record: int, proven: bool
) -> None:
    manifest, chunks = written(suite)
    store = counted(chunks)
    cache = CachedBlobs(store, tmp_path, 10**6)
    assert stored(cache, reader(manifest), model_chunk) == DATA
    which, place = divmod(record, limits.RECORDS_PER_CHUNK)
    file = tmp_path / keys(chunks)[which][-64:]
    file.write_bytes(flipped(chunks[which], place * (32 + suite.overhead) + 3))
    store.fetched.clear()
    assert stored(cache, reader(manifest, proven=proven), model_chunk) == DATA
    assert store.fetched == [keys(chunks)[which]]
    assert file.read_bytes() == chunks[which]
    store.fetched.clear()
    assert stored(cache, reader(manifest), model_chunk) == DATA
    assert store.fetched == []


@SUITES
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cached_file_of_any_size_and_content_is_fetched_again(
    tmp_path: Path, suite: Suite, damage: str, restarted: bool
) -> None:
    """As a power failure leaves them: what the cache renames into place is not synced."""
    manifest, chunks = written(suite)
    store = counted(chunks)
    cache = CachedBlobs(store, tmp_path, 10**6)
    assert stored(cache, reader(manifest), model_chunk) == DATA
    for key, chunk in zip(keys(chunks), chunks, strict=True):
        (tmp_path / key[-64:]).write_bytes(DAMAGES[damage](chunk))
    if restarted:
        cache = CachedBlobs(store, tmp_path, 10**6)
    store.fetched.clear()
    assert stored(cache, reader(manifest), model_chunk) == DATA
    assert store.fetched == keys(chunks)
    assert [(tmp_path / key[-64:]).read_bytes() for key in keys(chunks)] == chunks
    assert cache.used_bytes == sum(map(len, chunks))


@SUITES
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_object_damaged_in_the_store_is_corrupt_and_may_be_uploaded_again(
    tmp_path: Path, suite: Suite, damage: str, which: int
) -> None:
    """`Tampered` would end the update for good, though its sender did nothing wrong."""
    manifest, chunks = written(suite)
    store = FileBlobs(tmp_path / "store")
    for key, chunk in zip(keys(chunks), chunks, strict=True):
        store.put(key, chunk)
    damaged = DAMAGES[damage](chunks[which])[: limits.CHUNK]  # what is larger than any chunk is refused unread
    if damaged == chunks[which]:
        damaged = damaged[:-2]
    (tmp_path / "store" / keys(chunks)[which]).write_bytes(damaged)
    for where in (store, CachedBlobs(store, tmp_path / "cache", 10**6)):
        with pytest.raises(Corrupt, match="have it uploaded again"):
            stored(where, reader(manifest), model_chunk)
        with pytest.raises(Corrupt, match="have it uploaded again"):
            stored(where, reader(manifest, proven=True), model_chunk)
    store.put(keys(chunks)[which], chunks[which])
    assert stored(store, reader(manifest), model_chunk) == DATA


@SUITES
def test_a_file_that_is_cut_while_it_is_read_is_corrupt(tmp_path: Path, suite: Suite) -> None:
    manifest, chunks = written(suite)
    store = FileBlobs(tmp_path)
    for key, chunk in zip(keys(chunks), chunks, strict=True):
        store.put(key, chunk)
    stream = read_blob(store, reader(manifest), model_chunk)
    for _ in range(3):
        next(stream)
    for key in keys(chunks):
        (tmp_path / key).write_bytes(b"")
    with pytest.raises(Corrupt, match="have it uploaded again"):
        list(stream)


@SUITES
@pytest.mark.parametrize("size", [0, 1, 100, 500])
def test_a_chunk_that_was_signed_in_another_size_is_its_signers_fault(tmp_path: Path, suite: Suite, size: int) -> None:
    manifest, chunks = written(suite)
    wrong = pattern(size)
    signed = replace(manifest, chunks=(manifest.chunks[0], hashlib.sha256(wrong).digest(), manifest.chunks[2]))
    store = FileBlobs(tmp_path / "store")
    for chunk in (*chunks, wrong):
        store.put(*keys([chunk]), chunk)
    for where in (store, CachedBlobs(store, tmp_path / "cache", 10**6)):
        for _ in range(2):
            with pytest.raises(Tampered) as error:
                stored(where, reader(signed), model_chunk)
            assert error.value.reason == "truncated"


@SUITES
def test_a_renewed_chunk_of_another_size_is_its_signers_fault_too(tmp_path: Path, suite: Suite) -> None:
    """The copy has the right size by accident, and what it is a copy of has not."""
    manifest, chunks = written(suite)
    for size in (0, 5, 300, 500):
        wrong = pattern(size)
        signed = replace(manifest, chunks=(hashlib.sha256(wrong).digest(), *manifest.chunks[1:]))
        store = counted([*chunks, wrong])
        cache = CachedBlobs(store, tmp_path / str(size), 10**6)
        cache.get(*keys([wrong]), 10**6)
        (tmp_path / str(size) / keys([wrong])[0][-64:]).write_bytes(bytes(len(chunks[0])))
        with pytest.raises(Tampered) as error:
            stored(cache, reader(signed), model_chunk)
        assert error.value.reason == "truncated"


def test_a_chunk_that_changes_before_it_enters_the_cache_costs_only_speed(tmp_path: Path) -> None:
    manifest, chunks = written(Suite.AEGIS256, DATA[:256])

    class Apart(FileBlobs):
        """On another file system than the cache."""

        def link(self, key: str, target: Path) -> bool:
            return False

    store = Apart(tmp_path / "store")
    store.put(*keys(chunks), chunks[0])
    cache = CachedBlobs(store, tmp_path / "cache", 10**6)
    stream = read_blob(cache, reader(manifest), model_chunk)
    got = [bytes(next(stream)) for _ in range(8)]
    (tmp_path / "store" / keys(chunks)[0]).write_bytes(b"")
    assert list(stream) == []
    assert b"".join(got) == DATA[:256]
    assert cache.used_bytes == 0
