"""Chunks as stores give them: a file that is read record by record, a buffer that is used again, bytes in memory."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Protocol, runtime_checkable

from protocol import limits
from protocol.blob import Chunk, HeldChunk
from protocol.buffers import new_buffer
from protocol.errors import Corrupt

_KEPT = 4
"""Unused buffers that a pool keeps at most."""


class SupportsGet(Protocol):
    """Whatever gives an object's bytes by its key."""

    def get(self, key: str, limit: int) -> bytes:
        """As `BlobStore.get`."""


@runtime_checkable
class SupportsOpen(Protocol):
    """A store that can give an object's bytes without making a `bytes` of them."""

    def open(self, key: str, limit: int) -> Chunk:
        """The object, for one reader; what it raises is what `BlobStore.get` raises, now or while it is read."""


@runtime_checkable
class SupportsFiles(Protocol):
    """A store whose objects are files: one that does not change can be an object and something else at once."""

    def link(self, key: str, target: Path) -> bool:
        """Make `target` another name of the object's file, if both lie on one file system; tells whether it did.

        What is put under the key later is a new file, so the second name keeps the bytes it has.
        """

    def put_file(self, key: str, path: Path) -> bool:
        """Store the file at `path`, which is synced and never changes, under `key`; tells whether it did.

        Durable on return. False: files are not taken here, so put the bytes.
        """


def open_chunk(store: SupportsGet, key: str, limit: int) -> Chunk:
    """An object to be read record by record, as cheaply as the store can give it.

    Raises:
        Missing, Corrupt, TooLarge, StoreError: as `get`; some of it perhaps only while it is read.
    """
    if isinstance(store, SupportsOpen):
        return store.open(key, limit)
    return HeldChunk(store.get(key, limit), checked=True)


class FileChunk:
    """A chunk in a file: a stream holds one record of it, and that stays in the processor's cache."""

    checked = False

    def __init__(self, path: Path, what: str) -> None:
        """Open the file.

        Raises:
            OSError: there is none, or it cannot be opened.
        """
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size
        self._what = what

    def __len__(self) -> int:
        return self._size

    def part(self, start: int, stop: int, spare: memoryview) -> memoryview:
        """Read into `spare`."""
        got = 0
        try:  # network file systems give less than was asked for, now and then
            while got < stop - start and (more := os.preadv(self._descriptor, [spare[got:]], start + got)):
                got += more
        except OSError as error:
            raise Corrupt(f"{self._what} cannot be read: {error.strerror}; have it uploaded again") from error
        if got != stop - start:
            raise Corrupt(f"{self._what} has been cut short; have it uploaded again")
        return spare

    def renew(self) -> Chunk:
        """It is the store's own: there is no other."""
        raise Corrupt(f"{self._what}: the stored bytes do not hash to the object's name; have it uploaded again")

    def close(self, *, right: bool) -> None:
        """Close the file."""
        self._close()


class BufferPool:
    """Buffers of one chunk each, which are used again instead of being given back to the system and zeroed anew.

    None is ever waited for: how many are out at once is up to those who fetch ahead.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """A buffer of `limits.CHUNK` bytes; what it holds is left over from its last use."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return new_buffer(limits.CHUNK)

    def give_back(self, buffer: memoryview) -> None:
        """The buffer may be taken by others from now on."""
        with self._lock:
            if len(self._free) < _KEPT:
                self._free.append(buffer)


BUFFERS = BufferPool()
"""The process's own."""


class BufferChunk:
    """A chunk that was received into a pool's buffer, and compared with its name meanwhile."""

    checked = True

    def __init__(self, buffer: memoryview, size: int, what: str, pool: BufferPool = BUFFERS) -> None:
        self._buffer: memoryview | None = buffer
        self._size = size
        self._what = what
        self._pool = pool

    def __len__(self) -> int:
        return self._size

    def part(self, start: int, stop: int, spare: memoryview) -> memoryview:
        """A view."""
        if self._buffer is None:
            raise ValueError(f"{self._what} is read after it was closed")
        return self._buffer[start:stop]

    def renew(self) -> Chunk:
        """It comes from the store itself: there is no other."""
        raise Corrupt(f"{self._what}: the received bytes have changed in this process's memory")

    def close(self, *, right: bool) -> None:
        """Give the buffer back."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._pool.give_back(buffer)
