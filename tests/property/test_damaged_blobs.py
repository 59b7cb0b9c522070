"""Whatever happens to a blob's manifest and chunks: what comes out is a beginning of what went in, or nothing does."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.blobs.cache import CachedBlobs
from broker.blobs.directory import FileBlobs
from broker.blobs.memory import MemoryBlobs
from broker.blobs.transfer import read_blob
from protocol.blob import BlobReader, BlobWriter, HeldChunk, Manifest
from protocol.cipher import NewStream, Suite
from protocol.errors import StoreError, WireError
from protocol.topology import model_chunk
from tests.support.chunks import collected, small_records
from tests.support.wire import fixed, pattern, write_blob

KEY, BOUND = fixed("key"), fixed("bound")
SUITES = st.sampled_from(Suite)
LENGTHS = st.integers(1, 700) | st.sampled_from([32, 33, 255, 256, 257, 512])
Bytes = Callable[[bytes], bytes]


def written(length: int, suite: Suite) -> tuple[Manifest, list[bytes]]:
    begun, chunks = NewStream(suite, KEY), list[bytes]()
    writer = BlobWriter(begun.cipher(BOUND), begun.header, length, collected(chunks), digest=True)
    write_blob(writer, pattern(length))
    return writer.finish(), chunks


@st.composite
def changes(draw: st.DrawFn) -> Bytes:
    """Some bytes turned, taken away, put in, doubled or exchanged."""
    kind = draw(st.sampled_from(["keep", "flip", "cut", "insert", "double", "swap", "other"]))
    one, two = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    some = draw(st.binary(min_size=1, max_size=80))

    def change(data: bytes) -> bytes:
        a, b = sorted((int(one * len(data)), int(two * len(data))))
        turned = bytes(x ^ y for x, y in zip(data[a : a + 1], some, strict=False)) if kind == "flip" else b""
        return {
            "keep": data,
            "flip": data[:a] + turned + data[a + 1 :],
            "cut": data[:a] + data[b:],
            "insert": data[:a] + some + data[a:],
            "double": data[:b] + data[a:],
            "swap": data[b:] + data[a:b] + data[:a],
            "other": some,
        }[kind]

    return change


@st.composite
def manifests(draw: st.DrawFn) -> Callable[[Manifest, list[bytes]], Manifest]:
    """What somebody without the key makes of a manifest; the names may be those of the changed chunks."""
    stream, digest, names = draw(changes()), draw(changes()), draw(st.booleans())
    length = draw(st.just(None) | st.integers(-300, 300) | st.integers(2**34 - 1, 2**62))
    number = draw(st.just(None) | st.integers(0, 255))
    without_digest = draw(st.booleans())

    def make(manifest: Manifest, chunks: list[bytes]) -> Manifest:
        header = stream(manifest.stream)
        if number is not None:
            header = bytes([number]) + header[-24:]
        return replace(
            manifest,
            length=manifest.length if length is None else max(1, manifest.length + length),
            stream=header,
            digest=b"" if without_digest else digest(manifest.digest),
            chunks=tuple(hashlib.sha256(chunk).digest() for chunk in chunks) if names else manifest.chunks,
        )

    return make


def beginning(read: Callable[[], Iterable[memoryview]], truth: bytes, length: int) -> None:
    """Read to the end or the first refusal; all of it, if there is none."""
    got = bytearray()
    try:
        for record in read():
            got += record
            assert truth.startswith(got)
    except (WireError, StoreError):
        return
    assert len(got) == length


@settings(max_examples=300)
@given(
    length=LENGTHS,
    suite=SUITES,
    damages=st.lists(changes(), min_size=3, max_size=3),
    order=st.permutations(range(3)),
    change=manifests(),
    options=st.tuples(st.sampled_from([None, True, False]), st.booleans(), st.booleans()),
)
@example(1, Suite.AEGIS256, [bytes] * 3, [0, 1, 2], lambda manifest, _chunks: manifest, (None, False, False))
def test_what_comes_out_of_changed_chunks_and_manifests_is_a_beginning_of_the_truth(
    length: int,
    suite: Suite,
    damages: list[Bytes],
    order: list[int],
    change: Callable[[Manifest, list[bytes]], Manifest],
    options: tuple[bool | None, bool, bool],
) -> None:
    digest, proven, checked = options
    with small_records():
        manifest, chunks = written(length, suite)
        changed = [damage(chunk) for damage, chunk in zip(damages, chunks, strict=False)]
        changed = [changed[place] for place in order if place < len(changed)]
        said = change(manifest, changed)
        beginning(
            lambda: BlobReader(KEY, BOUND, said, digest=digest, proven=proven).read(
                HeldChunk(chunk, checked=checked) for chunk in changed
            ),
            pattern(length),
            said.length,
        )


@settings(max_examples=60)
@given(
    length=LENGTHS,
    suite=SUITES,
    damages=st.lists(changes(), min_size=6, max_size=6),
    proven=st.booleans(),
    remote=st.booleans(),
)
def test_a_damaged_cache_changes_nothing_and_a_damaged_store_only_what_is_refused(
    length: int, suite: Suite, damages: list[Bytes], proven: bool, remote: bool
) -> None:
    with small_records(), tempfile.TemporaryDirectory() as folder:
        manifest, chunks = written(length, suite)
        keys = [model_chunk(name.hex()) for name in manifest.chunks]
        store = MemoryBlobs() if remote else FileBlobs(Path(folder) / "store")
        cache = CachedBlobs(store, Path(folder) / "cache", 10**6)
        for key, chunk in zip(keys, chunks, strict=True):
            store.put(key, chunk)
            cache.get(key, 10**6)

        def read() -> Iterable[memoryview]:
            return read_blob(cache, BlobReader(KEY, BOUND, manifest, proven=proven), model_chunk)

        for key, damage, chunk in zip(keys, damages, chunks, strict=False):
            path = Path(folder) / "cache" / key[-64:]
            path.unlink()  # in front of a directory it is the store's own file
            path.write_bytes(damage(chunk))
        assert b"".join([bytes(record) for record in read()]) == pattern(length)
        for key, damage, chunk in zip(keys, damages[3:], chunks, strict=False):
            store.put(key, damage(chunk))
        beginning(read, pattern(length), length)
        cache = CachedBlobs(store, Path(folder) / "empty", 10**6)
        beginning(read, pattern(length), length)
