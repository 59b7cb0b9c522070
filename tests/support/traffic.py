"""Numbered messages that flow through a broker, so that a loss or a false confirm is found."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass

from broker.transport.base import Transport
from protocol.topology import (
    DEAD,
    DEAD_LETTERS,
    Binding,
    Exchange,
    Queue,
    Topology,
)
from tests.support.collect import Collector
from tests.support.waiting import DEADLINE

HEARTBEAT = 1  # seconds; pika gives a silent broker five more


FLOW = Topology(
    exchanges=(Exchange(name="x", type="fanout"), Exchange(name=DEAD, type="fanout")),
    queues=(
        Queue(name="in.q", max_length=50_000, overflow="reject-publish", dead_letter=True, delivery_limit=1000),
        Queue(name=DEAD_LETTERS, max_length=1000, overflow="reject-publish"),
    ),
    bindings=(Binding(exchange="x", queue="in.q"), Binding(exchange=DEAD, queue=DEAD_LETTERS)),
)


@dataclass
class Traffic:
    """Publishes 0, 1, 2, … without pause and collects what arrives."""

    transport: Transport

    def __post_init__(self) -> None:
        self.got = Collector()
        self.futures: list[Future[None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def start(self) -> Traffic:
        self.transport.consume("in.q", self.got, prefetch=32)
        self._thread.start()
        return self

    def _publish(self) -> None:
        while not self._stop.wait(0.003):
            self.futures.append(self.transport.publish("x", "", b"%d" % len(self.futures)))

    def wait_for_flow(self, more: int = 30) -> None:
        """Wait until messages published from now on have arrived."""
        target = len(self.futures) + more
        self.got.wait_until(lambda bodies: b"%d" % target in bodies[-2000:], f"message {target}", DEADLINE)

    def finish(self) -> int:
        """Stop, and prove that every message was confirmed and arrived; returns the number of duplicates."""
        self.stop()
        _, pending = wait(self.futures, DEADLINE)
        assert not pending, f"{len(pending)} of {len(self.futures)} publishes never ended"
        assert [future.exception() for future in self.futures] == [None] * len(self.futures)
        expected = {b"%d" % i for i in range(len(self.futures))}
        self.got.wait_until(lambda bodies: len(bodies) >= len(expected), "every message", DEADLINE)
        self.got.wait_until(lambda bodies: set(bodies) == expected, "every message", DEADLINE)
        return len(self.got.bodies) - len(expected)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Brisk(random.Random):
    """Draws no wait over a second, so that the tests wait for the broker and not for the back-off."""

    def uniform(self, a: float, b: float) -> float:
        return super().uniform(a, min(b, 1.0))
