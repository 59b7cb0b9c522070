"""The aggregator's sign of health: every minute it asks the broker for its inbox, and notes that it was answered."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from broker.health import HEALTH, Health
from broker.transport import Transport
from protocol import topology
from protocol.errors import FledgeError

log = structlog.get_logger("aggregator")
EVERY_S = 60.0


class Pulse:
    """Beats on a thread of its own until it is stopped."""

    def __init__(self, transport: Transport, state: Path) -> None:
        self._transport = transport
        self.health = Health(state / HEALTH)
        """What is noted for `fledge healthcheck`."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aggregator pulse", daemon=True)

    def start(self) -> None:
        """Take away what an earlier process noted, and begin."""
        self.health.begin()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._transport.depth(topology.inbox_queue(topology.AGGREGATOR))
                self.health.accepted()
            except FledgeError as error:
                log.warning("broker.silent", error=str(error))
            self._stopped.wait(EVERY_S)
