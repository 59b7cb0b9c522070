"""A local ciphertext cache in front of a store: what was fetched once is read from disk the next time."""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from broker.blobs.base import BlobStore, ObjectInfo, check_bytes, check_key
from broker.blobs.chunks import FileChunk, SupportsFiles, open_chunk
from broker.runtime.folders import private_file, private_folder, write_all
from protocol.blob import Chunk, HeldChunk, pieces
from protocol.buffers import new_buffer
from protocol.errors import Corrupt, Missing, StoreError, TooLarge

_log = structlog.get_logger(__name__)
_UNFINISHED = ".unfinished-"
_MOST_IN_MEMORY = 1024
SMALL = 16 * 1024
"""Bytes; a reasonable `small` in front of any store."""


class CachedBlobs:
    """A `BlobStore` that keeps up to `quota_bytes` of what `get` brought in `directory`, least recently used out first.

    The directory is one process's alone and survives restarts. Nothing in it is trusted or synced: each hit of `get`
    is hashed again, and of `open` authenticated record by record by whoever reads it; a file that fails is deleted and
    fetched anew. Heads are never cached. A cache that cannot write (a full disk) only costs speed.
    """

    def __init__(
        self, store: BlobStore, directory: Path, quota_bytes: int, *, keep_puts: bool = False, small: int = 0
    ) -> None:
        """Open the cache, or make it.

        Args:
            keep_puts: what this process stores itself enters the cache too, for those who read their own objects.
            small: objects of up to so many bytes are kept in memory instead (the newest 1,024), where a file would
                take longer to write than the object to fetch.
        """
        self._store = store
        self._keep_puts = keep_puts
        self._directory = directory
        self._quota = quota_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """SHA-256 to size, least recently used first; the object's folder does not matter, its bytes are the same."""
        self._used = 0
        self._small = small
        self._in_memory: OrderedDict[str, bytes] = OrderedDict()
        try:
            private_folder(directory)
            self._take_stock()
        except OSError as error:
            raise StoreError(f"cache directory {directory} cannot be used: {error.strerror or error}") from error

    @property
    def used_bytes(self) -> int:
        """Bytes kept in the directory now."""
        return self._used

    def get(self, key: str, limit: int) -> bytes:
        """The object's bytes, from the cache if they are there and right, otherwise from the store."""
        name = check_key(key)
        data = self._hit(name, key, limit)
        if data is None:
            data = self._store.get(key, limit)
            self._keep(key, data)
        return data

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data`; without `keep_puts` it enters the cache when it is read."""
        self._store.put(key, data)
        if self._keep_puts:
            self._keep(key, data)

    def open(self, key: str, limit: int) -> Chunk:
        """The object for a reader who authenticates every record: a hit is not hashed again.

        What comes from the store enters the cache once its reader has found it to be what its name says.
        """
        name = check_key(key)
        with self._lock:
            held, size = self._in_memory.get(name), self._sizes.get(name)
            if size is not None:
                self._sizes.move_to_end(name)
        if held is not None and len(held) <= limit:
            return HeldChunk(held, checked=True)
        if size is not None and size <= limit:
            try:
                return _CachedChunk(self, key, limit, self._directory / name)
            except OSError:
                self._forget(name)
        return _EnteringChunk(self, key, open_chunk(self._store, key, limit))

    def link(self, key: str, target: Path) -> bool:
        """As the store does."""
        return isinstance(self._store, SupportsFiles) and self._store.link(key, target)

    def put_file(self, key: str, path: Path) -> bool:
        """As the store does; with `keep_puts` it is in the cache then."""
        if not (isinstance(self._store, SupportsFiles) and self._store.put_file(key, path)):
            return False
        if self._keep_puts:
            self._enter(key, path.stat().st_size, lambda unfinished: os.link(path, unfinished))
        return True

    def touch(self, keys: Iterable[str]) -> None:
        """Count these objects as used just now, as far as they are in the directory."""
        for key in keys:
            name = check_key(key)
            with self._lock:
                if name not in self._sizes:
                    continue
                self._sizes.move_to_end(name)
            with suppress(OSError):
                os.utime(self._directory / name)

    def has(self, key: str) -> bool:
        return self._store.has(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._forget(check_key(key))
        self._store.delete(key)

    def put_head(self, name: str, data: bytes) -> None:
        self._store.put_head(name, data)

    def get_head(self, name: str, limit: int) -> bytes | None:
        return self._store.get_head(name, limit)

    def close(self) -> None:
        """Close the store; the cache stays for the next start."""
        self._store.close()

    def _hit(self, name: str, key: str, limit: int) -> bytes | None:
        with self._lock:
            held = self._in_memory.get(name)
            size = self._sizes.get(name) if held is None else len(held)
            if size is None:
                return None
            if held is None:
                self._sizes.move_to_end(name)
        if size > limit:
            raise TooLarge(f"{key}: {size} bytes in the cache, at most {limit} expected; refused unread")
        if held is not None:
            return held
        path = self._directory / name
        try:
            data = check_bytes(key, path.read_bytes())
            os.utime(path)  # the order of use outlives the process
        except (OSError, Corrupt) as error:
            _log.warning("cache.dropped", key=key, reason=type(error).__name__)
            self._forget(name)
            return None
        return data

    def _keep(self, key: str, data: bytes | memoryview) -> None:
        if len(data) <= self._small:
            with self._lock:
                self._in_memory[check_key(key)] = bytes(data)
                while len(self._in_memory) > _MOST_IN_MEMORY:
                    self._in_memory.popitem(last=False)
        else:
            self._enter(key, len(data), lambda unfinished: _write_private(unfinished, [data]))

    def _keep_chunk(self, key: str, chunk: Chunk) -> None:
        if len(chunk) <= self._small:
            self._keep(key, chunk.part(0, len(chunk), new_buffer(len(chunk))))
        else:
            self._enter(key, len(chunk), lambda unfinished: _write_private(unfinished, pieces(chunk)))

    def _enter(self, key: str, size: int, make: Callable[[Path], None]) -> None:
        """Put a file into the cache; in front of a local directory it is one that the store has anyway."""
        if size > self._quota:
            return
        name, unfinished = check_key(key), self._directory / f"{_UNFINISHED}{secrets.token_hex(8)}"
        try:
            if not self.link(key, unfinished):
                make(unfinished)
            with self._lock:
                self._make_room(size - self._sizes.get(name, 0))
                os.replace(unfinished, self._directory / name)
                self._used += size - self._sizes.pop(name, 0)
                self._sizes[name] = size
        except OSError as error:
            _log.warning("cache.not_written", directory=str(self._directory), reason=error.strerror)
        finally:
            unfinished.unlink(missing_ok=True)  # still there if it failed, or if both names were one file's before

    def _make_room(self, needed: int) -> None:
        while self._sizes and self._used + needed > self._quota:
            name, size = self._sizes.popitem(last=False)
            self._used -= size
            (self._directory / name).unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        with self._lock:
            if self._in_memory.pop(name, None) is not None:
                return
            self._used -= self._sizes.pop(name, 0)
            (self._directory / name).unlink(missing_ok=True)

    def _take_stock(self) -> None:
        """Remember what an earlier process left, oldest use first, and remove what it left half-written."""
        found = []
        for entry in os.scandir(self._directory):
            if entry.name.startswith(_UNFINISHED):
                os.unlink(entry.path)
            elif len(entry.name) == 64 and entry.is_file(follow_symlinks=False):
                status = entry.stat()
                found.append((status.st_mtime_ns, entry.name, status.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._used += size
        self._make_room(0)


class CacheReader:
    """Reads what another process's cache holds, while that process may be at work; there is no store behind it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, key: str, limit: int) -> bytes:
        """The object's bytes.

        Raises:
            Missing: it is not there, or what is there is something else.
        """
        try:
            with (self._directory / check_key(key)).open("rb") as file:
                return check_bytes(key, file.read(limit + 1))
        except (OSError, Corrupt) as error:
            raise Missing(f"{key} is not in the cache {self._directory}") from error


class _CachedChunk(FileChunk):
    """A chunk in the cache; one that has changed there is forgotten and fetched again."""

    checked = True

    def __init__(self, cache: CachedBlobs, key: str, limit: int, path: Path) -> None:
        super().__init__(path, f"{key} in the cache")
        self._cache = cache
        self._key = key
        self._limit = limit

    def renew(self) -> Chunk:
        """The store's."""
        _log.warning("cache.dropped", key=self._key, reason="Tampered")
        self.close(right=False)
        self._cache._forget(check_key(self._key))
        return HeldChunk(self._cache.get(self._key, self._limit), checked=True)


class _EnteringChunk:
    """A chunk from the store that enters the cache when its reader has found it right."""

    def __init__(self, cache: CachedBlobs, key: str, chunk: Chunk) -> None:
        self._cache = cache
        self._key = key
        self._chunk = chunk
        self.checked = chunk.checked

    def __len__(self) -> int:
        return len(self._chunk)

    def part(self, start: int, stop: int, spare: memoryview) -> memoryview:
        """The store's."""
        return self._chunk.part(start, stop, spare)

    def renew(self) -> Chunk:
        """Only the store's own copy has been read."""
        return self._chunk.renew()

    def close(self, *, right: bool) -> None:
        """Keep a right one."""
        try:
            if right:
                self._cache._keep_chunk(self._key, self._chunk)
        except Corrupt as error:  # it has changed since, and that is another reader's trouble
            _log.warning("cache.not_written", key=self._key, reason=str(error))
        finally:
            self._chunk.close(right=right)


def _write_private(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    with open(private_file(path), "wb", buffering=0) as file:
        for part in parts:
            write_all(file, part)
