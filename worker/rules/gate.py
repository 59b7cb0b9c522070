"""Whether a training may begin at this site: drains, what a person here said to the run, what operators deployed and
left (`deployments.py`), and the hours of the day.

Part of the worker's rules: nothing here does I/O. The time of day is asked for when it matters and comes as an event;
it counts for that one turn, so a clock that is set, or a machine that slept, does not mislead for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from worker.domain.effects import AbortTraining, ForgetAnswer, LookAtClock, Train
from worker.domain.events import ClockSeen, Drain, RunAnswered, RunCommanded, SaidAtSite
from worker.domain.state import RunRow, Snapshot
from worker.domain.writes import NoteAnswer, NoteDrained
from worker.policy import SitePolicy
from worker.rules.decisions import Decisions
from worker.rules.deployments import Deployments, outlook

LOOK_AGAIN = 3600.0
"""Seconds after which the time of day is asked for again at the latest, since clocks are set and machines sleep."""


class Gate:
    """The site's own say in what the rules begin."""

    def __init__(self, snapshot: Snapshot, policy: SitePolicy, own_trainer: bool = True) -> None:
        """`own_trainer`: whether the site has a trainer for runs that bring no code."""
        self._policy = policy
        self.deployments = Deployments(snapshot, own_trainer)
        self._answers = dict(snapshot.answers)
        self.drained = snapshot.drained
        self.closed = False
        """Whether the last look at the clock said that no training may begin yet."""
        self._open = policy.hours is None
        self._look_at = float("-inf")

    def refused(self, run: str) -> bool:
        """Whether a person here said no."""
        return self._answers.get(run) is False

    def awaits(self, run: str) -> bool:
        """Whether a person here still has to say yes."""
        return self._policy.ask_first and run not in self._answers

    def forbids(self, run: str, bundle: bytes) -> bool:
        """Whether nothing may come of training the run with this code, even if it is under way."""
        return self.refused(run) or bool(self.deployments.lacks(run, bundle))

    def lets(self, run: RunRow) -> bool:
        """Whether the run may be trained at all, if the hour is right."""
        return not (self.drained or self.awaits(run.run) or self.forbids(run.run, run.bundle))

    def waiting(self, wanting: Iterable[RunRow], candidate: RunRow | None) -> tuple[RunRow, str] | None:
        """The run that something here keeps from being trained, with the word for what that is.

        The word is empty for a person's yes and for the hour, which operators cannot do anything about.
        """
        if self.closed and candidate is not None:
            return candidate, ""
        for run in wanting:
            lacks = self.deployments.lacks(run.run, run.bundle)
            if not self.refused(run.run) and (lacks or self.awaits(run.run)):
                return run, lacks
        return None

    def on_said(
        self, event: SaidAtSite, runs: dict[str, RunRow], training: Train | None, now: float, decided: Decisions
    ) -> None:
        """Note what was said; `training` is what is trained now."""
        match event:
            case ClockSeen():
                self.on_clock(event, now)
            case RunAnswered(run=run, approved=approved):
                self.on_answer(event, decided)
                if training is not None and training.run == run and not approved:
                    decided.effects.append(AbortTraining())
            case RunCommanded(run=run):
                self.deployments.on_order(event, runs.get(run), training, self._outlook(run), decided)
            case _:
                self.drain(isinstance(event, Drain), decided)

    def deadline(self) -> float:
        """When to look at the clock again; infinite while its answer is awaited."""
        return self._look_at

    def open(self, now: float, decided: Decisions) -> bool:
        """Whether the hour is right; asks for the time of day if that is due."""
        if not self._open and now >= self._look_at:
            self._look_at = float("inf")
            decided.effects.append(LookAtClock())
        return self._open

    def on_clock(self, event: ClockSeen, now: float) -> None:
        """Take the time of day; it holds until `turned`."""
        wait = self._policy.opens_in(event.local)
        self.closed = wait > 0
        self._open = not self.closed
        self._look_at = now + min(wait, LOOK_AGAIN)

    def turned(self) -> None:
        """The turn is over, and what the clock said no longer counts."""
        self._open = self._policy.hours is None

    def on_answer(self, event: RunAnswered, decided: Decisions) -> None:
        """Note what a person said; the last word counts."""
        if self._answers.get(event.run) != event.approved:
            self._answers[event.run] = event.approved
            decided.writes.append(NoteAnswer(run=event.run, approved=event.approved))
        decided.effects.append(ForgetAnswer(run=event.run))

    def _outlook(self, run: str) -> Callable[[RunRow | None], str]:
        def told(row: RunRow | None) -> str:
            lacks = self.deployments.lacks(run, row.bundle if row is not None else b"")
            return outlook(row, lacks, refused=self.refused(run), awaits=self.awaits(run), drained=self.drained)

        return told

    def drain(self, drained: bool, decided: Decisions) -> None:
        """Note whether the site begins trainings."""
        if self.drained != drained:
            self.drained = drained
            decided.writes.append(NoteDrained(drained=drained))
