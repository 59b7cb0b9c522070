"""Reading heads and records from the store, on a thread of their own; every answer is an event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from broker.blobs.base import BlobStore
from protocol import limits
from protocol.errors import FledgeError, WireError
from protocol.topology import record_key
from worker.domain.effects import Fetch, FetchRegistry, FetchVersion, PullHead
from worker.domain.events import Event, FetchFailed, SiteLeftOut
from worker.intake import NotForUs, read_registry
from worker.pipeline.context import SiteContext


class Fetcher:
    """Answers `PullHead`, `FetchRegistry` and `FetchVersion`."""

    def __init__(self, store: BlobStore, root: bytes, clock: Callable[[], float], context: SiteContext) -> None:
        """`root` is the federation root's verify key, `clock` the wall clock."""
        self._store = store
        self._root = root
        self._clock = clock
        self._reader = context.reader
        self._tell = context.tell
        self._log = context.log

    def fetch(self, effect: Fetch) -> None:
        """Read what `effect` names; tells what was read, or `FetchFailed`."""
        event: Event | None
        try:
            event = self._read(effect)
        except WireError as error:
            self._log.warning("record.refused", what=type(effect).__name__, reason=error.reason, error=str(error))
            event = FetchFailed()
            if isinstance(error, NotForUs):
                event = SiteLeftOut(run=error.run, version=error.version)
        except FledgeError as error:
            self._log.warning("record.not_read", what=type(effect).__name__, error=str(error))
            event = FetchFailed()
        if event is not None:
            self._tell(event)

    def _read(self, effect: Fetch) -> Event | None:
        reader = self._reader()
        match effect:
            case PullHead(known=known):
                raw = self._store.get_head(reader.federation, limits.STORED_RECORD)
                if raw is None:
                    self._log.info("head.not_there", federation=reader.federation)
                    return None
                return replace(reader.head(raw, self._clock()), known=known)
            case FetchRegistry():
                return read_registry(self._record(effect.digest), self._root, reader.federation)
            case FetchVersion():
                return reader.version(self._record(effect.digest), effect.run, effect.version)
            case _:
                assert_never(effect)

    def _record(self, digest: bytes) -> bytes:
        return self._store.get(record_key(digest.hex()), limits.STORED_RECORD)
