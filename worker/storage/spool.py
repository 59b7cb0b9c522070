"""The spool: encrypted chunks on disk until their update has its final receipt.

Files are named by the SHA-256 of their bytes, readable by their owner only, and synced before they have that name.
Those of one update are a batch, complete before the journal names them; a file that the journal does not name is left
over and goes at the next start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

from broker.blobs.chunks import BUFFERS, BufferPool, FileChunk
from broker.blobs.transfer import ChunkUploads
from broker.runtime.folders import private_folder, sync_folder, write_all
from protocol.blob import Chunk, ChunkSink
from protocol.cipher import Octets
from protocol.errors import DiskFull, StateError

_UNFINISHED = ".unfinished"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_MIB = 1024 * 1024
_PIECE = 256 * 1024
_RESERVE = 64 * _MIB
"""Bytes that stay free on the disk, so that the journal can always be written."""


class Spool:
    """A directory of chunks with a quota; safe to use from any thread."""

    def __init__(
        self,
        directory: Path,
        quota: int,
        *,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        buffers: BufferPool = BUFFERS,
    ) -> None:
        """Prepare to keep chunks there.

        Args:
            quota: bytes the chunks may take together.
            free: tells the free bytes of a directory's disk.
            buffers: where chunks are read into.

        Raises:
            StateError: the directory cannot be made.
        """
        self._directory = directory
        self._quota = quota
        self._free = free
        self._buffers = buffers
        self._sizes: dict[bytes, int] = {}
        self._lock = threading.Lock()
        try:
            private_folder(directory)
        except OSError as error:
            raise StateError(f"spool {directory}: {error.strerror}; check the path and its permissions") from error

    @property
    def used(self) -> int:
        """Bytes of all chunks."""
        with self._lock:
            return sum(self._sizes.values())

    def sweep(self, keep: Collection[bytes]) -> int:
        """Delete every file that `keep` does not name, take stock of the others, return how many were deleted."""
        wanted = {name.hex(): name for name in keep}
        sizes: dict[bytes, int] = {}
        swept = 0
        for entry in os.scandir(self._directory):
            if entry.name in wanted:
                sizes[wanted[entry.name]] = entry.stat().st_size
            elif entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
                swept += 1
        with self._lock:
            self._sizes = sizes
        return swept

    def check_room(self, needed: int) -> None:
        """Refuse to begin what would need `needed` bytes.

        Raises:
            DiskFull: the quota or the disk does not have them; names the place and both sizes.
        """
        used = self.used
        if used + needed > self._quota:
            raise DiskFull(
                f"spool {self._directory}: an update needs {_mib(needed)} MiB, {_mib(self._quota - used)} MiB of the "
                f"quota of {_mib(self._quota)} MiB are free; wait for receipts or raise the quota"
            )
        free = self._free(self._directory)
        if free < needed + _RESERVE:
            raise DiskFull(
                f"spool {self._directory}: an update needs {_mib(needed + _RESERVE)} MiB, the disk has {_mib(free)} "
                "MiB free; free some space there"
            )

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Write the chunks of one update; after an error none of them is left."""
        batch = Batch(self)
        try:
            yield batch
        except BaseException:
            batch.discard()
            raise

    def path(self, name: bytes) -> Path:
        """Where a chunk lies, in a file that is synced and never changes.

        Raises:
            StateError: it is not there.
        """
        path = self._path(name)
        try:
            path.stat()
        except OSError as error:
            raise self._unreadable(name, error) from error
        return path

    def open(self, name: bytes) -> Chunk:
        """A chunk to be read record by record, whose reader compares its bytes with its name.

        Raises:
            StateError: it is not there, or found to be damaged while it is read.
        """
        try:
            return _SpooledChunk(self._path(name), f"spool {self._directory}: chunk {name.hex()[:12]}")
        except OSError as error:
            raise self._unreadable(name, error) from error

    @contextmanager
    def lend(self, name: bytes) -> Iterator[memoryview]:
        """A chunk's bytes, in one of the process's buffers, which takes others when the context ends.

        Raises:
            StateError: it is not there, or its bytes are no longer the ones that were written.
        """
        buffer = self._buffers.take()
        try:
            yield self._read(name, buffer)
        finally:
            self._buffers.give_back(buffer)

    def drop(self, names: Iterable[bytes]) -> None:
        """Delete chunks; those that are gone already do no harm."""
        for name in names:
            self._path(name).unlink(missing_ok=True)
            with self._lock:
                self._sizes.pop(name, None)

    def _read(self, name: bytes, buffer: memoryview) -> memoryview:
        size, found = 0, hashlib.sha256()
        try:
            with self._path(name).open("rb", buffering=0) as file:
                while got := file.readinto(buffer[size : size + _PIECE]):
                    found.update(buffer[size : size + got])  # while it is in the processor's cache
                    size += got
        except OSError as error:
            raise self._unreadable(name, error) from error
        if found.digest() != name:
            raise StateError(f"spool {self._directory}: chunk {name.hex()[:12]} is damaged")
        return buffer[:size]

    def _path(self, name: bytes) -> Path:
        return self._directory / name.hex()

    def _unreadable(self, name: bytes, error: OSError) -> StateError:
        return StateError(f"spool {self._directory}: chunk {name.hex()[:12]} cannot be read: {error.strerror}")

    def _write(self, name: bytes, data: Octets) -> None:
        path = self._path(name)
        # Renamed, because a store may have the file of this name as an object: what has a name never changes.
        unfinished = path.with_suffix(_UNFINISHED)
        try:
            with open(os.open(unfinished, _CREATE, 0o600), "wb", buffering=0) as file:
                write_all(file, data)
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"spool {self._directory}: no room for a chunk of {_mib(len(data))} MiB; free some space there"
                ) from error
            raise StateError(f"spool {self._directory}: cannot write a chunk: {error.strerror}") from error
        with self._lock:
            self._sizes[name] = len(data)

    def _sync(self) -> None:
        try:
            sync_folder(self._directory)
        except OSError as error:
            raise StateError(f"spool {self._directory}: cannot be synced: {error.strerror}") from error


class _SpooledChunk(FileChunk):
    """A chunk that exists here alone."""

    def renew(self) -> Chunk:
        """It is lost."""
        raise StateError(f"{self._what} is damaged")


class Batch:
    """The chunks of one update while they are being written."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: list[bytes] = []
        self._writes: ChunkUploads | None = None

    def chunks(self, pool: Executor) -> ChunkSink:
        """The sink that writes the chunks, each on a thread of the pool while the next one is made.

        Raises:
            DiskFull: the disk is full; what was written of the chunk is gone again.
            StateError: the disk failed.
        """
        self._writes = ChunkUploads(self._put, pool, pending=1)
        return self._writes

    def sync(self) -> None:
        """Return when every chunk survives a power cut.

        Raises:
            DiskFull, StateError: as for the sink.
        """
        if self._writes is not None:
            self._writes.finish()
        self._spool._sync()

    def discard(self) -> None:
        """Delete what was written: nothing came of it."""
        if self._writes is not None:
            self._writes.abandon()
        self._spool.drop(self._names)

    def _put(self, name: bytes, chunk: memoryview) -> None:
        self._names.append(name)
        self._spool._write(name, chunk)


def _mib(size: int) -> int:
    return max(0, -(-size // _MIB))
