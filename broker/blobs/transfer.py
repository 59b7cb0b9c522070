"""Blobs through a store: records in, chunks out, and back, with transfers running beside the cipher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from broker.blobs.base import BlobStore
from broker.blobs.chunks import SupportsGet, open_chunk
from protocol import limits
from protocol.blob import BlobReader
from protocol.buffers import new_buffer
from protocol.errors import Forbidden

T = TypeVar("T")
KeyOf = Callable[[str], str]
"""From a chunk's SHA-256 in hex to its object key."""


def read_blob(
    store: SupportsGet, reader: BlobReader, key_of: KeyOf, *, pool: Executor | None = None, ahead: int = 1
) -> Iterator[memoryview]:
    """The plaintext records of a blob, in order, each valid until the next but one is asked for.

    Raises:
        Tampered: the bytes are not what was signed.
        StoreError: a chunk is missing, corrupt or the store is away.
    """
    keys = (key_of(name.hex()) for name in reader.manifest.chunks)
    return reader.read(fetch_ahead(partial(open_chunk, store), keys, limits.CHUNK, ahead=ahead, pool=pool), pool)


def read_whole(store: SupportsGet, reader: BlobReader, key_of: KeyOf, *, pool: Executor | None = None) -> bytes:
    """The whole plaintext of a small blob; raises what `read_blob` does."""
    whole = bytearray()
    for record in read_blob(store, reader, key_of, pool=pool):
        whole += record
    return bytes(whole)


class ChunkUploads:
    """A sink that puts chunks while the next ones are being made, in `pending` + 1 buffers that are used in turn."""

    def __init__(self, put: Callable[[bytes, memoryview], None], pool: Executor, *, pending: int = 2) -> None:
        """`put` stores a chunk called by its SHA-256, durably on return."""
        self._put = put
        self._pool = pool
        self._limit = pending
        self._pending: deque[tuple[Future[None], memoryview]] = deque()
        self._free: list[memoryview] = []

    @classmethod
    def to(cls, store: BlobStore, key_of: KeyOf, pool: Executor, *, pending: int = 2) -> ChunkUploads:
        """Into a store."""
        return cls(lambda name, chunk: store.put(key_of(name.hex()), chunk), pool, pending=pending)

    def room(self, size: int) -> memoryview:
        """A buffer, as soon as one is free.

        Raises:
            StoreError: an earlier put failed; whatever else putting raises.
        """
        if not self._free and self._pending and len(self._pending) >= self._limit:
            self._await_first()
        buffer = self._free.pop() if self._free else new_buffer(size)
        return buffer[:size] if len(buffer) >= size else new_buffer(size)

    def emit(self, name: bytes, chunk: memoryview) -> None:
        """Start putting a chunk; the last one is put before this returns."""
        if len(chunk) < limits.RECORDS_PER_CHUNK * limits.RECORD:  # nothing is left to be made beside its transfer
            self._put(name, chunk)
            return
        self._pending.append((self._pool.submit(self._put, name, chunk), chunk))

    def finish(self) -> None:
        """Return once every chunk is durable.

        Raises:
            StoreError: a put failed; whatever else putting raises.
        """
        while self._pending:
            self._await_first()

    def abandon(self) -> None:
        """Wait for what is under way, whatever becomes of it."""
        wait([future for future, _ in self._pending])
        self._pending.clear()

    def _await_first(self) -> None:
        future, buffer = self._pending.popleft()
        future.result()
        self._free.append(buffer)


Load = Callable[[], AbstractContextManager[bytes | memoryview]]
"""Lends an object's bytes until they are put; called only if they are needed, from a thread of the pool."""
Item = tuple[str, Load]
"""An object's key and how to get its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadResult:
    """What an upload came to."""

    sent: int
    """Objects put."""
    skipped: int
    """Objects that were there already."""
    sent_bytes: int


def upload(store: BlobStore, items: Iterable[Item], *, parallel: int = 4) -> UploadResult:
    """Put all objects that are not there yet, `parallel` at a time; calling it again goes on where it stopped.

    At most `parallel` objects are in memory, and `items` is read no further ahead than that. An object that is there
    but corrupt counts as there: delete it first.

    Raises:
        StoreError: the first failure; transfers under way are waited for, further ones are not begun.
    """
    sizes: list[int | None] = []
    running: set[Future[int | None]] = set()
    with ThreadPoolExecutor(parallel, thread_name_prefix="upload") as pool:
        try:
            for key, load in items:
                running.add(pool.submit(_put_unless_there, store, key, load))
                if len(running) >= parallel:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    sizes += [future.result() for future in done]
            sizes += [future.result() for future in running]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    sent = [size for size in sizes if size is not None]
    return UploadResult(sent=len(sent), skipped=len(sizes) - len(sent), sent_bytes=sum(sent))


def fetch_ahead(
    fetch: Callable[[str, int], T],
    keys: Iterable[str],
    limit: int,
    *,
    parallel: int = 2,
    ahead: int = 2,
    pool: Executor | None = None,
) -> Generator[T, None, None]:
    """Yield what `fetch` gives for each of `keys`, in order, while up to `ahead` further ones are being fetched.

    At most `ahead` + 1 objects are in memory, besides what the caller keeps. Fetching begins with the first `next`.
    A generator that is closed or dropped starts no further fetch; those under way end by themselves. With a `pool`,
    many streams share its threads; otherwise the stream has `parallel` of its own.

    Raises:
        Missing, Corrupt, TooLarge, StoreError: as `fetch`, at the place in the order where the object stands.
    """
    keys = iter(keys)
    first = list(islice(keys, 2))
    if len(first) < 2:  # there is nothing to be fetched ahead, so no thread either
        yield from (fetch(key, limit) for key in first)
        return
    threads = pool or ThreadPoolExecutor(parallel, thread_name_prefix="fetch")
    waiting: deque[Future[T]] = deque()
    try:
        for key in chain(first, keys):
            waiting.append(threads.submit(fetch, key, limit))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        if pool is None:
            threads.shutdown(wait=False, cancel_futures=True)


def _put_unless_there(store: BlobStore, key: str, load: Load) -> int | None:
    try:
        if store.has(key):
            return None
    except Forbidden:  # an identity that may put but not look: putting again is harmless
        pass
    return _put(store, key, load)


def _put(store: BlobStore, key: str, load: Load) -> int:
    # A frame of its own: the caller's is kept by the error that told of the missing object until garbage is collected.
    with load() as data:
        store.put(key, data)
        return len(data)
