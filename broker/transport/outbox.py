"""The durable outbox: rows written with the state they announce, published afterwards until the broker confirms."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table

from broker.runtime.database import required
from broker.transport.base import Transport
from protocol.errors import FledgeError, TooLarge

log = structlog.get_logger(__name__)


def outbox_table(metadata: MetaData) -> Table:
    """The outbox of one database; a row is deleted when its publish is confirmed."""
    return Table(
        "outbox",
        metadata,
        Column("id", Integer, primary_key=True),
        *required(String, "exchange", "key"),
        *required(LargeBinary, "body"),
        sqlite_autoincrement=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A message on its way: already sealed, so every retry sends the same bytes."""

    id: int
    exchange: str
    key: str
    body: bytes


class Relay:
    """Publishes outbox rows with confirms, many in flight; publishing a row twice is harmless."""

    def __init__(self, transport: Transport, sent: Callable[[int], None], *, dice: random.Random | None = None) -> None:
        """`sent` is called with a row's id, from the transport's thread, once the broker has confirmed it."""
        self._transport = transport
        self._sent = sent
        self._dice = dice or random.Random()
        self._flying: set[int] = set()
        self._due: list[tuple[float, int, int, OutboxRow]] = []  # a heap: when, row id, attempt, row
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def send(self, rows: Iterable[OutboxRow]) -> None:
        """Start publishing; rows already in flight are left alone."""
        for row in rows:
            with self._changed:
                if self._closed or row.id in self._flying:
                    continue
                self._flying.add(row.id)
            self._publish(row, attempt=0)

    def _publish(self, row: OutboxRow, attempt: int) -> None:
        try:
            future = self._transport.publish(row.exchange, row.key, row.body)
        except FledgeError as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._done(row, attempt, done))

    def _done(self, row: OutboxRow, attempt: int, future: Future[None]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None or isinstance(error, TooLarge):
            if error is not None:
                log.error("outbox.dropped", exchange=row.exchange, key=row.key, error=str(error))
            with self._changed:
                self._flying.discard(row.id)
            self._sent(row.id)
            return
        wait = self._dice.uniform(0.05, min(30.0, 0.2 * 2 ** min(attempt, 10)))
        log.warning("outbox.retry", exchange=row.exchange, key=row.key, error=str(error), seconds=round(wait, 2))
        self._later(row, attempt + 1, time.monotonic() + wait)

    def _later(self, row: OutboxRow, attempt: int, due: float) -> None:
        with self._changed:
            if self._closed:
                return
            heapq.heappush(self._due, (due, row.id, attempt, row))
            if self._thread is None:  # one for all rows, and none until something has failed
                self._thread = threading.Thread(target=self._retry, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _retry(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (wait := self._until_due()) != 0:
                    self._changed.wait(wait)
                if self._closed:
                    return
                _, _, attempt, row = heapq.heappop(self._due)
            self._publish(row, attempt)

    def _until_due(self) -> float | None:
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def close(self) -> None:
        """Start nothing more; unconfirmed rows stay in the database for the next start."""
        with self._changed:
            self._closed = True
            self._changed.notify()
