"""Which runs have ended with a version that this site has still to measure: nobody trains from a run's last one.

Once for each, at the same hours and with the same leave as a training. A site that took no part says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.messages import Head, RunState
from worker.domain.state import RunRow
from worker.rules.gate import Gate

_AGAIN = ("store", "disk_full", "aborted")
"""Failures after which another attempt may go well."""


class LastEvaluations:
    """The last versions, as the newest head tells them; of an aborted run nothing is measured."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def heard(self, head: Head) -> None:
        """A head that is not older than the newest one was read."""
        self._last = {run.run: run.version for run in head.runs if run.state == RunState.STOPPED}

    def due(self, runs: Iterable[RunRow], gate: Gate) -> RunRow | None:
        """The run whose last version is to be measured next."""
        return next((run for run in runs if self._wanted(run) and gate.lets(run)), None)

    def _wanted(self, run: RunRow) -> bool:
        ended = run.state == RunState.STOPPED and self._last.get(run.run) == run.version
        return ended and run.evaluate and not run.evaluated

    def allows(self, run: RunRow) -> bool:
        """Whether a measurement under way may go on."""
        return run.state != RunState.ABORTED

    def in_vain(self, code: str) -> bool:
        """Whether another attempt would fail as well."""
        return code not in _AGAIN
