"""A store that tells when it begins and ceases to fail, for the operator of the service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.blobs.base import BlobStore, ObjectInfo
from broker.blobs.chunks import SupportsFiles, open_chunk
from protocol.blob import Chunk
from protocol.errors import Corrupt, Forbidden, Missing, StoreError, TooLarge

_FORGOTTEN_S = 600.0
"""For how long a failure counts that nobody repeats: what is still wanted is tried again within minutes."""


class MonitoredBlobs:
    """Another store, with an eye on how its operations end: each has a deadline of its own within that store.

    Reading and writing are watched apart, because a store may let one be done and not the other: it fails until both
    are done again, or one is and the other is not wanted any more.
    """

    def __init__(self, inner: BlobStore) -> None:
        """No listener is told yet."""
        self._inner = inner
        self._listener: Callable[[float | None], None] | None = None
        self._lock = threading.Lock()
        self._failing: dict[str, tuple[float, float]] = {}  # since when, and when last

    def tell(self, listener: Callable[[float | None], None]) -> None:
        """Have `listener` hear since when (seconds since the epoch) reading or writing fails, None once both are done.

        It is called from any thread, only when that changes.
        """
        with self._lock:
            self._listener = listener
            if self._failing:
                listener(min(since for since, _ in self._failing.values()))

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._watch("write"):
            self._inner.put(key, data)

    def get(self, key: str, limit: int) -> bytes:
        with self._watch("read"):
            return self._inner.get(key, limit)

    def open(self, key: str, limit: int) -> Chunk:
        with self._watch("read"):
            return open_chunk(self._inner, key, limit)

    def link(self, key: str, target: Path) -> bool:
        return isinstance(self._inner, SupportsFiles) and self._inner.link(key, target)

    def put_file(self, key: str, path: Path) -> bool:
        if not isinstance(self._inner, SupportsFiles):
            return False
        with self._watch("write"):
            return self._inner.put_file(key, path)

    def has(self, key: str) -> bool:
        with self._watch("read", Forbidden):  # who may put and not look asks all the same, and puts
            return self._inner.has(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._watch("read"):
            yield from self._inner.list(prefix)

    def delete(self, key: str) -> None:
        with self._watch("write"):
            self._inner.delete(key)

    def put_head(self, name: str, data: bytes) -> None:
        with self._watch("write"):
            self._inner.put_head(name, data)

    def get_head(self, name: str, limit: int) -> bytes | None:
        with self._watch("read"):
            return self._inner.get_head(name, limit)

    def close(self) -> None:
        self._inner.close()

    @contextmanager
    def _watch(self, what: str, untold: type[StoreError] | tuple[()] = ()) -> Iterator[None]:
        begun = time.time()
        try:
            yield
        except untold:
            raise
        except (Missing, Corrupt, TooLarge):  # the store has answered, and what it holds is another matter
            self._ended(what, None)
            raise
        except StoreError:
            self._ended(what, begun)
            raise
        else:
            self._ended(what, None)

    def _ended(self, what: str, failed: float | None) -> None:
        now = time.time()
        with self._lock:
            before = bool(self._failing)
            if failed is None:
                self._failing = {
                    other: (since, last)
                    for other, (since, last) in self._failing.items()
                    if other != what and now - last < _FORGOTTEN_S
                }
            else:
                since, _ = self._failing.get(what, (failed, now))
                self._failing[what] = (since, now)
            if bool(self._failing) != before and self._listener is not None:
                self._listener(failed)
