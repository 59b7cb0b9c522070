"""The transport contract: what every way of moving messages must keep."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol import limits
from protocol.errors import TooLarge
from protocol.topology import Topology

Handler = Callable[["Delivery"], None]
"""Takes a delivery, and settles it or passes it on."""
Verb = Literal["ack", "retry", "dead_letter"]


class Settlement(Protocol):
    """How a delivery is settled; callable from any thread. The first call counts.

    Further calls, and calls after the subscription was cancelled or its connection lost, are dropped.
    """

    def __call__(self, verb: Verb) -> None: ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message in hand. It stays the broker's until it is settled; unsettled ones come again, `redelivered`."""

    queue: str
    body: bytes
    redelivered: bool
    settle: Settlement

    def ack(self) -> None:
        """Done: the broker forgets the message."""
        self.settle("ack")

    def retry(self) -> None:
        """Give it back; it comes again, at most the queue's delivery limit times, then it is dead-lettered.

        No timer: it comes again at once.
        """
        self.settle("retry")

    def dead_letter(self) -> None:
        """Set it aside for good: it goes to the dead letters if the queue has them, otherwise it is dropped."""
        self.settle("dead_letter")


class Unacked(Protocol):
    """A delivery as rules see it: they pass it on, the shell acks it once it may be forgotten."""

    def ack(self) -> None:
        """Let the broker forget it."""


class Subscription(Protocol):
    """A running consumer."""

    def cancel(self) -> None:
        """Stop deliveries; returns when no handler is running any more. Unsettled deliveries go back.

        Idempotent. Called from within the handler it does not wait for that handler.
        """


class Transport(Protocol):
    """Moves messages at least once. All methods may be called from any thread."""

    def declare(self, topology: Topology) -> None:
        """Make what is missing and leave what exists; blocks until done.

        Raises:
            TransportError: the broker cannot be reached within the connect deadline or refuses.
        """

    def publish(self, exchange: str, key: str, body: bytes) -> Future[None]:
        """Hand over a persistent message; the future resolves only on the broker's confirm, in any order.

        The future fails with `Unroutable`, `NotAllowed` or `QueueFull` (or plain `TransportError` for any other refusal
        and when the transport is closed first); while the broker is away it simply waits. It cannot be cancelled.
        Its callbacks may run on the connection's thread: they must be quick and never wait.

        A message may arrive twice when a connection breaks before its confirm. When one of a fanout's queues refuses,
        the others have the message and the future fails with `QueueFull`. Messages of one thread to one exchange keep
        their order, except that a refused one does not hold up those behind it.

        Raises:
            TooLarge: the body is over `limits.MESSAGE`; nothing was sent.
        """

    def consume(self, queue: str, handler: Handler, *, prefetch: int = 8) -> Subscription:
        """Call `handler` for each delivery, one at a time per subscription, from the transport's own thread.

        Survives broker restarts, channel closure and a queue that was deleted and comes back, or is not there yet. The
        handler must be quick and settle (or pass on) every delivery; an exception in it is logged and the delivery
        given back. At most `prefetch` deliveries are unsettled at a time. A queue with a single active consumer serves
        the subscription that came first; the next one takes over when it ends. What is given back, for whatever
        reason, may come after messages that are newer.

        Raises:
            TransportError: the transport is closed.
        """

    def depth(self, queue: str) -> int:
        """How many messages are ready in a queue.

        Raises:
            TransportError: the queue does not exist or the broker is away.
        """

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after every (re)connection of the consuming side, and now if it stands: the time to pull the head.

        Callbacks run one after another on a thread of their own and may take their time.
        """

    def on_refused(self, callback: Callable[[], None]) -> None:
        """Call back whenever the broker does not let the consuming side in, on the same thread as `on_connected`."""

    def close(self) -> None:
        """Stop consuming, wait briefly for outstanding confirms, disconnect. Idempotent."""


def check_size(body: bytes) -> None:
    """Refuse a message body over `limits.MESSAGE`."""
    if len(body) > limits.MESSAGE:
        raise TooLarge(f"message of {len(body)} bytes is over {limits.MESSAGE}; tensors belong into the object store")
