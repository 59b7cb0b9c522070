"""Numbering heads: whenever something changes that heads tell, a new one is due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aggregator.domain import effects, writes
from aggregator.domain.state import MOST_GOING_ON, RunPlace
from aggregator.rules.decisions import Decisions
from protocol.messages import GOING_ON, RunState

HEAD_EVERY = 6 * 3600.0
_MOST = MOST_GOING_ON
"""Runs that a head tells; of those that have ended the oldest are left out first."""


class ToldRun(Protocol):
    """What a head tells of a run."""

    @property
    def state(self) -> RunState:
        """Whether it goes on."""

    @property
    def place(self) -> RunPlace:
        """Where it stands."""

    def elapsed(self, now: float) -> float:
        """Seconds of training so far."""


class HeadNumbers:
    """The newest head's number."""

    def __init__(self, number: int, runs: Mapping[str, ToldRun], out: Decisions, now: float) -> None:
        """`runs` is read at each call; a run that was never started stands in no head."""
        self._number = number
        self._runs = runs
        self._out = out
        self.due = now + HEAD_EVERY

    def renew(self, now: float, *, announce: bool = False) -> None:
        """Make another head; `announce` tells all sites of it."""
        self._number += 1
        self.due = now + HEAD_EVERY
        elapsed = {name: run.elapsed(now) for name, run in self._runs.items() if run.state == RunState.RUNNING}
        self._out.write(writes.SetHead(number=self._number, elapsed=elapsed))
        self._out.do(effects.PutHead(number=self._number, runs=self._places()))
        if announce:
            self._out.do(effects.AnnounceHead(number=self._number))

    def _places(self) -> tuple[RunPlace, ...]:
        places = [run.place for run in self._runs.values() if run.state != RunState.CREATED]
        told = sorted(places, key=lambda place: place.state in GOING_ON)[-_MOST:]
        return tuple(place for place in places if place in told)
