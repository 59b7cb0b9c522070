"""Putting the head: on a thread of its own, the newest wins, and a store that is away is tried again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import structlog

from broker.blobs.base import BlobStore
from protocol.errors import FledgeError
from protocol.topology import record_key

log = structlog.get_logger("aggregator")
_AGAIN = 5.0  # seconds between tries; the store's own deadline comes on top
PACE = 0.25
"""Seconds between heads that are put without being announced: sites hear of versions by the versions' own records, and
pull a head only where they may have missed some."""


class HeadWriter:
    """Keeps the store's head at the newest one given."""

    def __init__(self, store: BlobStore, federation: str, announce: Callable[[bytes], object], registry: bytes) -> None:
        """`announce` publishes a head to all sites, and must not wait; `registry` is the signed record that the first
        head will name, and is put before it.
        """
        self._store = store
        self._federation = federation
        self._publish = announce
        self._first: bytes | None = registry
        self._to_announce = False
        self._changed = threading.Condition()
        self._waiting = False
        self._closed = False
        self.newest = b""
        self._thread = threading.Thread(target=self._run, name="aggregator head", daemon=True)
        self._thread.start()

    def put(self, head: bytes) -> None:
        """Put this head soon; one that is still waiting is skipped."""
        with self._changed:
            self.newest = head
            self._waiting = True
            self._changed.notify()

    def announce(self) -> None:
        """Publish the newest head once it is in the store (or the store is away): never before who hears of it can
        pull it, or a worker would find an older one and take it for a head that goes back.
        """
        with self._changed:
            self._to_announce = True
            self._changed.notify()

    def close(self, *, put: bool) -> None:
        """Stop; with `put` what waits is put first (a fenced aggregator must not cover a newer head)."""
        with self._changed:
            self._closed = True
            self._waiting = self._waiting and put
            self._to_announce = self._to_announce and put
            self._changed.notify()
        self._thread.join(_AGAIN)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._to_announce or self._closed)
                if not self._waiting and not self._to_announce:
                    return
                head, put, announce = self.newest, self._waiting, self._to_announce
                self._waiting = self._to_announce = False
            written = self._put(head) if put else True
            if announce:
                self._publish(head)
            with self._changed:
                if written:
                    self._changed.wait_for(lambda: self._to_announce or self._closed, PACE)
                else:
                    self._waiting = not self._closed
                    self._changed.wait_for(lambda: self._closed, _AGAIN)

    def _put(self, head: bytes) -> bool:
        try:
            if self._first is not None:
                self._store.put(record_key(hashlib.sha256(self._first).hexdigest()), self._first)
                self._first = None
            self._store.put_head(self._federation, head)
        except FledgeError as error:
            log.warning("head.not_written", error=str(error), seconds=_AGAIN)
            return False
        return True
