"""The transport contract: what every way of moving messages must keep, and `open_transport` by URL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from protocol.errors import ConfigError
from protocol.topology import Topology

Handler = Callable[["Delivery"], None]


class Settlement(Protocol):
    """How a delivery is settled; callable from any thread, once; a settlement of a lost connection is dropped."""

    def __call__(self, verb: str) -> None: ...


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
        """Give it back; it comes again, at most the queue's delivery limit times, then it is dead-lettered."""
        self.settle("retry")

    def dead_letter(self) -> None:
        """Set it aside for good: it goes to the dead letters if the queue has them."""
        self.settle("dead_letter")


class Subscription(Protocol):
    """A running consumer."""

    def cancel(self) -> None:
        """Stop deliveries; returns when no handler is running any more. Unsettled deliveries go back."""
        ...


class Transport(Protocol):
    """Moves messages at least once. All methods may be called from any thread."""

    def declare(self, topology: Topology) -> None:
        """Make what is missing and leave what exists; blocks until done.

        Raises:
            TransportError: the broker cannot be reached within the connect deadline or refuses.
        """
        ...

    def publish(self, exchange: str, key: str, body: bytes) -> Future[None]:
        """Hand over a persistent message; the future resolves only on the broker's confirm, in any order.

        The future fails with `Unroutable`, `NotAllowed` or `QueueFull`; while the broker is away it simply waits.
        A message may arrive twice when a connection breaks before its confirm. Over 256 KiB: `TooLarge` at once.
        """
        ...

    def consume(self, queue: str, handler: Handler, *, prefetch: int = 8) -> Subscription:
        """Call `handler` for each delivery, one at a time per subscription, from the transport's own thread.

        Survives broker restarts, channel closure and a queue that was deleted and comes back. The handler must be
        quick and settle (or pass on) every delivery; an exception in it is logged and the delivery given back.
        """
        ...

    def depth(self, queue: str) -> int:
        """How many messages are ready in a queue.

        Raises:
            TransportError: the queue does not exist or the broker is away.
        """
        ...

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after every (re)connection of the consuming side: the time to pull the head."""
        ...

    def close(self) -> None:
        """Stop consuming, wait briefly for outstanding confirms, disconnect. Idempotent."""
        ...


def open_transport(url: str, *, name: str = "fledge") -> Transport:
    """Open the transport a URL names: `memory:` (this process only; `memory:NAME` shares one), `amqp(s)://…`.

    `name` is shown on the broker's list of connections.

    Raises:
        ConfigError: the scheme is unknown.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        from broker.memory import MemoryTransport

        return MemoryTransport.named(url)
    if scheme in ("amqp", "amqps"):
        from broker.rabbit import RabbitTransport

        return RabbitTransport(url, name=name)
    raise ConfigError(f"broker URL {url.split('@')[-1]!r}: unknown scheme; known: memory:, amqp://, amqps://")
