"""What the aggregator logs, and shows to its observer, of what was committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from aggregator.domain import writes
from aggregator.domain.state import UpdateNotice
from protocol.metrics import told_of

log = structlog.get_logger("aggregator")
Observer = Callable[[str, Mapping[str, object]], None]


def nobody(event: str, fields: Mapping[str, object]) -> None:
    """The observer of a service that is not watched."""


class EventLog:
    """Tells of writes, one by one, in the order of their commit."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        # Bound once: a logger of the module is set up anew for every line.
        self._log = log.bind()

    def committed(self, write: writes.Write) -> None:
        """Tell of one write, if it is of interest."""
        match write:
            case writes.CommitVersion(plan=plan, product=product):
                stale = [member.staleness for member in plan.members]
                log.info(
                    "version.committed",
                    run=plan.run,
                    version=plan.version,
                    digest=product.digest.hex()[:16],
                    members=[member.id.hex()[:8] for member in plan.members],
                    staleness=stale,
                )
                sites = [member.site for member in plan.members]
                self._observer("version", {"version": plan.version, "sites": sites, "staleness": stale})
            case writes.JournalUpdate(notice=notice, objection="ok"):
                self._trained(notice)
                self._observer("received", {"site": notice.site, "base": notice.base_version})
            case writes.StoreEvaluation(run=run, site=site, version=version, evaluation=said):
                told = told_of(said.metrics)
                self._log.info("version.measured", run=run, site=site, version=version, examples=said.examples, **told)
            case writes.CreateRun(new=new):
                log.info("run.created", run=new.rules.run)
            case writes.DeleteRun(run=run):
                log.info("run.deleted", run=run)
            case writes.SetState(id=id, state=state, reason=reason):
                self._log.info("update." + state.value, update=id.hex()[:8], reason=reason)
                self._observer("update", {"state": state.value, "reason": reason})
            case writes.SetRun(run=run, state=state, reason=reason):
                log.info("run." + state.value, run=run, reason=reason)
                self._observer("run", {"state": state.value, "reason": reason})
            case _:
                pass

    def _trained(self, notice: UpdateNotice) -> None:
        self._log.info(
            "update.received",
            update=notice.id.hex()[:8],
            run=notice.run,
            site=notice.site,
            base=notice.base_version,
            examples=notice.examples,
            steps=notice.steps,
            seconds=round(notice.seconds, 3),
            **told_of(notice.metrics),
        )
