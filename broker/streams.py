"""Blobs through a store: records in, chunks out, and back, with transfers running beside the cipher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from broker.blobs import BlobStore
from broker.chunks import Getter, fetch_ahead
from protocol import limits
from protocol.blob import Manifest, Slices, split_chunks
from protocol.envelope import ContentKey

KeyOf = Callable[[str], str]
"""From a chunk's SHA-256 in hex to its object key."""


def read_blob(
    store: Getter[Slices],
    manifest: Manifest,
    key: ContentKey,
    key_of: KeyOf,
    *,
    pool: ThreadPoolExecutor | None = None,
    ahead: int = 1,
    digest: bool = True,
) -> Iterator[bytes]:
    """The plaintext records of a blob, in order; at most `ahead` + 1 chunks are in memory.

    `digest=False` leaves out the hash over the whole plaintext, for blobs that passed it at admission; every record
    is authenticated all the same.

    Raises:
        Tampered: the bytes are not what was signed.
        StoreError: a chunk is missing, corrupt or the store is away.
    """
    keys = (key_of(name.hex()) for name in manifest.chunks)
    chunks = fetch_ahead(store, keys, limits.CHUNK, ahead=ahead, pool=pool)
    # The store has compared each chunk with the hash in its name.
    return key.reader(manifest, digest=digest).read(split_chunks(manifest, chunks, verify=False))


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
