"""When a worker reads the head: now and then, at every connection, and soon after what needs an explanation."""

from __future__ import annotations

import random
from collections.abc import Iterable

from worker.domain.effects import KeepLast
from worker.domain.state import ENDED, RunRow
from worker.rules.decisions import Decisions, pause

HEAD_EVERY = 15 * 60.0
"""Seconds between pulls of the head."""
HEAD_AT_MOST_EVERY = 10.0
"""Seconds between pulls that doubtful messages may cause."""


class HeadPolling:
    """The time of the next pull."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._failures = 0
        self._pulled_at = float("-inf")
        self.at = float("-inf")
        self.doubted: set[str] = set()
        """Runs that have ended, as receipts say, and of which no head has told since whether they go on."""

    def wanted(self, now: float, *, connected: bool) -> None:
        """Pull at once if the connection is new, and soon if something came that cannot be explained."""
        self.at = now if connected else min(self.at, max(now, self._pulled_at + HEAD_AT_MOST_EVERY))

    def doubt(self, run: str, now: float) -> None:
        """A receipt says that a run has ended: a head has to say whether it goes on."""
        self.doubted.add(run)
        self.wanted(now, connected=False)

    def told(self) -> None:
        """A head that is not older than the newest one was read."""
        self.doubted.clear()

    def failed(self, now: float) -> None:
        """The head, or what it names, could not be read or was refused."""
        self._failures += 1
        self.at = min(self.at, now + pause(self._dice, self._failures, longest=60.0))

    def worked(self) -> None:
        """What was pulled is all there."""
        self._failures = 0

    def due(self, now: float) -> bool:
        """Whether to pull now; the next time is set then."""
        if now < self.at:
            return False
        self.at, self._pulled_at = now + HEAD_EVERY, now
        return True


class LastVersions:
    """Which last versions have been asked for, each once in a process's life and again after a failure."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._asked: dict[str, bytes] = {}
        self._failures = 0
        self.at = float("inf")
        """When to ask again."""

    def failed(self, run: str, now: float) -> None:
        """A version could not be fetched."""
        self._asked.pop(run, None)
        self._failures += 1
        self.at = now + pause(self._dice, self._failures, longest=300.0)

    def tick(self, runs: Iterable[RunRow], now: float, decided: Decisions) -> None:
        """Ask for what is new."""
        if now < self.at < float("inf"):
            return  # infinite: nothing failed since the last time
        self.at = float("inf")
        for run in runs:
            if run.state in ENDED and run.version >= 0 and self._asked.get(run.run) != run.digest:
                self._asked[run.run] = run.digest
                decided.effects.append(KeepLast(run=run.run))
