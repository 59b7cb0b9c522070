"""The aggregator's sign of health: every minute it asks the broker for its inbox, and notes that it was answered."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from broker.runtime.health import HEALTH, HUB_LONGEST_S, Health, last_holder
from broker.transport.base import Transport
from protocol import topology
from protocol.errors import FledgeError

log = structlog.get_logger("aggregator")
EVERY_S = 60.0


class HealthWriter:
    """Beats on a thread of its own until it is stopped."""

    def __init__(self, transport: Transport, state: Path) -> None:
        self._transport = transport
        self._path = state / HEALTH
        self.health = Health(self._path, HUB_LONGEST_S)
        """What is noted for `fledge healthcheck`."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aggregator pulse", daemon=True)

    def start(self) -> None:
        """Take away what an earlier process noted, saying so if it has not ended in order, and begin."""
        holder = last_holder(self._path)
        if holder is not None:
            todo = "nothing, if it was killed; one that still runs ends at its next commit, with exit code 3"
            log.warning("lease.taken_over", pid=holder.pid, runs=holder.runs, todo=todo)
        self.health.begin()
        self._thread.start()

    def stop(self, *, fenced: bool) -> None:
        """Beat no more; a fenced aggregator leaves the note to its successor."""
        self._stopped.set()
        if not fenced:
            self.health.ended()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._transport.depth(topology.inbox_queue(topology.AGGREGATOR))
                self.health.accepted()
            except FledgeError as error:
                log.warning("broker.silent", error=str(error))
            self._stopped.wait(EVERY_S)
