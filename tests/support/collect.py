"""A handler that keeps what it is given, and lets a test wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from broker.transport.base import Delivery


class Collector:
    """Keeps every delivery and, unless told otherwise, acks it."""

    def __init__(self, settle: Callable[[Delivery], None] | None = Delivery.ack) -> None:
        self.deliveries: list[Delivery] = []
        self._settle = settle
        self._arrived = threading.Condition()

    def __call__(self, delivery: Delivery) -> None:
        with self._arrived:
            self.deliveries.append(delivery)
            self._arrived.notify_all()
        if self._settle is not None:
            self._settle(delivery)

    @property
    def bodies(self) -> list[bytes]:
        """What arrived, in order, duplicates included."""
        with self._arrived:
            return [delivery.body for delivery in self.deliveries]

    def wait_for(self, count: int, timeout: float = 30.0) -> list[Delivery]:
        """Return the first `count` deliveries once there are as many."""
        self.wait_until(lambda bodies: len(bodies) >= count, f"{count} deliveries", timeout)
        with self._arrived:
            return self.deliveries[:count]

    def wait_until(self, done: Callable[[list[bytes]], bool], what: str, timeout: float = 30.0) -> None:
        """Wait until the bodies that arrived satisfy `done`."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: done([d.body for d in self.deliveries]), timeout):
                raise AssertionError(f"waited {timeout} s for {what}, got {len(self.deliveries)} deliveries")
