"""Putting chunks into the store and sealing updates again, on a thread of their own; every answer is an event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from broker.blobs.base import BlobStore
from broker.blobs.chunks import SupportsFiles
from broker.blobs.transfer import upload
from broker.runtime.crash_points import crash_point
from broker.runtime.threads import InlineExecutor
from protocol.errors import DiskFull, FledgeError, StateError, StoreError, WireError
from protocol.topology import update_chunk
from worker.domain.events import Event, Resealed, SendingFailed, Uploaded
from worker.domain.state import Sealed, UpdateRow
from worker.pipeline.context import SiteContext
from worker.pipeline.reseal import reseal
from worker.storage.spool import Spool


class Throttle:
    """Lets as many bytes pass a second as the site's policy says, averaged over a chunk.

    A thread that has sent more than was due waits *before* taking the next chunk into its hands, without lock or data.
    """

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """None lets everything pass; `wait` sleeps for some seconds, by default until `close`."""
        self._rate = bytes_per_second
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._due = float("-inf")
        """When everything sent so far would have been sent at the rate allowed."""

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._rate is not None

    def pause(self) -> None:
        """Wait until something may be sent.

        Raises:
            StoreError: the worker stops; what waits is sent at the next start.
        """
        while (rest := self._due - self._clock()) > 0 and not self._closed.is_set():
            self._wait(rest)
        if self._closed.is_set():
            raise StoreError("the worker stops; the update is sent at its next start")

    def spend(self, size: int) -> None:
        """Count what is being sent now."""
        if self._rate is not None:
            self._due = max(self._due, self._clock()) + size / self._rate

    def close(self) -> None:
        """Let no upload wait any longer."""
        self._closed.set()


class Uploader:
    """Answers `Upload` and `Reseal`."""

    def __init__(self, store: BlobStore, spool: Spool, context: SiteContext, throttle: Throttle | None = None) -> None:
        self._store = store
        self._spool = spool
        self._site = context.site
        self._reader = context.reader
        self._tell = context.tell
        self._log = context.log
        self._throttle = throttle or Throttle(None)

    def close(self) -> None:
        """End an upload that waits for its turn."""
        self._throttle.close()

    def upload(self, row: UpdateRow, *, anew: bool) -> None:
        """Put the update's chunks; those that are there are skipped, unless every one is wanted `anew`."""
        self._log.info("upload.started", update=row.id.hex()[:8], chunks=len(row.chunks), anew=anew)
        self._guard(row, partial(self._upload, row, anew))

    def reseal(self, row: UpdateRow, sealed: Sealed, epoch: int, sequence: int) -> None:
        """Encrypt and sign the update again under another key epoch."""
        self._guard(row, partial(self._reseal, row, sealed, epoch, sequence))

    def _upload(self, row: UpdateRow, anew: bool) -> Uploaded:
        first, rest = row.chunks[:1], row.chunks[1:]
        if not anew and self._linked(row.chunks):
            first, rest = (), ()
        for name in row.chunks if anew else first:
            with self._take(name) as chunk:
                self._store.put(self._key(name), chunk)
            crash_point("worker.uploading")
        if rest and not anew:
            chunks = [(self._key(name), partial(self._take, name)) for name in rest]
            upload(self._store, chunks, parallel=1 if self._throttle.limited else 4)
        self._log.info("upload.done", update=row.id.hex()[:8])
        crash_point("worker.uploaded")
        return Uploaded(row=row.row)

    def _linked(self, names: Sequence[bytes]) -> bool:
        """Let the store have the spool's own files, if it is a directory here; what they hold the hub hashes anyway."""
        store = self._store
        if not isinstance(store, SupportsFiles) or self._throttle.limited:
            return False
        for name in names:
            if not store.put_file(self._key(name), self._spool.path(name)):
                return False
            crash_point("worker.uploading")
        return True

    @contextmanager
    def _take(self, name: bytes) -> Iterator[memoryview]:
        self._throttle.pause()
        with self._spool.lend(name) as chunk:
            self._throttle.spend(len(chunk))
            yield chunk

    def _key(self, name: bytes) -> str:
        return update_chunk(self._site, name.hex())

    def _reseal(self, row: UpdateRow, sealed: Sealed, epoch: int, sequence: int) -> Resealed:
        with self._spool.batch() as batch:
            sink = batch.chunks(InlineExecutor())
            again = reseal(row, sealed, self._reader(), (epoch, sequence), load=self._spool.open, sink=sink)
            batch.sync()
        self._log.info("update.resealed", update=row.id.hex()[:8], epoch=epoch, sequence=sequence)
        return Resealed(row=row.row, epoch=epoch, sequence=sequence, sealed=again)

    def _guard(self, row: UpdateRow, work: Callable[[], Event]) -> None:
        try:
            answer = work()
        except (FledgeError, MemoryError) as error:
            # Chunks that cannot be read or opened do not come back; everything else passes.
            lost = isinstance(error, StateError | WireError) and not isinstance(error, DiskFull)
            # Lost chunks matter only while the update has no receipt, which the rules know.
            self._log.warning("upload.failed", update=row.id.hex()[:8], lost=lost, error=str(error))
            answer = SendingFailed(row=row.row, lost=lost)
        self._tell(answer)
