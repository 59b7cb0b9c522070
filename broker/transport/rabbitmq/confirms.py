"""What was handed over for publishing and is not settled yet; the bookkeeping behind pipelined confirms. No I/O."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from protocol.errors import QueueFull, TransportError, Unroutable


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message on its way to an exchange and the future that tells its publisher."""

    exchange: str
    key: str
    body: bytes
    future: Future[None]


class Pending:
    """The messages of one confirmed channel: first waiting to be sent, then in flight under their delivery tag.

    Not thread-safe; it belongs to the thread of its connection. Futures are resolved outside of any lock.
    """

    def __init__(self) -> None:
        self.waiting: deque[Message] = deque()
        self.in_flight: dict[int, Message] = {}
        self._returned: set[int] = set()
        self._last_tag = 0

    def send_next(self) -> tuple[int, Message]:
        """Take the oldest waiting message into flight and return it with the tag the broker will count for it."""
        message = self.waiting.popleft()
        self._last_tag += 1
        self.in_flight[self._last_tag] = message
        return self._last_tag, message

    def returned(self, tag: int) -> None:
        """Note that the broker found no queue for a message; its confirm is still to come."""
        self._returned.add(tag)

    def confirmed(self, tag: int, *, multiple: bool, stored: bool) -> None:
        """Resolve the message of a confirm, or with `multiple` all up to its tag; `stored` is false for a nack."""
        tags = [tag]
        if multiple:
            # Tag 0 means everything so far.
            tags = [sent for sent in self.in_flight if sent <= tag or tag == 0]
        for sent in tags:
            message = self.in_flight.pop(sent, None)
            if message is None:
                continue
            if sent in self._returned:
                self._returned.discard(sent)
                error = f"no queue is bound to exchange {message.exchange} for key {message.key!r}"
                message.future.set_exception(Unroutable(f"{error}; is the topology declared?"))
            elif not stored:
                error = f"a queue behind exchange {message.exchange} is full"
                message.future.set_exception(QueueFull(f"{error}; its consumer has to catch up first"))
            else:
                message.future.set_result(None)

    def connection_lost(self) -> None:
        """Put what was in flight back in front, in order: it is not known whether it arrived, so it is sent again."""
        self.waiting.extendleft(reversed(self.in_flight.values()))
        self._start_over()

    def refused(self, error: TransportError) -> None:
        """Fail what was in flight: the broker closed the channel over it."""
        lost = list(self.in_flight.values())
        self._start_over()
        for message in lost:
            message.future.set_exception(error)

    def close(self, error: TransportError) -> None:
        """Fail everything."""
        self.connection_lost()
        while self.waiting:
            self.waiting.popleft().future.set_exception(error)

    def _start_over(self) -> None:
        self.in_flight.clear()
        self._returned.clear()
        self._last_tag = 0
