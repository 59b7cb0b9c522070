"""The blob store in this process's memory: for the simulator, tests and single-process runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from broker.blobs.base import ObjectInfo, check_bytes, check_head, check_key, check_prefix
from protocol.errors import Missing, TooLarge


class MemoryBlobs:
    """Keeps objects in a dictionary; everything is gone with the last reference to it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._heads: dict[str, bytes] = {}

    @classmethod
    def named(cls, url: str) -> MemoryBlobs:
        """`memory:` is a new store each time, `memory:NAME` the same one for as long as a caller holds it."""
        name = url.partition(":")[2]
        if not name:
            return cls()
        with _SHARED_LOCK:
            store = _SHARED.get(name)
            if store is None:
                store = _SHARED[name] = cls()
            return store

    def put(self, key: str, data: bytes | memoryview) -> None:
        check_key(key)
        entry = (bytes(data), self._clock())
        with self._lock:
            self._objects[key] = entry

    def get(self, key: str, limit: int) -> bytes:
        check_key(key)
        with self._lock:
            entry = self._objects.get(key)
        if entry is None:
            raise Missing(f"{key}: no such object in the memory store")
        return check_bytes(key, _bounded(key, entry[0], limit))

    def has(self, key: str) -> bool:
        check_key(key)
        with self._lock:
            return key in self._objects

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = [ObjectInfo(k, len(data), at) for k, (data, at) in self._objects.items() if k.startswith(prefix)]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def put_head(self, name: str, data: bytes) -> None:
        check_head(name)
        with self._lock:
            self._heads[name] = bytes(data)

    def get_head(self, name: str, limit: int) -> bytes | None:
        check_head(name)
        with self._lock:
            data = self._heads.get(name)
        return None if data is None else _bounded(f"head of {name}", data, limit)

    def close(self) -> None:
        """Nothing to release; a shared store stays usable by its other holders."""


def _bounded(what: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise TooLarge(f"{what}: {len(data)} bytes stored, at most {limit} expected; refused unread")
    return data


_SHARED: WeakValueDictionary[str, MemoryBlobs] = WeakValueDictionary()
_SHARED_LOCK = threading.Lock()
