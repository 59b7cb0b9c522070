"""Putting chunks into the store and sealing updates again, on a thread of their own; every answer is an event."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from broker.blobs import BlobStore
from broker.chunks import upload
from broker.crash import crash_point
from protocol.errors import DiskFull, FledgeError, StateError, WireError
from protocol.topology import update_chunk
from worker.announcements import Reader
from worker.events import Resealed, Sealed, SendingFailed, UpdateRow, Uploaded
from worker.sealing import reseal
from worker.spool import Spool


class Uploader:
    """Answers `Upload` and `Reseal`."""

    def __init__(
        self,
        store: BlobStore,
        spool: Spool,
        site: str,
        reader: Callable[[], Reader],
        tell: Callable[[Any], None],
        log: Any,
    ) -> None:
        """`reader` gives the one of the registry in force; `log` is a bound logger."""
        self._store = store
        self._spool = spool
        self._site = site
        self._reader = reader
        self._tell = tell
        self._log = log

    def upload(self, row: UpdateRow, *, anew: bool) -> None:
        """Put the update's chunks; those that are there are skipped, unless every one is wanted `anew`."""
        self._log.info("upload.started", update=row.id.hex()[:8], chunks=len(row.chunks), anew=anew)
        self._guard(row, partial(self._upload, row, anew))

    def reseal(self, row: UpdateRow, sealed: Sealed, epoch: int, sequence: int) -> None:
        """Encrypt and sign the update again under another key epoch."""
        self._guard(row, partial(self._reseal, row, sealed, epoch, sequence))

    def _upload(self, row: UpdateRow, anew: bool) -> Uploaded:
        first, rest = row.chunks[:1], row.chunks[1:]
        for name in row.chunks if anew else first:
            self._store.put(self._key(name), self._spool.get(name))
            crash_point("worker.uploading")
        if rest and not anew:
            chunks = [(self._key(name), partial(self._spool.get, name)) for name in rest]
            upload(self._store, chunks)
        self._log.info("upload.done", update=row.id.hex()[:8])
        crash_point("worker.uploaded")
        return Uploaded(row=row.row)

    def _key(self, name: bytes) -> str:
        return update_chunk(self._site, name.hex())

    def _reseal(self, row: UpdateRow, sealed: Sealed, epoch: int, sequence: int) -> Resealed:
        reader = self._reader()
        batch = self._spool.batch()
        try:
            again = reseal(
                row,
                sealed,
                epoch=epoch,
                sequence=sequence,
                identity=reader.identity,
                federation=reader.federation,
                recipients=reader.aggregators,
                load=self._spool.get,
                emit=batch.put,
            )
            batch.sync()
        except BaseException:
            batch.discard()
            raise
        self._log.info("update.resealed", update=row.id.hex()[:8], epoch=epoch, sequence=sequence)
        return Resealed(row=row.row, epoch=epoch, sequence=sequence, sealed=again)

    def _guard(self, row: UpdateRow, work: Callable[[], Any]) -> None:
        try:
            answer = work()
        except FledgeError as error:
            # Chunks that cannot be read or opened do not come back; everything else passes.
            lost = isinstance(error, StateError | WireError) and not isinstance(error, DiskFull)
            # Lost chunks matter only while the update has no receipt, which the rules know.
            self._log.warning("upload.failed", update=row.id.hex()[:8], lost=lost, error=str(error))
            answer = SendingFailed(row=row.row, lost=lost)
        self._tell(answer)
