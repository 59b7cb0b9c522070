"""Blobs: a payload as a stream of encrypted records, cut into content-named chunks.

A record is 1 MiB of plaintext, encrypted by the stream's suite (`protocol.cipher`) with the hash of the message's core
and the record's index as associated data, so that no record can be moved; the last one is marked, so that no stream can
be cut short. Eight records make a chunk, named by the SHA-256 of its ciphertext.

Nothing is allocated per record: buffers are lent. What `BlobReader.read` gives is the reader's again when the next but
one record is asked for; what a `ChunkSink` gave as room is the sink's again once the chunk is emitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Protocol

from protocol import limits
from protocol.buffers import new_buffer
from protocol.cipher import Octets, RecordCipher, Suite, opening, size_of, suite_of
from protocol.errors import Corrupt, Malformed, StoreError, Tampered, TooLarge
from protocol.spec import records


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is signed about a blob: enough to fetch, check and decrypt it, given the key."""

    length: int
    """Plaintext bytes."""
    stream: bytes
    """The stream header, which names the suite."""
    chunks: tuple[bytes, ...]
    """SHA-256 of each chunk's ciphertext, in order."""
    digest: bytes
    """SHA-256 of the plaintext; empty where the writer left it out, which only newer suites may."""

    @property
    def suite(self) -> Suite:
        """How the records are encrypted."""
        return suite_of(self.stream)

    @property
    def size(self) -> int:
        """Ciphertext bytes."""
        return sealed_size(self.length, self.suite)

    def chunk_size(self, index: int) -> int:
        """Ciphertext bytes of chunk `index`."""
        whole = limits.RECORDS_PER_CHUNK * (limits.RECORD + self.suite.overhead)
        return min(whole, self.size - index * whole)

    def check(self) -> None:
        """Refuse a manifest whose parts contradict each other.

        Raises:
            TooLarge: over the limit of a blob.
            Malformed: the stream header or the digest has the wrong size.
            WrongContext: the suite is unknown (`upgrade_needed`).
            Tampered: the number of chunks does not follow from the length.
        """
        suite = self.suite
        if len(self.digest) != hashlib.sha256().digest_size and (self.digest or suite is Suite.XCHACHA20):
            raise Malformed("the blob's digest has the wrong size")
        if self.length > limits.BLOB:
            raise TooLarge(f"a blob of {self.length} bytes; at most {limits.BLOB} are allowed")
        if len(self.chunks) != -(-records(self.length) // limits.RECORDS_PER_CHUNK):
            raise Tampered(f"{len(self.chunks)} chunks cannot hold {self.length} bytes", "truncated")


def sealed_size(length: int, suite: Suite) -> int:
    """Ciphertext bytes of a blob of `length` bytes."""
    return length + suite.overhead * records(length)


class ChunkSink(Protocol):
    """Takes finished chunks; gives the room to make them in."""

    def room(self, size: int) -> memoryview:
        """A buffer of `size` bytes: the writer's until it emits the chunk."""

    def emit(self, name: bytes, chunk: memoryview) -> None:
        """Take the chunk called by its SHA-256; its buffer goes back to the sink."""


class CallbackSink:
    """A sink that lends each chunk to a function at once; all are made in one buffer."""

    def __init__(self, put: Callable[[bytes, memoryview], object]) -> None:
        self._put = put
        self._buffer = memoryview(b"")

    def room(self, size: int) -> memoryview:
        """The buffer."""
        if len(self._buffer) < size:
            self._buffer = new_buffer(size)
        return self._buffer[:size]

    def emit(self, name: bytes, chunk: memoryview) -> None:
        """Call the function."""
        self._put(name, chunk)


class BlobWriter:
    """Encrypts records in order, straight into the sink's chunks."""

    def __init__(self, cipher: RecordCipher, stream: bytes, length: int, sink: ChunkSink, *, digest: bool) -> None:
        """`digest`: hash the plaintext too."""
        self._cipher = cipher
        self._stream = stream
        self._length = length
        self._sink = sink
        self._digest = hashlib.sha256() if digest else None
        self._index = 0
        self._last = records(length) - 1
        self._names: list[bytes] = []
        self._chunk = memoryview(b"")
        self._filled = 0
        self._name = hashlib.sha256()

    def write(self, record: Octets) -> None:
        """Add the next record: exactly 1 MiB, except the last, which ends the declared length."""
        expected = min(limits.RECORD, self._length - self._index * limits.RECORD)
        if self._index > self._last or size_of(record) != expected:
            raise Tampered(f"record {self._index} has {size_of(record)} bytes, expected {expected}")
        if self._index % limits.RECORDS_PER_CHUNK == 0:
            rest = self._length - self._index * limits.RECORD
            plain = min(limits.RECORDS_PER_CHUNK * limits.RECORD, rest)
            self._chunk = self._sink.room(sealed_size(plain, self._cipher.suite))
            self._filled, self._name = 0, hashlib.sha256()
        sealed = self._chunk[self._filled : self._filled + expected + self._cipher.suite.overhead]
        self._cipher.seal(self._index, self._index == self._last, record, sealed)
        self._name.update(sealed)  # while it is in the processor's cache
        if self._digest is not None:
            self._digest.update(record)
        self._filled += len(sealed)
        self._index += 1
        if self._filled == len(self._chunk):
            self._names.append(self._name.digest())
            chunk, self._chunk = self._chunk, memoryview(b"")
            self._sink.emit(self._names[-1], chunk)

    def finish(self) -> Manifest:
        """The manifest, once every record is written."""
        if self._index != self._last + 1:
            raise Tampered(f"the blob ends after record {self._index} of {self._last + 1}", "truncated")
        digest = b"" if self._digest is None else self._digest.digest()
        return Manifest(length=self._length, stream=self._stream, chunks=tuple(self._names), digest=digest)


class Chunk(Protocol):
    """A chunk that was fetched, to be read record by record by one reader."""

    checked: bool
    """Whether its bytes have been compared with its name."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int, spare: memoryview) -> memoryview:
        """Bytes `start` to `stop`: a view of its own memory, or read into `spare`, which has that size.

        Raises:
            StoreError: they cannot be read.
        """

    def renew(self) -> Chunk:
        """A checked copy from the place this one is a copy of; this one is not what its name says.

        Raises:
            StoreError, Tampered: there is no such place, or the chunk is as wrong there.
        """

    def close(self, *, right: bool) -> None:
        """The reader needs it no more; `right`: all of it was read and is what its name says."""


def pieces(chunk: Chunk) -> Iterator[memoryview]:
    """All bytes of a chunk, in pieces that are valid until the next one is asked for.

    Raises:
        StoreError: they cannot be read.
    """
    spare = new_buffer(min(limits.RECORD, len(chunk)))
    for start in range(0, len(chunk), limits.RECORD):
        size = min(limits.RECORD, len(chunk) - start)
        yield chunk.part(start, start + size, spare[:size])


class HeldChunk:
    """A chunk whose bytes are in memory."""

    def __init__(self, data: bytes | memoryview, *, checked: bool = False) -> None:
        self._data = memoryview(data)
        self.checked = checked

    def __len__(self) -> int:
        return len(self._data)

    def part(self, start: int, stop: int, spare: memoryview) -> memoryview:
        """A view."""
        return self._data[start:stop]

    def renew(self) -> Chunk:
        """There is no other copy."""
        raise Tampered("a chunk is not the one that was signed")

    def close(self, *, right: bool) -> None:
        """Nothing is to be done."""


class _ChunkHash:
    """The hash of a chunk, made while its records are decrypted."""

    def __init__(self, name: bytes, pool: Executor | None) -> None:
        self._name = name
        self._pool = pool
        self._hash = hashlib.sha256()

    @contextmanager
    def beside(self, sealed: memoryview, *, last: bool) -> Iterator[None]:
        """Hash a record while something else reads it too; `sealed` is not used any more at the end.

        Raises:
            Tampered: it was the last one, and the chunk is not what its name says.
        """
        if self._pool is None:
            self._hash.update(sealed)
            yield
        else:
            hashing = self._pool.submit(self._hash.update, sealed)
            try:
                yield
            finally:
                hashing.result()
        if last and self._hash.digest() != self._name:
            raise Tampered("a chunk is not the one that was signed")


class BlobReader:
    """Decrypts records in order; nothing decrypted is complete before the last one has been accepted."""

    def __init__(
        self, key: bytes, associated: bytes, manifest: Manifest, *, digest: bool | None = None, proven: bool = False
    ) -> None:
        """Prepare to read a blob once.

        Args:
            digest: compare the plaintext's hash too; None: where the suite asks for it. Every record is authenticated
                and every chunk hashed all the same.
            proven: this process has read all of it before and found it right; nothing is hashed again.
        """
        manifest.check()
        self.manifest = manifest
        """Of the blob that is read."""
        self._cipher = opening(manifest.stream, key, associated)
        self._overhead = manifest.suite.overhead
        self._proven = proven
        if digest is None:
            digest = manifest.suite is Suite.XCHACHA20
        self._digest = hashlib.sha256() if digest and manifest.digest and not proven else None
        self._index = 0
        self._last = records(manifest.length) - 1
        size = min(limits.RECORD, manifest.length)
        self._plain = [new_buffer(size) for _ in range(min(2, self._last + 1))]
        self._sealed = new_buffer(size + self._overhead)

    def read(self, chunks: Iterable[Chunk], pool: Executor | None = None) -> Iterator[memoryview]:
        """Plaintext records from the chunks in order; each is valid until the next but one is asked for.

        With a `pool` chunks are hashed there, beside a cipher that is as slow.

        Raises:
            Tampered: wrong key, wrong place, changed bytes, an early or missing end, or a wrong hash.
            StoreError: a chunk cannot be read.
        """
        count = 0
        for number, chunk in enumerate(chunks):
            if number >= len(self.manifest.chunks):
                chunk.close(right=False)
                raise Tampered(f"chunk {number} is one too many", "truncated")
            yield from self._chunk(self._whole(chunk, number), number, pool)
            count += 1
        if count != len(self.manifest.chunks):
            raise Tampered(f"{count} of {len(self.manifest.chunks)} chunks", "truncated")

    def _whole(self, chunk: Chunk, number: int) -> Chunk:
        """The chunk, in its right size: renewed if it is a copy that lost that."""
        expected = self.manifest.chunk_size(number)
        if len(chunk) == expected:
            return chunk
        try:
            if not self._is_intact(chunk, self.manifest.chunks[number]):
                with suppress(Tampered):  # there is nothing else: then the size is what is wrong
                    chunk = chunk.renew()
            if len(chunk) != expected:
                raise Tampered(f"chunk {number} has the wrong size", "truncated")
        except BaseException:
            chunk.close(right=False)
            raise
        return chunk

    def _chunk(self, chunk: Chunk, number: int, pool: Executor | None) -> Iterator[memoryview]:
        right, name = False, self.manifest.chunks[number]
        if not self._last or self.manifest.suite is not Suite.XCHACHA20:
            pool = None  # beside a faster cipher, or for one record, the hand-over costs as much as it saves
        hashed = None if self._proven or chunk.checked else _ChunkHash(name, pool)
        try:
            for start in range(0, len(chunk), limits.RECORD + self._overhead):
                try:
                    plain = self._record(chunk, start, hashed)
                except (Tampered, Corrupt):
                    if self._is_intact(chunk, name):
                        raise
                    chunk, hashed = self._whole(chunk.renew(), number), None
                    plain = self._record(chunk, start, hashed)
                done = start + limits.RECORD + self._overhead >= len(chunk)
                right = done and (chunk.checked or hashed is not None)
                yield plain
        finally:
            chunk.close(right=right)

    def _record(self, chunk: Chunk, start: int, hashed: _ChunkHash | None) -> memoryview:
        size = min(limits.RECORD + self._overhead, len(chunk) - start)
        sealed = chunk.part(start, start + size, self._sealed[:size])
        with nullcontext() if hashed is None else hashed.beside(sealed, last=start + size == len(chunk)):
            return self._open(sealed)

    def _is_intact(self, chunk: Chunk, name: bytes) -> bool:
        """Something is wrong: was it sealed like that, or is it the chunk's bytes that are?"""
        found = hashlib.sha256()
        try:
            for piece in pieces(chunk):
                found.update(piece)
        except StoreError:
            return False
        return found.digest() == name

    def _open(self, sealed: memoryview) -> memoryview:
        """The plaintext of the next record."""
        last = self._index == self._last
        expected = min(limits.RECORD, self.manifest.length - self._index * limits.RECORD)
        plain = self._plain[self._index % len(self._plain)][:expected]
        self._cipher.open(self._index, last, sealed, plain)
        if self._digest is not None:
            self._digest.update(plain)
            if last and self._digest.digest() != self.manifest.digest:
                raise Tampered("the plaintext is not the one that was signed")
        self._index += 1
        return plain.toreadonly()
