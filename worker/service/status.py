"""Signs of life: what a worker does now, shown to its observer and told to the aggregator."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import nacl.utils

from broker.transport.base import Transport
from protocol import topology
from protocol.envelope import NO_RUN, seal
from protocol.errors import FledgeError
from protocol.messages import CERTIFICATE_DAYS, RESTART_NEEDED, Event, Kind
from worker.domain.effects import ReportStatus
from worker.domain.state import LEFT, NO_TRAINER, NOT_DEPLOYED
from worker.pipeline.context import SiteContext

_PROGRESS_EVERY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """What one worker is doing now, for display."""

    site: str
    state: str
    run: str
    version: int
    progress: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    code: str = "-"
    """Why the last training failed, if none has succeeded since."""
    case: str = "-"
    """The case at the site that has the full text."""


Observer = Callable[[WorkerEvent], None]


_LACKING = {
    NOT_DEPLOYED: "an operator has to order `run deploy {run}`",
    NO_TRAINER: "name a trainer in worker.toml, or have the run bring its code",
    LEFT: "the site left the run; an operator may order `run join {run}`",
    "site": "say `fledge site approve {run}`, or wait for the hours in policy.toml",
}
"""What a run that waits is waiting for, by the word that is shown for it."""


class StatusReporter:
    """The last thing shown, and the ways it goes; called from the worker's threads."""

    def __init__(
        self,
        context: SiteContext,
        transport: Transport,
        on_event: Observer,
        certificate_days: Callable[[], float | None],
        changed: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`certificate_days`: how long the certificate lasts; `changed`: files that differ from what was read."""
        self._site = context.site
        self._on_event = on_event
        self._transport = transport
        self._reader = context.reader
        self._log = context.log
        self._certificate_days = certificate_days
        self._changed = changed
        self._software = software()
        self._shown = self._fresh("idle", "", -1)
        self._shown_at = float("-inf")
        self.stuck = ""
        """What keeps this site from training though it is healthy, in one sentence; empty: nothing."""
        self.outdated = ""
        """Which files the worker no longer runs with, in one sentence; empty: none."""

    def report(self, report: ReportStatus) -> None:
        """Show and tell what the rules report."""
        shown = self._shown
        if (report.state, report.run, report.version) != (shown.state, shown.run, shown.version):
            shown = self._fresh(report.state, report.run, report.version)
        shown = replace(shown, code=report.code, case=report.case)
        # A training that is tried again says nothing new before it has ended.
        before, self.stuck = self.stuck, self.stuck if report.state in ("training", "evaluating") else ""
        if report.state == "waiting":
            reason = report.code if report.code in _LACKING else "site"
            todo = _LACKING[reason].format(run=report.run)
            self.stuck = f"run {report.run} waits: {todo}"
            if self.stuck != before:
                self._log.warning("run.waiting", run=report.run, version=report.version, reason=reason, todo=todo)
        elif report.state == "blocked":
            told = f"`fledge site case {report.case}` shows why" if report.case != "-" else "see the log"
            self.stuck = f"the last training of run {report.run} failed ({report.code}): {told}"
        if shown != self._shown:
            self._show(shown)
        if report.publish:
            self.tell(report.state)

    def judged(self, why: str) -> None:
        """Log that the site is revoked, by what sign; empty: that it is a member again."""
        if why:
            todo = "ask the federation's operators; the journal stays, and work goes on if they list this site again"
            self._log.error("site.revoked", reason=why, todo=todo)
        else:
            self._log.info("site.member_again")

    def blocked(self) -> None:
        """Show that nothing goes on for want of room."""
        self._show(replace(self._shown, state="blocked"))

    def progress(self, share: float, metrics: Mapping[str, float]) -> None:
        """Show how far a training is, ten times a second at most."""
        now = time.monotonic()
        if share < 1 and now - self._shown_at < _PROGRESS_EVERY:
            return
        self._shown_at = now
        self._show(replace(self._shown, progress=min(1.0, max(0.0, share)), metrics=dict(metrics)))

    def tell(self, state: str) -> None:
        """Tell the aggregator; the confirm is not waited for and a failure is dropped."""
        shown, reader, days = self._shown, self._reader(), self._certificate_days()
        self._look_for_changes()
        try:
            event = Event(
                state=state,
                progress=shown.progress,
                metrics=dict(shown.metrics)
                | ({} if days is None else {CERTIFICATE_DAYS: days})
                | ({RESTART_NEEDED: 1.0} if self.outdated else {}),
                software=self._software,
                code=shown.code,
                case=shown.case,
            )
            raw = seal(
                reader.identity,
                Kind.EVENT,
                event,
                reader.aggregators,
                federation=reader.federation,
                message_id=nacl.utils.random(16),
                run=shown.run or NO_RUN,
                version=max(0, shown.version),
            )
            self._transport.publish(topology.event_exchange(self._site), "", raw)
        except FledgeError as error:
            self._log.debug("event.dropped", error=str(error))

    def _look_for_changes(self) -> None:
        names = ", ".join(self._changed())
        before, self.outdated = (
            self.outdated,
            f"{names} changed since the worker began: start it again" if names else "",
        )
        if self.outdated and self.outdated != before:
            self._log.warning("configuration.changed", files=names, todo="start the worker again to have it read")

    def _fresh(self, state: str, run: str, version: int) -> WorkerEvent:
        return WorkerEvent(site=self._site, state=state, run=run, version=version, progress=0.0)

    def _show(self, event: WorkerEvent) -> None:
        self._shown = event
        try:
            self._on_event(event)
        except Exception:  # an observer must not be able to stop the worker
            self._log.exception("observer.failed")


def software() -> str:
    """Which fledge this is, as signs of life name it."""
    try:
        return f"fledge-{importlib.metadata.version('fledge-fl')}"
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "fledge"
