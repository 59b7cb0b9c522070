"""The rules about operators' word on runs: whose code trains which run here, and which runs the site has left.

Nothing here does I/O. A command comes here once everything that takes time is done (the code
lies in the site's keeping) and is decided, noted and answered in one step. So orders that came together meet each
other's outcome, and an answer tells what the journal holds.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.messages import GOING_ON, RunState
from worker.domain.effects import AbortTraining, ForgetCode, ForgetOwn, SendReply, Train
from worker.domain.events import RunCommanded
from worker.domain.state import ENDED, LEFT, NO_TRAINER, NOT_DEPLOYED, Deployment, RunRow, Snapshot
from worker.domain.writes import DropDeployment, NoteDeployment, NoteLeft
from worker.rules.decisions import Decisions


class Deployments:
    """What operators said about runs; the site's own say stands beside it and is not overridden by it."""

    def __init__(self, snapshot: Snapshot, own_trainer: bool) -> None:
        """`own_trainer`: whether the site has a trainer for runs that bring no code."""
        self._own_trainer = own_trainer
        self._deployed = dict(snapshot.deployments)
        self._left = set(snapshot.left)

    def lacks(self, run: str, bundle: bytes) -> str:
        """The word for what keeps code of this digest (empty: the site's own) from training the run; empty if nothing.

        Only the very code counts that was deployed for this very run.
        """
        if run in self._left:
            return LEFT
        if not bundle:
            return "" if self._own_trainer else NO_TRAINER
        found = self._deployed.get(run)
        return "" if found is not None and found.code == bundle else NOT_DEPLOYED

    def on_order(
        self,
        event: RunCommanded,
        row: RunRow | None,
        training: Train | None,
        outlook: Callable[[RunRow | None], str],
        decided: Decisions,
    ) -> None:
        """Decide a command; `row` is what is known of the run, `outlook` says in words what comes next for it."""
        mine = training if training is not None and training.run == event.run else None
        match event.command.command:
            case "run.deploy":
                reason, text = self._deploy(event, mine, decided)
            case "run.withdraw":
                reason, text = self._withdraw(event.run, row, mine, decided)
            case "run.leave":
                reason, text = self._leave(event.run, row, mine, decided)
            case _:
                reason, text = self._join(event.run, row, decided)
        if reason == "ok" and not text:
            text = outlook(row)
        told = event.command.command == "run.deploy" and reason == "ok"
        values = (("code", event.code.hex()),) if told else ()
        decided.effects.append(SendReply(command=event.command, reason=reason, text=text, values=values))

    def lost(self, run: str, decided: Decisions) -> None:
        """The site no longer holds the run's code as it was deployed."""
        if self._deployed.pop(run, None) is not None:
            decided.writes.append(DropDeployment(run=run))

    def _deploy(self, event: RunCommanded, training: Train | None, decided: Decisions) -> tuple[str, str]:
        if not event.code and not self._own_trainer:
            return NO_TRAINER, (
                f"run {event.run} brings no code and this site has no trainer of its own; "
                "the hospital would have to name one as `trainer` in its worker.toml"
            )
        known = self._deployed.get(event.run)
        if known is not None and known.code == event.code:
            return "ok", ""
        news = Deployment(code=event.code, operator=event.command.operator)
        self._deployed[event.run] = news
        decided.writes.append(NoteDeployment(run=event.run, deployment=news))
        if known is not None:
            self._forget(known.code, decided)
            if training is not None and training.bundle:
                decided.effects.append(AbortTraining())
        return "ok", ""

    def _withdraw(self, run: str, row: RunRow | None, training: Train | None, decided: Decisions) -> tuple[str, str]:
        if row is not None and row.state in GOING_ON and run not in self._left:
            return "run_goes_on", (
                f"run {run} is {row.state.value} and this site takes part in it; order `run leave` here, "
                "or end the run, and withdraw it then"
            )
        known = self._deployed.get(run)
        self.lost(run, decided)
        if known is not None:
            self._forget(known.code, decided)
        if training is not None:
            decided.effects.append(AbortTraining())
        decided.effects.append(ForgetOwn(run=run))
        return "ok", f"nothing of run {run} is kept here but updates on their way and their receipts"

    def _leave(self, run: str, row: RunRow | None, training: Train | None, decided: Decisions) -> tuple[str, str]:
        if row is None and run not in self._deployed:
            return _unknown(run)
        if run not in self._left:
            self._left.add(run)
            decided.writes.append(NoteLeft(run=run, left=True))
        if training is not None:
            decided.effects.append(AbortTraining())
        return "ok", f"run {run} is trained here no more until `run join`; what was signed before is still sent"

    def _join(self, run: str, row: RunRow | None, decided: Decisions) -> tuple[str, str]:
        if row is None and run not in self._deployed and run not in self._left:
            return _unknown(run)
        if run in self._left:
            self._left.remove(run)
            decided.writes.append(NoteLeft(run=run, left=False))
        return "ok", ""

    def _forget(self, code: bytes, decided: Decisions) -> None:
        if code and all(other.code != code for other in self._deployed.values()):
            decided.effects.append(ForgetCode(code=code))


def outlook(row: RunRow | None, lacks: str, *, refused: bool, awaits: bool, drained: bool) -> str:
    """What comes next for a run at this site, as a sentence for the operator who ordered something about it."""
    if lacks == LEFT:
        return "this site has left the run; it trains after `run join`"
    if refused:
        return "somebody at this site has refused the run; only they can take that back"
    if row is None or row.version < 0:
        return "trains the run once a version of it is announced"
    if row.state in ENDED:
        return "the run has ended; nothing is trained unless it goes on"
    if lacks == NOT_DEPLOYED:
        return "the run's newest version is trained by code that is not deployed here; deploy it"
    if lacks == NO_TRAINER:
        return "the run brings no code and this site has no trainer of its own; it trains nothing"
    if awaits:
        return "waits until somebody at this site says yes to the run"
    if drained:
        return "the site is drained; trains the run after `site undrain`"
    if row.state == RunState.PAUSED:
        return "trains the run when it goes on"
    return "trains the run"


def _unknown(run: str) -> tuple[str, str]:
    return "unknown_run", f"this site knows no run {run}; has it been deployed or started?"
