"""When a worker reads the head: now and then, at every connection, and soon after what needs an explanation."""

from __future__ import annotations

import random

from worker.sending import pause

HEAD_EVERY = 15 * 60.0
"""Seconds between pulls of the head."""
HEAD_AT_MOST_EVERY = 10.0
"""Seconds between pulls that doubtful messages may cause."""


class Pulls:
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
