"""The rule about runs that have ended: the site fetches the last version, to use it by itself.

Part of the worker's rules: nothing here does I/O. While a run goes on, its newest version is fetched to be trained
from; nobody trains from the last one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from worker.deployments import ENDED
from worker.events import RunRow
from worker.sending import Decided, pause


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLast:
    """Fetch the last version of a run that has ended, if the site took part and does not hold it; else `NotKept`."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotKept:
    """The last version of a run cannot be fetched now."""

    run: str


class Keeping:
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

    def tick(self, runs: Iterable[RunRow], now: float, decided: Decided) -> None:
        """Ask for what is new."""
        if now < self.at < float("inf"):
            return  # infinite: nothing failed since the last time
        self.at = float("inf")
        for run in runs:
            if run.state in ENDED and run.version >= 0 and self._asked.get(run.run) != run.digest:
                self._asked[run.run] = run.digest
                decided.effects.append(KeepLast(run=run.run))
