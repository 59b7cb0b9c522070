"""Blobs: a payload as a stream of encrypted records, cut into content-named chunks.

A record is 1 MiB of plaintext and one push of libsodium's secretstream (XChaCha20-Poly1305). Its associated data is the
hash of the message's core and the record's index, so no record can be moved; the tag FINAL stands on the last one and
nowhere else, so no stream can be cut short. Eight records make a chunk, named by the SHA-256 of its ciphertext.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import nacl.bindings as sodium
import nacl.exceptions

from protocol import limits
from protocol.errors import Malformed, Tampered, TooLarge
from protocol.spec import records

FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_STREAM_HEADER = sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES
StreamState = sodium.crypto_secretstream_xchacha20poly1305_state
Emit = Callable[[bytes, bytes], None]
"""Takes a finished chunk: its SHA-256 and its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is signed about a blob: enough to fetch, check and decrypt it, given the key."""

    length: int
    """Plaintext bytes."""
    stream: bytes
    """The secretstream header, 24 bytes."""
    chunks: tuple[bytes, ...]
    """SHA-256 of each chunk's ciphertext, in order."""
    digest: bytes
    """SHA-256 of the plaintext."""

    @property
    def size(self) -> int:
        """Ciphertext bytes."""
        return self.length + limits.OVERHEAD * records(self.length)

    def chunk_size(self, index: int) -> int:
        """Ciphertext bytes of chunk `index`."""
        return min(limits.CHUNK, self.size - index * limits.CHUNK)

    def check(self) -> None:
        """Refuse a manifest whose parts contradict each other.

        Raises:
            TooLarge: over the limit of a blob.
            Malformed: the stream header or the digest has the wrong size.
            Tampered: the number of chunks does not follow from the length.
        """
        if len(self.stream) != _STREAM_HEADER or len(self.digest) != hashlib.sha256().digest_size:
            raise Malformed("the blob's stream header or digest has the wrong size")
        if self.length > limits.BLOB:
            raise TooLarge(f"a blob of {self.length} bytes; at most {limits.BLOB} are allowed")
        if len(self.chunks) != -(-records(self.length) // limits.RECORDS_PER_CHUNK):
            raise Tampered(f"{len(self.chunks)} chunks cannot hold {self.length} bytes", "truncated")


class BlobWriter:
    """Encrypts records in order and hands over finished chunks; holds one chunk, and a second while handing it over."""

    def __init__(self, stream: bytes, state: StreamState, associated: bytes, length: int, emit: Emit) -> None:
        self._state = state
        self._associated = associated
        self._length = length
        self._stream = stream
        self._emit = emit
        # One buffer for the whole stream: a list of records, joined, spends a quarter of the time in page faults.
        self._pending = bytearray(min(limits.CHUNK, length + limits.OVERHEAD * records(length)))
        self._filled = 0
        self._chunks: list[bytes] = []
        self._digest = hashlib.sha256()
        self._index = 0
        self._last = records(length) - 1

    def write(self, record: bytes) -> None:
        """Add the next record: exactly 1 MiB, except the last, which ends the declared length."""
        expected = min(limits.RECORD, self._length - self._index * limits.RECORD)
        if self._index > self._last or len(record) != expected:
            raise Tampered(f"record {self._index} has {len(record)} bytes, expected {expected}")
        self._digest.update(record)
        tag = FINAL if self._index == self._last else MESSAGE
        associated = self._associated + self._index.to_bytes(8, "big")
        sealed = sodium.crypto_secretstream_xchacha20poly1305_push(self._state, record, associated, tag)
        self._pending[self._filled : self._filled + len(sealed)] = sealed
        self._filled += len(sealed)
        self._index += 1
        if self._filled == limits.CHUNK or tag == FINAL:
            self._flush()

    def _flush(self) -> None:
        chunk = bytes(memoryview(self._pending)[: self._filled])
        self._filled = 0
        name = hashlib.sha256(chunk).digest()
        self._chunks.append(name)
        self._emit(name, chunk)

    def finish(self) -> Manifest:
        """The manifest, once every record is written."""
        if self._index != self._last + 1:
            raise Tampered(f"the blob ends after record {self._index} of {self._last + 1}", "truncated")
        return Manifest(
            length=self._length, stream=self._stream, chunks=tuple(self._chunks), digest=self._digest.digest()
        )


class Slices(Protocol):
    """A chunk's bytes, whole or to be read slice by slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


def split_chunks(manifest: Manifest, chunks: Iterable[Slices], *, verify: bool = True) -> Iterator[bytes]:
    """Encrypted records from whole chunks fetched in order, each checked by size and (`verify`) by hash.

    Raises:
        Tampered: a chunk is not the one that was signed, or one is missing.
    """
    count = 0
    for index, chunk in enumerate(chunks):
        if index >= len(manifest.chunks) or len(chunk) != manifest.chunk_size(index):
            raise Tampered(f"chunk {index} has the wrong size", "truncated")
        if verify and hashlib.sha256(chunk[:]).digest() != manifest.chunks[index]:
            raise Tampered(f"chunk {index} is not the one that was signed")
        count += 1
        step = limits.RECORD + limits.OVERHEAD
        for start in range(0, len(chunk), step):
            yield chunk[start : start + step]
    if count != len(manifest.chunks):
        raise Tampered(f"{count} of {len(manifest.chunks)} chunks", "truncated")


class BlobReader:
    """Decrypts records in order; nothing decrypted is complete before the last one has been accepted."""

    def __init__(self, key: bytes, associated: bytes, manifest: Manifest, *, digest: bool = True) -> None:
        """`digest=False` leaves out the plaintext hash, for bytes whose hash was checked at admission; every record is
        authenticated all the same."""
        manifest.check()
        self.manifest = manifest
        """Of the blob that is read."""
        self._associated = associated
        self._state = sodium.crypto_secretstream_xchacha20poly1305_state()
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(self._state, manifest.stream, key)
        self._index = 0
        self._last = records(manifest.length) - 1
        self._digest = hashlib.sha256() if digest else None

    def open(self, record: bytes) -> bytes:
        """The plaintext of the next record.

        Raises:
            Tampered: wrong key, wrong place, changed bytes, an early or missing end, or a wrong plaintext hash.
        """
        expected = min(limits.RECORD, self.manifest.length - self._index * limits.RECORD) + limits.OVERHEAD
        if self._index > self._last or len(record) != expected:
            raise Tampered(f"record {self._index} has the wrong size", "truncated")
        associated = self._associated + self._index.to_bytes(8, "big")
        try:
            plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(self._state, record, associated)
        except nacl.exceptions.CryptoError:
            raise Tampered(f"record {self._index} does not decrypt") from None
        if tag != (FINAL if self._index == self._last else MESSAGE):
            raise Tampered(f"record {self._index} ends the stream in the wrong place", "truncated")
        if self._digest is not None:
            self._digest.update(plain)
            if self._index == self._last and self._digest.digest() != self.manifest.digest:
                raise Tampered("the plaintext is not the one that was signed")
        self._index += 1
        return bytes(plain)

    def read(self, encrypted: Iterable[bytes]) -> Iterator[bytes]:
        """Plaintext records from encrypted ones; refuses a stream that stops early."""
        for record in encrypted:
            yield self.open(record)
        if self._index != self._last + 1:
            raise Tampered(f"the stream stops after record {self._index} of {self._last + 1}", "truncated")
