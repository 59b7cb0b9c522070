"""One run's state machine: its updates, its versions, its end. It decides; what is decided goes into the federation's
`Decisions`, and heads are numbered by the federation's `HeadNumbers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from aggregator.domain import effects, events, writes
from aggregator.domain.state import LAST_STATE, RunPlace, RunRules, RunSnapshot, UpdateNotice, UpdateRow, UpdateState
from aggregator.rules import planning
from aggregator.rules.commands import NEWEST
from aggregator.rules.decisions import Decisions
from aggregator.rules.head import HeadNumbers
from aggregator.rules.liveness import Liveness
from aggregator.strategy import buffer, plan
from aggregator.strategy.evaluations import best_version, compared_by, why
from aggregator.strategy.stopping import Stopping, VersionScore, reason_to_stop
from protocol import limits, topology
from protocol.codec import Value
from protocol.errors import StrategyFailed
from protocol.keys import Role
from protocol.messages import Outcome, RunState
from protocol.metrics import Direction
from protocol.registry import Registry

_RETRY = 30.0  # seconds until a parked update, or a record's new recipients, are tried again
_MERGE_AGAIN = 2.0  # seconds until a failed merge is; a store that is away takes its own deadline besides


class Run:
    """Rebuilt from a `RunSnapshot` at every start. Every call tells the time, in monotonic seconds."""

    def __init__(
        self, rules: RunRules, snapshot: RunSnapshot, registry: Registry, out: Decisions, heads: HeadNumbers, now: float
    ) -> None:
        """`registry` is the one in force, without whom operators revoked."""
        self.rules = rules
        self.operator = snapshot.operator
        """The operator who brought it; empty: it was begun at the hub."""
        self.version = snapshot.version
        self.state = snapshot.state
        self.reason = snapshot.reason
        self._digest = snapshot.digest
        self._registry = registry
        self._out = out
        self._heads = heads
        self._record_registry = snapshot.record_registry
        self._reissue_at = math.inf
        self._rows = {row.id: row for row in snapshot.rows}
        self._since = {row.id: now for row in snapshot.rows}
        self._site_statistics = snapshot.site_statistics
        self.evaluations = snapshot.evaluations
        """What sites measured of its versions."""
        self._elapsed, self._resumed = snapshot.elapsed, now
        self.liveness = Liveness(rules.heartbeat, self._sites(), now)
        self._admitting: set[bytes] = set()
        self._retry_at: dict[bytes, float] = {}
        self._merging: plan.MergePlan | None = None
        self._merge_after = now
        self._now = now

    @property
    def name(self) -> str:
        """The run's name."""
        return self.rules.run

    @property
    def place(self) -> RunPlace:
        """Where it stands, as heads tell it."""
        return RunPlace(run=self.name, state=self.state, reason=self.reason, version=self.version)

    @property
    def max_staleness(self) -> int:
        """How many versions an update's base may lie behind."""
        return self.rules.strategy.max_staleness(len(self._sites()) or 1)

    def holds(self, id: bytes) -> bool:
        """Whether an update waits here that has not come to its end."""
        return id in self._rows

    @property
    def complete(self) -> str | None:
        """Why the run has nothing more to do by its own settings; None if it has, or has not begun."""
        if self.state == RunState.CREATED:
            return None
        stopping = self.rules.stopping
        asked = stopping.metric if stopping.target is not None or stopping.patience is not None else None
        history = self.evaluations.history(asked, self._live())
        elapsed = self.elapsed(self._now)
        return reason_to_stop(stopping, version=self.version, elapsed=elapsed, history=history)

    @property
    def metric(self) -> tuple[str, Direction]:
        """By what versions are compared, and whether more of it is better; empty while no site reports such a thing."""
        return compared_by(self.rules.stopping, self.evaluations)

    @property
    def best(self) -> VersionScore | None:
        """The version that did best at the sites so far; None if none was measured by that metric."""
        return best_version(self.rules.stopping, self.evaluations)

    def able(self, metric: str) -> frozenset[str]:
        """The sites whose word on a metric is waited for."""
        return self.evaluations.able(metric, self._live())

    def meant(self, arguments: Mapping[str, Value]) -> tuple[int | None, str]:
        """The version that a command is about (None: the newest), and why where it named none by its number.

        Without a word it is the best; the newest where none is known to be the best.
        """
        named = arguments.get("version")
        if isinstance(named, int):
            return named, ""
        if named == NEWEST:
            return None, "the newest"
        best = self.best
        return None if best is None else best.version, why(self.rules.stopping, self.evaluations, best)

    def elapsed(self, now: float) -> float:
        """Seconds of training so far, pauses excluded."""
        return self._elapsed + (now - self._resumed if self.state == RunState.RUNNING else 0.0)

    # ---- time

    def at(self, now: float) -> Run:
        """The same run at a later time."""
        self._now = now
        return self

    def start(self) -> None:
        """Decide again whatever was pending when the process before ended."""
        for update in sorted(self._rows.values(), key=lambda row: row.order):
            self._examine(update)
        if self._record_registry != self._registry.version:
            self._reissue()

    def deadline(self, now: float) -> float:
        """When the next tick is due."""
        times = [math.inf, self._reissue_at, *self._retry_at.values()]
        if self.state == RunState.RUNNING:
            if self.rules.stopping.max_wall_time is not None:
                times.append(self._resumed + self.rules.stopping.max_wall_time - self._elapsed)
            if self._merging is None and (waiting := self._waiting()):
                due = buffer.next_deadline(waiting, self._policy(), version=self.version, live=self._live())
                times += [] if due is None else [max(due, self._merge_after)]
                times += [self._merge_after] if self._merge_after > now else []
                times += self.liveness.expiring(now)
        return min(times)

    def tick(self) -> None:
        """Do what is due."""
        for id, at in list(self._retry_at.items()):
            if at <= self._now:
                self._admit(id)
        if self._now >= self._reissue_at:
            self._reissue()
        self._consider_stop()
        if self.state != RunState.RUNNING or self._merging is not None:
            return
        oldest = self.max_staleness
        for row in [row for row in self._rows.values() if self.version - row.base_version > oldest]:
            self._finish(row, UpdateState.REJECTED, "too_stale")
        gone = buffer.outdated(self._waiting(), self._policy(), version=self.version)
        for old in gone.superseded:
            self._finish(self._rows[old.id], UpdateState.SUPERSEDED, "newer_updates_wait")
        if self._now >= self._merge_after:
            self._consider_merge(self._waiting())

    # ---- updates

    def take(self, row: UpdateRow) -> None:
        """An update was journalled."""
        self._rows[row.id] = row
        self._examine(row)

    def _examine(self, row: UpdateRow) -> None:
        """Decide what is next for an update that is new or was found at the start."""
        if (ended := LAST_STATE.get(self.state)) is not None:
            self._finish(row, ended, self.reason)
        elif row.site not in self._sites():
            self._finish(row, UpdateState.REJECTED, "revoked")
        elif row.objection != "ok":
            self._finish(row, UpdateState.REJECTED, row.objection)
        elif row.state != UpdateState.VALIDATED:
            self._admit(row.id)

    def again(self, notice: UpdateNotice) -> None:
        """An update that is parked here came again."""
        row = self._rows.get(notice.id)
        if row is None:
            return
        if self._retry_at.get(row.id) == math.inf and (row.epoch, row.sequence) != (notice.epoch, notice.sequence):
            # Its site holds another form of it (a restored backup) and cannot bring the chunks of the one we know.
            self._finish(row, UpdateState.REJECTED, "sealed_otherwise")
        else:
            self._admit(row.id)

    def _admit(self, id: bytes) -> None:
        self._retry_at.pop(id, None)
        if id not in self._admitting:
            self._admitting.add(id)
            self._out.do(effects.Admit(run=self.name, id=id))

    def admitted(self, id: bytes, norm: float) -> None:
        """Admission found an update sound."""
        self._admitting.discard(id)
        row = self._rows[id]
        if row.state == UpdateState.VALIDATED:
            return
        self._rows[id] = replace(row, state=UpdateState.VALIDATED, norm=norm)
        self._since[id] = self._now
        self._out.write(writes.SetState(id=id, state=UpdateState.VALIDATED, norm=norm))

    def not_admitted(self, event: events.NotAdmitted) -> None:
        """Admission refused an update, or could not read it now."""
        self._admitting.discard(event.id)
        row = self._rows[event.id]
        if not event.retry:
            self._finish(row, UpdateState.REJECTED, event.reason)
            return
        if row.state != UpdateState.PARKED:
            self._rows[row.id] = replace(row, state=UpdateState.PARKED)
            self._out.write(writes.SetState(id=row.id, state=UpdateState.PARKED, reason=event.reason))
        if event.missing:
            self._out.receipt(row, Outcome.REUPLOAD, event.reason)
        # Only its site can bring a chunk; when it has, it sends the update again.
        self._retry_at[row.id] = math.inf if event.missing else self._now + _RETRY

    def _finish(self, row: UpdateRow, state: UpdateState, reason: str, version: int = 0) -> None:
        """Bring an update to its end and say so to its site."""
        self._rows.pop(row.id, None)
        self._since.pop(row.id, None)
        self._retry_at.pop(row.id, None)
        self._admitting.discard(row.id)
        self._out.finish(row, state, reason, version)

    def refuse_all_of(self, site: str, reason: str) -> None:
        """Let none of a site's waiting updates in."""
        for row in self._sorted():
            if row.site == site:
                self._finish(row, UpdateState.REJECTED, reason)

    # ---- versions

    def _consider_merge(self, waiting: list[buffer.Waiting]) -> None:
        choice = buffer.choose(waiting, self._policy(), version=self.version, live=self._live(), now=self._now)
        if choice is None:
            return
        base = planning.PlanBase(
            version=self.version,
            digest=self._digest,
            population=tuple(sorted(self._live())),
            divisor=choice.divisor,
            registry=self._record_registry,  # older than the one in force: the version is issued again
        )
        rows, known = [self._rows[member.id] for member in choice.members], self._site_statistics
        try:
            wanted = planning.next_plan(self.rules, rows, base, site_statistics=known, new_id=self._out.new_id)
        except StrategyFailed:  # others' code: it may stop its own run, but neither the hub nor other runs
            self.change(RunState.PAUSED, planning.FAILED)
            return
        self._merging = wanted
        self._out.do(effects.Merge(plan=self._merging))

    def merged(self, made: plan.MergePlan, product: plan.Product) -> None:
        """A merge is complete: commit it, if it is still what is wanted."""
        if made is not self._merging:
            return  # the product stays an orphan in the store until it is collected
        self._merging = None
        rows = [self._rows.get(member.id) for member in made.members]
        valid = [row for row in rows if row is not None and row.state == UpdateState.VALIDATED]
        if self.state != RunState.RUNNING or made.version != self.version + 1 or len(valid) != len(rows):
            return
        self._out.write(writes.CommitVersion(plan=made, product=product, elapsed=self.elapsed(self._now)))
        self.version, self._digest = made.version, product.digest
        self._record_registry = made.registry
        self._site_statistics.merged(made.members)
        ids, entry = [row.id for row in valid], {"run": self.name, "version": made.version, "digest": product.digest}
        self._out.audit("version", {**entry, "parent": made.parent, "members": ids})
        self._announce(product.record)  # before the receipts: who waits for one trains from the new version then
        for row in valid:
            self._finish(row, UpdateState.MERGED, "ok", version=made.version)
        if made.registry != self._registry.version:
            self._reissue()
        self._consider_stop()

    def merge_failed(self, event: events.MergeFailed) -> None:
        """A merge could not be completed: look at the member that is to blame, or try again in a while."""
        if event.plan is self._merging:
            self._merging, self._merge_after = None, self._now + _MERGE_AGAIN
            if event.pause and self.state == RunState.RUNNING:
                self.change(RunState.PAUSED, event.reason)
        row = self._rows.get(event.bad) if event.bad is not None else None
        if row is None:
            return
        self._merge_after = self._now
        if event.reject:
            self._finish(row, UpdateState.REJECTED, event.reason)
            return
        self._rows[row.id] = replace(row, state=UpdateState.PARKED)
        self._out.write(writes.SetState(id=row.id, state=UpdateState.PARKED, reason=event.reason))
        self._admit(row.id)

    def _announce(self, record: bytes) -> None:
        """Tell all sites of the record just written, inline if it fits into a message."""
        if self.state == RunState.CREATED:
            self._heads.renew(self._now, announce=True)  # of the registry; no site is to hear of the run yet
            return
        self._heads.renew(self._now, announce=len(record) > limits.MESSAGE)
        if len(record) <= limits.MESSAGE:
            self._out.send(topology.GLOBAL, "", record)

    # ---- the run itself

    def _consider_stop(self) -> None:
        if self.state == RunState.RUNNING and (why := self.complete) is not None:
            self.change(RunState.STOPPED, why)

    def change(self, state: RunState, reason: str) -> None:
        """Begin, pause, resume or end the run."""
        elapsed = self.elapsed(self._now)
        self.state, self.reason, self._elapsed, self._resumed = state, reason, elapsed, self._now
        self._out.write(writes.SetRun(run=self.name, state=state, reason=reason, elapsed=elapsed))
        self._out.audit("run", {"run": self.name, "state": state.value, "reason": reason, "version": self.version})
        if (ended := LAST_STATE.get(state)) is not None:
            self._merging = None
            for row in self._sorted():
                self._finish(row, ended, reason)
            self._out.do(effects.Ended(run=self.name, reason=reason))
        self._heads.renew(self._now, announce=True)

    def end_at(self, versions: int) -> None:
        """From now on the run ends after so many versions, and by nothing else."""
        old = self.rules.stopping
        stopping = Stopping(metric=old.metric, direction=old.direction, max_versions=versions)
        self.rules = replace(self.rules, stopping=stopping)
        self._out.write(writes.SetEnd(run=self.name, versions=versions))
        self._out.audit("run_end", {"run": self.name, "max_versions": versions})

    def evaluated(self, event: events.EvaluationArrived) -> None:
        """A site measured one of the versions."""
        if self.state != RunState.CREATED and event.version <= self.version and event.site in self._sites():
            self.evaluations.add(event.version, event.site, event.evaluation)
            self._out.write(
                writes.StoreEvaluation(
                    run=self.name, site=event.site, version=event.version, evaluation=event.evaluation
                )
            )

    # ---- members

    def follow(self, registry: Registry) -> None:
        """Another registry is in force: whom it no longer lists is out, and the records are wrapped for the others."""
        self.use(registry)
        self.liveness.expect(self._sites(), self._now)
        for row in self._sorted():
            if row.site not in self._sites():
                self._finish(row, UpdateState.REJECTED, "revoked")
        self._reissue()

    def use(self, registry: Registry) -> None:
        """Judge by this registry from now on."""
        self._registry = registry

    def cut_off(self, registry: Registry) -> None:
        """A site was revoked: what is being merged is wrapped for it, too."""
        self._merging = None
        self.use(registry)
        self._reissue()

    def _reissue(self) -> None:
        self._reissue_at = math.inf
        self._out.do(effects.Reissue(run=self.name, version=self.version, registry=self._registry))

    def reissue_later(self) -> None:
        """The store could not be written; try again in a while."""
        self._reissue_at = self._now + _RETRY

    def reissued(self, event: events.Reissued) -> None:
        """The newest record is wrapped for other recipients."""
        if (event.version, event.registry) != (self.version, self._registry.version):
            self._reissue()
            return
        self._record_registry = event.registry
        self._out.write(
            writes.ReplaceRecord(
                run=self.name,
                version=event.version,
                record=event.record,
                registry=event.registry,
                spec_record=event.spec_record,
            )
        )
        self._announce(event.record)

    # ---- small things

    def _sorted(self) -> list[UpdateRow]:
        return sorted(self._rows.values(), key=lambda row: row.order)

    def _sites(self) -> set[str]:
        return {participant.name for participant in self._registry.members(Role.SITE)}

    def _live(self) -> frozenset[str]:
        return self.liveness.live(self._now) & self._sites()

    def _waiting(self) -> list[buffer.Waiting]:
        rows = [row for row in self._rows.values() if row.state == UpdateState.VALIDATED]
        return [
            buffer.Waiting(
                id=row.id, site=row.site, base_version=row.base_version, order=row.order, since=self._since[row.id]
            )
            for row in rows
        ]

    def _policy(self) -> buffer.BufferPolicy:
        strategy = self.rules.strategy
        return buffer.BufferPolicy(
            size=strategy.buffer_size(len(self._live()) or 1),
            quota=strategy.updates_per_base,
            min_sites=self.rules.min_sites,
            synchronous=strategy.synchronous,
            max_wait=self.rules.max_wait or self._site_statistics.max_wait(),
            grace=self.rules.grace,
            max_staleness=self.max_staleness,
        )
