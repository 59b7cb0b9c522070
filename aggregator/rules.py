"""The aggregator's rules, without I/O: events in, writes and effects out.

Rule 1: an update is journalled, then acked; from then on the row is the update. What is journalled ends in exactly one
        final state, and the site gets a signed receipt that says which.
Rule 2: the model changes only in `CommitVersion`, by one version, from members that are all validated at that moment.
Rule 3: every effect may be lost or repeated; `Started` finds in the snapshot whatever is still to be done.
Rule 4: staleness is counted at the merge; a base version from the future is refused, never "fresh".
Rule 5: nothing verified is dropped in silence: it gets a receipt; nothing unverified: it becomes a dead letter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aggregator import buffer, events, lifecycle, order_events, plan, planning
from aggregator.decided import Decided
from aggregator.events import UpdateRow, UpdateState
from aggregator.liveness import Liveness
from aggregator.orders import REPLAYED, Orders
from aggregator.snapshot import RunRules, Snapshot
from aggregator.stopping import reason_to_stop
from broker.actor import Step, Tick
from protocol import limits, topology
from protocol.keys import Role
from protocol.messages import Outcome, RunState
from protocol.registry import Registry

HEAD_EVERY = 6 * 3600.0
_RETRY = 30.0  # seconds until a parked update, or a record's new recipients, are tried again
_MERGE_AGAIN = 2.0  # seconds until a failed merge is; a store that is away takes its own deadline besides


class AggregatorRules:
    """One run's state machine. Rebuilt from a `Snapshot` at every start."""

    def __init__(self, run: RunRules, snapshot: Snapshot, *, new_id: Callable[[], bytes], now: float) -> None:
        self.run = run
        self.version = snapshot.version
        self.state = snapshot.state
        self.reason = snapshot.reason
        self._digest = snapshot.digest
        self._new_id = new_id
        self._out = Decided(snapshot.last_row, new_id, now, snapshot.awaited)
        self._head = snapshot.head
        self._record_registry = snapshot.record_registry
        self._reissue_at = math.inf
        self._rows = {row.id: row for row in snapshot.rows}
        self._since = {row.id: now for row in snapshot.rows}
        self._outbox = list(snapshot.outbox)
        self._highest = snapshot.highest
        self._standing = snapshot.standing
        self._evaluations = snapshot.evaluations
        self.orders = Orders(snapshot.counters, snapshot.measures)
        self.registry = self.orders.narrowed(snapshot.registry)
        self._root_registry = snapshot.registry
        self._elapsed, self._resumed = snapshot.elapsed, now
        self._liveness = Liveness(run.heartbeat, self._sites(), now)
        self._admitting: set[bytes] = set()
        self._retry_at: dict[bytes, float] = {}
        self._merging: plan.MergePlan | None = None
        self._merge_after = now
        self._head_due = now + HEAD_EVERY
        self._now = now

    # ---- the two calls of the loop

    def step(self, event: Any, now: float) -> Step:
        """Decide what `event` leads to at `now`, in monotonic seconds."""
        self._now = now
        match event:
            case Tick():
                self._tick()
            case events.UpdateArrived():
                self._update_arrived(event)
            case events.Journalled():
                self._journalled(event)
            case events.Duplicate():
                self._duplicate(event)
            case events.Reused(notice=notice, highest_epoch=epoch):
                self._out.settle(event.delivery)
                self._out.receipt(notice, Outcome.SEQUENCE_REUSED, "sequence_reused", epoch=epoch)
            case events.Admitted(id=id, norm=norm):
                self._admitted(id, norm)
            case events.NotAdmitted():
                self._not_admitted(event)
            case events.Merged(plan=made, product=product):
                self._merged(made, product)
            case events.MergeFailed():
                self._merge_failed(event)
            case events.Published(row=row):
                self._out.write(events.RemoveSent(row=row))
            case events.SiteSeen(delivery=delivery, site=site):
                self._liveness.seen(site, now)
                self._out.write(events.Look())
                self._out.settle(delivery)
            case events.EvaluationArrived():
                self._evaluated(event)
            case order_events.CommandArrived():
                self._command(event)
            case order_events.ReplyArrived():
                self._liveness.seen(event.site, now)
                self._out.hand_on(event, now)
            case order_events.RequestArrived():
                self._liveness.seen(event.site, now)
                self._out.settle(event.delivery)
                self._out.do(order_events.Grant(request=event))
            case events.Refused():
                self._out.refuse(event, now)
            case events.RegistryChanged():
                self._registry_changed(event.registry, event.record)
            case events.Reissued():
                self._reissued(event)
            case events.ReissueFailed():
                self._reissue_at = now + _RETRY
            case events.Started():
                self._started()
        return self._out.step()

    def deadline(self) -> float | None:
        """When the next tick is due."""
        times = [self._head_due, self._reissue_at, *self._retry_at.values()]
        if self.state == RunState.RUNNING:
            if self.run.stopping.max_wall_time is not None:
                times.append(self._resumed + self.run.stopping.max_wall_time - self._elapsed)
            if self._merging is None and (waiting := self._waiting()):
                due = buffer.next_deadline(waiting, **self._buffer_rules())
                times += [] if due is None else [max(due, self._merge_after)]
                times += [self._merge_after] if self._merge_after > self._now else []
                times += self._liveness.expiring(self._now)
        return min(times)

    # ---- arriving updates

    def _started(self) -> None:
        self._use_registry(self._root_registry)
        self._out.do(*(order_events.CutOff(site=site) for site in sorted(self.orders.revoked)))
        self._out.do(*(events.Publish(row=row) for row in self._outbox))
        for update in sorted(self._rows.values(), key=lambda row: row.order):
            self._examine(update)
        if self._record_registry != self.registry.version:
            self._reissue()
        self._new_head(announce=True)

    def _update_arrived(self, event: events.UpdateArrived) -> None:
        notice = event.notice
        self._liveness.seen(notice.site, self._now)
        high = self._highest.get((notice.site, notice.epoch), 0)
        if notice.sequence > high + limits.SEQUENCE_WINDOW:
            # Not journalled, so that the window stays where it is; in a new epoch the site counts from 1 again.
            epoch = max(epoch for site, epoch in (*self._highest, (notice.site, 0)) if site == notice.site)
            self._out.settle(event.delivery)
            self._out.receipt(notice, Outcome.SEQUENCE_REUSED, "sequence_gap", epoch=epoch)
            return
        objection = self.run.reason_against(notice, self.version, self._max_staleness())
        if notice.sequence <= high - limits.SEQUENCE_WINDOW:
            objection = "too_old"
        if self.orders.quarantined(notice.site):
            objection = "quarantined"
        self._out.write(events.JournalUpdate(delivery=event.delivery, notice=notice, objection=objection or "ok"))

    def _journalled(self, event: events.Journalled) -> None:
        notice = event.notice
        self._out.settle(event.delivery)
        key = (notice.site, notice.epoch)
        self._highest[key] = max(self._highest.get(key, 0), notice.sequence)
        row = self._rows[notice.id] = UpdateRow.new(event.order, notice, event.objection)
        self._examine(row)

    def _examine(self, row: UpdateRow) -> None:
        """Decide what is next for an update that is new or was found at the start."""
        if (ended := lifecycle.LAST_STATE.get(self.state)) is not None:
            self._finish(row, ended, self.reason)
        elif row.site not in self._sites():
            self._finish(row, UpdateState.REJECTED, "revoked")
        elif row.objection != "ok":
            self._finish(row, UpdateState.REJECTED, row.objection)
        elif row.state != UpdateState.VALIDATED:
            self._admit(row.id)

    def _duplicate(self, event: events.Duplicate) -> None:
        self._out.settle(event.delivery)
        if event.state.final:
            self._out.receipt(event.notice, lifecycle.OUTCOME[event.state], event.reason, version=event.version)
        elif event.state == UpdateState.PARKED and event.notice.id in self._rows:
            row, notice = self._rows[event.notice.id], event.notice
            if self._retry_at.get(row.id) == math.inf and (row.epoch, row.sequence) != (notice.epoch, notice.sequence):
                # Its site holds another form of it (a restored backup) and cannot bring the chunks of the one we know.
                self._finish(row, UpdateState.REJECTED, "sealed_otherwise")
            else:
                self._admit(row.id)

    def _admit(self, id: bytes) -> None:
        self._retry_at.pop(id, None)
        if id not in self._admitting:
            self._admitting.add(id)
            self._out.do(events.Admit(id=id))

    def _admitted(self, id: bytes, norm: float) -> None:
        self._admitting.discard(id)
        row = self._rows.get(id)
        if row is None or row.state == UpdateState.VALIDATED:
            return
        self._rows[id] = replace(row, state=UpdateState.VALIDATED, norm=norm)
        self._since[id] = self._now
        self._out.write(events.SetState(id=id, state=UpdateState.VALIDATED, norm=norm))

    def _not_admitted(self, event: events.NotAdmitted) -> None:
        self._admitting.discard(event.id)
        row = self._rows.get(event.id)
        if row is None:
            return
        if not event.retry:
            self._finish(row, UpdateState.REJECTED, event.reason)
            return
        if row.state != UpdateState.PARKED:
            self._rows[row.id] = replace(row, state=UpdateState.PARKED)
            self._out.write(events.SetState(id=row.id, state=UpdateState.PARKED, reason=event.reason))
        if event.missing:
            self._out.receipt(row, Outcome.REUPLOAD, event.reason)
        # Only its site can bring a chunk; when it has, it sends the update again.
        self._retry_at[row.id] = math.inf if event.missing else self._now + _RETRY

    def _finish(self, row: UpdateRow, state: UpdateState, reason: str, version: int = 0) -> None:
        """Bring an update to its end and say so to its site."""
        self._rows.pop(row.id, None)
        self._since.pop(row.id, None)
        self._retry_at.pop(row.id, None)
        self._out.write(events.SetState(id=row.id, state=state, reason=reason, norm=row.norm, version=version))
        if state != UpdateState.MERGED:
            self._out.audit("update", {"id": row.id, "site": row.site, "state": state.value, "reason": reason})
        self._out.receipt(row, lifecycle.OUTCOME[state], reason, version=version)

    # ---- versions

    def _tick(self) -> None:
        for id, at in list(self._retry_at.items()):
            if at <= self._now:
                self._admit(id)
        if self._now >= self._reissue_at:
            self._reissue()
        if self._now >= self._head_due:
            self._new_head()
        self._consider_stop()
        if self.state != RunState.RUNNING or self._merging is not None:
            return
        quota, oldest = self.run.strategy.updates_per_base, self._max_staleness()
        for row in [row for row in self._rows.values() if self.version - row.base_version > oldest]:
            self._finish(row, UpdateState.REJECTED, "too_stale")
        gone = buffer.outdated(self._waiting(), version=self.version, quota=quota, max_staleness=oldest)
        for old in gone.superseded:
            self._finish(self._rows[old.id], UpdateState.SUPERSEDED, "newer_updates_wait")
        if self._now >= self._merge_after:
            self._consider_merge(self._waiting())

    def _consider_merge(self, waiting: list[buffer.Waiting]) -> None:
        size = self.run.strategy.buffer_size(len(self._live()) or 1)
        choice = buffer.choose(waiting, buffer_size=size, now=self._now, **self._buffer_rules())
        if choice is None:
            return
        self._merging = planning.next_plan(
            self.run,
            [self._rows[member.id] for member in choice.members],
            version=self.version,
            parent=self._digest,
            population=tuple(sorted(self._live())),
            divisor=choice.divisor,
            standing=self._standing,
            new_id=self._new_id,
            registry=self._record_registry,  # older than the one in force: the version is issued again
        )
        self._out.do(events.Merge(plan=self._merging))

    def _merged(self, made: plan.MergePlan, product: plan.Product) -> None:
        if made is not self._merging:
            return  # the product stays an orphan in the store until it is collected
        self._merging = None
        rows = [self._rows.get(member.id) for member in made.members]
        valid = [row for row in rows if row is not None and row.state == UpdateState.VALIDATED]
        if self.state != RunState.RUNNING or made.version != self.version + 1 or len(valid) != len(rows):
            return
        self._out.write(events.CommitVersion(plan=made, product=product, elapsed=self._time_running()))
        self.version, self._digest = made.version, product.digest
        self._record_registry = made.registry
        self._standing.merged(made.members)
        ids, entry = [row.id for row in valid], {"version": made.version, "digest": product.digest}
        self._out.audit("version", {**entry, "parent": made.parent, "members": ids})
        self._announce(product.record)  # before the receipts: who waits for one trains from the new version then
        for row in valid:
            self._finish(row, UpdateState.MERGED, "ok", version=made.version)
        if made.registry != self.registry.version:
            self._reissue()
        self._consider_stop()

    def _merge_failed(self, event: events.MergeFailed) -> None:
        if event.plan is self._merging:
            self._merging, self._merge_after = None, self._now + _MERGE_AGAIN
        row = self._rows.get(event.bad) if event.bad is not None else None
        if row is None:
            return
        self._merge_after = self._now
        if event.reject:
            self._finish(row, UpdateState.REJECTED, event.reason)
            return
        self._rows[row.id] = replace(row, state=UpdateState.PARKED)
        self._out.write(events.SetState(id=row.id, state=UpdateState.PARKED, reason=event.reason))
        self._admit(row.id)

    def _announce(self, record: bytes) -> None:
        """Tell all sites of the record just written, inline if it fits into a message."""
        self._new_head(announce=len(record) > limits.MESSAGE)
        if len(record) <= limits.MESSAGE:
            self._out.send(topology.GLOBAL, "", record)

    def _new_head(self, *, announce: bool = False) -> None:
        self._head += 1
        self._head_due = self._now + HEAD_EVERY
        self._out.write(events.SetHead(number=self._head, elapsed=self._time_running()))
        head = events.PutHead(number=self._head, state=self.state, reason=self.reason, version=self.version)
        self._out.do(head)
        if announce:
            self._out.do(events.AnnounceHead(number=self._head))

    # ---- the run

    def _consider_stop(self) -> None:
        history = self._evaluations.history(self.run.stopping.metric, len(self._sites()))
        why = reason_to_stop(self.run.stopping, version=self.version, elapsed=self._time_running(), history=history)
        if why is not None and self.state == RunState.RUNNING:
            self._change_run(RunState.STOPPED, why.value)

    def _command(self, event: order_events.CommandArrived) -> None:
        why = self.orders.judge(event, self._out, run=self.run.run, state=self.state, sites=self._sites())
        seen = self._liveness.ages(self._now)
        if why != "ok" or self._obey(event, seen):
            self._out.tell(event, why, seen, self.orders.counter(event) if why == REPLAYED else 0)

    def _obey(self, event: order_events.CommandArrived, seen: Mapping[str, float]) -> bool:
        """Carry out an order; tells whether it is done, which otherwise means that its answer is being looked up."""
        if event.targets:
            for site in event.targets:
                self._out.await_reply(event.id, site)
                self._out.pass_on(site, event.raw)
        elif (wanted := lifecycle.COMMANDS.get(event.command)) is not None:
            self._change_run(wanted[0], f"{event.command.removeprefix('run.')}-by-{event.operator}"[:64])
        elif (measured := self.orders.measure(event, self._root_registry.version)) is not None:
            self._measure(*measured, event.operator)
        elif event.command == "dead.purge":
            self._out.write(order_events.ForgetLetters(number=event.arguments.get("id")))
        else:
            self._out.do(order_events.LookUp(command=event, seen=seen))
            return False
        return True

    def _measure(self, site: str, measured: order_events.Measured, operator: str) -> None:
        self._out.write(order_events.SetMeasure(site=site, measured=measured, operator=operator))
        for row in [row for row in self._rows.values() if row.site == site and measured.measure != "none"]:
            self._finish(row, UpdateState.REJECTED, measured.measure)
        if measured.measure == "revoked":
            self._merging = None  # what is being merged is wrapped for the site, too
            self._out.do(order_events.CutOff(site=site))
            self._use_registry(self._root_registry)
            self._reissue()

    def _change_run(self, state: RunState, reason: str) -> None:
        elapsed = self._time_running()
        self.state, self.reason, self._elapsed, self._resumed = state, reason, elapsed, self._now
        self._out.write(events.SetRun(state=state, reason=reason, elapsed=elapsed))
        self._out.audit("run", {"state": state.value, "reason": reason, "version": self.version})
        if (ended := lifecycle.LAST_STATE.get(state)) is not None:
            for row in sorted(self._rows.values(), key=lambda row: row.order):
                self._finish(row, ended, reason)
            self._out.do(events.Ended(reason=reason))
        self._new_head(announce=True)

    def _evaluated(self, event: events.EvaluationArrived) -> None:
        site, version, evaluation = event.site, event.version, event.evaluation
        self._liveness.seen(site, self._now)
        self._out.settle(event.delivery)
        if version <= self.version and site in self._sites():
            self._evaluations.add(version, site, evaluation)
            self._out.write(events.StoreEvaluation(site=site, version=version, evaluation=evaluation))

    # ---- members and strangers

    def _registry_changed(self, registry: Registry, record: bytes) -> None:
        if registry.version <= self._root_registry.version:
            return
        self.orders.follow(registry)
        self._use_registry(registry)
        sites = self._sites()
        self._liveness.expect(sites, self._now)
        for row in sorted(self._rows.values(), key=lambda row: row.order):
            if row.site not in sites:
                self._finish(row, UpdateState.REJECTED, "revoked")
        self._out.write(events.StoreRegistry(version=registry.version, record=record))
        self._out.audit("registry", {"version": registry.version})
        self._reissue()

    def _use_registry(self, registry: Registry) -> None:
        self._root_registry, self.registry = registry, self.orders.narrowed(registry)
        self._out.do(order_events.UseRegistry(registry=self.registry))

    def _reissue(self) -> None:
        self._reissue_at = math.inf
        self._out.do(events.Reissue(version=self.version, registry=self.registry))

    def _reissued(self, event: events.Reissued) -> None:
        if (event.version, event.registry) != (self.version, self.registry.version):
            self._reissue()
            return
        self._record_registry = event.registry
        self._out.write(
            events.ReplaceRecord(
                version=event.version, record=event.record, registry=event.registry, spec_record=event.spec_record
            )
        )
        self._announce(event.record)

    # ---- small things

    def _sites(self) -> set[str]:
        return {participant.name for participant in self.registry.members(Role.SITE)}

    def _live(self) -> frozenset[str]:
        return self._liveness.live(self._now) & self._sites()

    def _max_staleness(self) -> int:
        return self.run.strategy.max_staleness(len(self._sites()) or 1)

    def _waiting(self) -> list[buffer.Waiting]:
        rows = [row for row in self._rows.values() if row.state == UpdateState.VALIDATED]
        return [buffer.Waiting(**row.place, since=self._since[row.id]) for row in rows]

    def _buffer_rules(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "quota": self.run.strategy.updates_per_base,
            "live": self._live(),
            "min_sites": self.run.min_sites,
            "synchronous": self.run.strategy.synchronous,
            "max_wait": self.run.max_wait or self._standing.max_wait(),
            "grace": self.run.grace,
            "max_staleness": self._max_staleness(),
        }

    def _time_running(self) -> float:
        return self._elapsed + (self._now - self._resumed if self.state == RunState.RUNNING else 0.0)
