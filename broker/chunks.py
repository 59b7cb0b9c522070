"""Moving many chunks at once: uploads that skip what is there, and fetching ahead of a reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol, TypeVar

from broker.blobs import BlobStore
from protocol.blob import Slices
from protocol.errors import Forbidden

Item = tuple[str, Callable[[], bytes | memoryview]]
"""An object's key and how to get its bytes; it is called only if they are needed, from a thread of the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What an upload came to."""

    sent: int
    """Objects put."""
    skipped: int
    """Objects that were there already."""
    sent_bytes: int


def upload(store: BlobStore, items: Iterable[Item], *, parallel: int = 4) -> Uploaded:
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
    return Uploaded(sent=len(sent), skipped=len(sizes) - len(sent), sent_bytes=sum(sent))


S_co = TypeVar("S_co", bound=Slices, covariant=True)


class Getter(Protocol[S_co]):
    """Whatever gets an object's bytes by key."""

    def get(self, key: str, limit: int) -> S_co:
        """As `BlobStore.get`."""
        ...


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
