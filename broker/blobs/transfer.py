"""Blobs through a store: records in, chunks out, and back, with transfers running beside the cipher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol, TypeVar

from broker.blobs.base import BlobStore
from protocol import limits
from protocol.blob import BlobReader, Slices, split_chunks
from protocol.errors import Forbidden

KeyOf = Callable[[str], str]
"""From a chunk's SHA-256 in hex to its object key."""


def read_blob(
    store: Getter[Slices], reader: BlobReader, key_of: KeyOf, *, pool: ThreadPoolExecutor | None = None, ahead: int = 1
) -> Iterator[bytes]:
    """The plaintext records of a blob, in order; at most `ahead` + 1 chunks are in memory.

    Raises:
        Tampered: the bytes are not what was signed.
        StoreError: a chunk is missing, corrupt or the store is away.
    """
    keys = (key_of(name.hex()) for name in reader.manifest.chunks)
    chunks = fetch_ahead(store, keys, limits.CHUNK, ahead=ahead, pool=pool)
    # The store has compared each chunk with the hash in its name.
    return reader.read(split_chunks(reader.manifest, chunks, verify=False))


class ChunkUploads:
    """Takes finished chunks and puts them while the next ones are being made; at most `pending` are in memory."""

    def __init__(self, store: BlobStore, key_of: KeyOf, pool: ThreadPoolExecutor, *, pending: int = 2) -> None:
        self._store = store
        self._key_of = key_of
        self._pool = pool
        self._limit = pending
        self._pending: deque[Future[None]] = deque()

    def emit(self, name: bytes, chunk: bytes) -> None:
        """Start putting a chunk; waits while too many are under way. The last one is put before this returns.

        Raises:
            StoreError: an earlier put failed.
        """
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        if len(chunk) < limits.CHUNK:  # only the last one is shorter: nothing is left to do beside its transfer
            self._store.put(self._key_of(name.hex()), chunk)
            return
        self._pending.append(self._pool.submit(self._store.put, self._key_of(name.hex()), chunk))

    def finish(self) -> None:
        """Return once every chunk is durable.

        Raises:
            StoreError: a put failed.
        """
        while self._pending:
            self._pending.popleft().result()


Item = tuple[str, Callable[[], bytes | memoryview]]
"""An object's key and how to get its bytes; it is called only if they are needed, from a thread of the pool."""


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


S_co = TypeVar("S_co", bound=Slices, covariant=True)


class Getter(Protocol[S_co]):
    """Whatever gets an object's bytes by key."""

    def get(self, key: str, limit: int) -> S_co:
        """As `BlobStore.get`."""


def fetch_ahead(
    store: Getter[S_co],
    keys: Iterable[str],
    limit: int,
    *,
    parallel: int = 2,
    ahead: int = 2,
    pool: ThreadPoolExecutor | None = None,
) -> Generator[S_co, None, None]:
    """Yield the objects' bytes in the order of `keys` while up to `ahead` further ones are being fetched.

    At most `ahead` + 1 objects are in memory, besides what the caller keeps. Fetching begins with the first `next`.
    A generator that is closed or dropped starts no further fetch; those under way end by themselves. With a `pool`,
    many streams share its threads; otherwise the stream has `parallel` of its own.

    Raises:
        Missing, Corrupt, TooLarge, StoreError: as `get`, at the place in the order where the object stands.
    """
    keys = iter(keys)
    first = list(islice(keys, 2))
    if len(first) < 2:  # there is nothing to be fetched ahead, so no thread either
        yield from (store.get(key, limit) for key in first)
        return
    threads = pool or ThreadPoolExecutor(parallel, thread_name_prefix="fetch")
    waiting: deque[Future[S_co]] = deque()
    try:
        for key in chain(first, keys):
            waiting.append(threads.submit(store.get, key, limit))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        if pool is None:
            threads.shutdown(wait=False, cancel_futures=True)


def _put_unless_there(store: BlobStore, key: str, load: Callable[[], bytes | memoryview]) -> int | None:
    try:
        if store.has(key):
            return None
    except Forbidden:  # an identity that may put but not look: putting again is harmless
        pass
    return _put(store, key, load)


def _put(store: BlobStore, key: str, load: Callable[[], bytes | memoryview]) -> int:
    # A frame of its own: the caller's is kept by the error that told of the missing object until garbage is collected.
    data = load()
    store.put(key, data)
    return len(data)
