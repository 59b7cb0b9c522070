"""The rules about signs of life: what is new is shown at once, and told to the aggregator now and then."""

from __future__ import annotations

from typing import NamedTuple

from worker.domain.effects import ReportStatus
from worker.rules.decisions import Decisions

REPORT_AT_MOST_EVERY = 1.0
"""Seconds between two reports to the aggregator."""


class Shown(NamedTuple):
    """What a worker does, and why the last training failed or what is lacking."""

    state: str
    run: str
    version: int
    code: str = "-"
    case: str = "-"


class Reports:
    """What was reported last, and when to report again."""

    def __init__(self, heartbeat: float) -> None:
        """`heartbeat`: seconds between signs of life if nothing changes."""
        self._heartbeat = heartbeat
        self._reported = Shown("", "", -1)
        self._reported_at = float("-inf")
        self.at = float("-inf")

    def tick(self, shown: Shown, now: float, decided: Decisions, *, member: bool) -> None:
        """Report what is new or due; only a member tells the aggregator."""
        changed = shown != self._reported
        if changed:
            self._reported = shown
            self.at = min(self.at, max(now, self._reported_at + REPORT_AT_MOST_EVERY))
        if due := now >= self.at:
            self._reported_at, self.at = now, now + self._heartbeat
        if due or changed:
            decided.effects.append(ReportStatus(**shown._asdict(), publish=due and member))
