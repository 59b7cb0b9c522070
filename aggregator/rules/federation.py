"""The aggregator's rules, without I/O: events in, writes and effects out. Each run has its own state machine (`run`).

Rule 1: an update is journalled, then acked; from then on the row is the update. What is journalled ends in exactly one
        final state, and the site gets a signed receipt that says which.
Rule 2: a model changes only in `CommitVersion`, by one version, from members that are all validated at that moment.
Rule 3: every effect may be lost or repeated; `Started` finds in the snapshot whatever is still to be done.
Rule 4: staleness is counted at the merge; a base version from the future is refused, never "fresh".
Rule 5: nothing verified is dropped in silence: it gets a receipt; nothing unverified: it becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from aggregator.domain import effects, events, writes
from aggregator.domain.state import (
    OUTCOME,
    TRANSITIONS,
    CodeOffered,
    LettersReplayed,
    NewModel,
    NewRun,
    RunRules,
    RunSnapshot,
    Sanction,
    Snapshot,
    UpdateRow,
    UpdateState,
)
from aggregator.rules.catalogue import Catalogue
from aggregator.rules.commands import GOES_ON_AGAIN, OF_VERSIONS, PREPARED, REPLAYED, TEXTS, Commands, Present
from aggregator.rules.decisions import Decisions
from aggregator.rules.head import HeadNumbers
from aggregator.rules.liveness import Liveness
from aggregator.rules.run import Run
from broker.runtime.actor import Step, Tick
from protocol import limits
from protocol.keys import Role
from protocol.messages import Outcome
from protocol.registry import Registry

_HEARTBEAT = 20.0  # seconds; for the federation as a whole, each run has its own


class AggregatorRules:
    """One federation's state machine. Rebuilt from a `Snapshot` at every start."""

    machine: type[Run] = Run
    """Each run's; the tests' mutants have another one."""

    def __init__(
        self, runs: Mapping[str, RunRules], snapshot: Snapshot, *, new_id: Callable[[], bytes], now: float
    ) -> None:
        """`runs`: what is fixed about each run of the snapshot."""
        self._out = Decisions(snapshot.last_row, new_id, now, snapshot.awaited)
        self._outbox = list(snapshot.outbox)
        self._highest = snapshot.highest
        self._strays = list(snapshot.strays)
        self._taken = set(snapshot.taken)
        self._busy: set[str] = set()
        self.catalogue = Catalogue(snapshot.models, snapshot.channels)
        self.commands = Commands(snapshot.counters, snapshot.sanctions)
        self.commands.follow(snapshot.registry)
        self.registry = self.commands.narrowed(snapshot.registry)
        self._root_registry = snapshot.registry
        self._liveness = Liveness(_HEARTBEAT, self._sites(), now)
        self._now = now
        self.runs: dict[str, Run] = {}
        """In the order they were made."""
        self._heads = HeadNumbers(snapshot.head, self.runs, self._out, now)
        for name, remembered in snapshot.runs.items():
            self._add(runs[name], remembered)

    def _add(self, rules: RunRules, snapshot: RunSnapshot) -> None:
        self._taken.add(rules.run)
        self.runs[rules.run] = self.machine(rules, snapshot, self.registry, self._out, self._heads, self._now)

    # ---- the two calls of the loop

    def step(self, event: events.Event | Tick, now: float) -> Step[writes.Write, effects.Effect]:
        """Decide what `event` leads to at `now`, in monotonic seconds."""
        self._now = now
        if isinstance(event, events.Arrival):
            self._arrived(event)
        elif isinstance(event, events.Recorded):
            self._recorded(event)
        elif isinstance(event, events.JobDone):
            self._job_done(event)
        else:
            self._happened(event)
        return self._out.step()

    def _arrived(self, event: events.Arrival) -> None:
        match event:
            case events.UpdateArrived():
                self._update_arrived(event)
            case events.EvaluationArrived():
                self._seen(event.site)
                self._out.settle(event.delivery)
                for run in self._named(event.run):
                    run.evaluated(event)
            case events.SiteSeen(delivery=delivery, site=site, alive=alive):
                if alive:
                    self._seen(site)
                self._out.write(writes.Look())
                self._out.settle(delivery)
            case events.DeliveryRefused():
                self._out.refuse(event, self._now)
            case events.CommandArrived():
                self._command(event)
            case events.ReplyArrived():
                self._seen(event.site)
                self._out.hand_on(event, self._now)
            case events.RequestArrived():
                self._seen(event.site)
                self._out.settle(event.delivery)
                self._out.do(effects.GrantUrls(request=event))
            case _:
                assert_never(event)

    def _recorded(self, event: events.Recorded) -> None:
        match event:
            case events.Journalled():
                self._journalled(event)
            case events.Duplicate():
                self._duplicate(event)
            case events.Reused(notice=notice, highest_epoch=epoch):
                self._out.settle(event.delivery)
                self._out.receipt(notice, Outcome.SEQUENCE_REUSED, "sequence_reused", epoch=epoch)
            case _:
                assert_never(event)

    def _job_done(self, event: events.JobDone) -> None:
        match event:
            case events.Admitted(id=id, norm=norm):
                for run in self._holding(id):
                    run.admitted(id, norm)
            case events.NotAdmitted(id=id):
                for run in self._holding(id):
                    run.not_admitted(event)
            case events.Merged(plan=made, product=product):
                for run in self._named(made.run):
                    run.merged(made, product)
            case events.MergeFailed(plan=made):
                for run in self._named(made.run):
                    run.merge_failed(event)
            case events.Reissued():
                for run in self._named(event.run):
                    run.reissued(event)
            case events.ReissueFailed():
                for run in self._named(event.run):
                    run.reissue_later()
            case events.Prepared():
                self._prepared(event)
            case _:
                assert_never(event)

    def _happened(self, event: events.Started | events.Published | events.RegistryChanged | Tick) -> None:
        match event:
            case Tick():
                self._tick()
            case events.Started():
                self._started()
            case events.Published(row=row):
                self._out.write(writes.RemoveSent(row=row))
            case events.RegistryChanged():
                self._registry_changed(event.registry, event.record)
            case _:
                assert_never(event)

    def deadline(self) -> float | None:
        """When the next tick is due."""
        return min([self._heads.due, *(run.deadline(self._now) for run in self.runs.values())])

    # ---- arriving updates

    def _started(self) -> None:
        self._use_registry(self._root_registry)
        self._out.do(*(effects.CutOff(site=site) for site in sorted(self.commands.revoked)))
        self._out.do(*(effects.Publish(row=row) for row in self._outbox))
        for row in self._strays:
            self._out.finish(row, UpdateState.REJECTED, "wrong_run")
        for run in self._all():
            run.start()
        self._heads.renew(self._now, announce=True)

    def _update_arrived(self, event: events.UpdateArrived) -> None:
        notice = event.notice
        self._seen(notice.site)
        high = self._highest.get((notice.site, notice.epoch), 0)
        if notice.sequence > high + limits.SEQUENCE_WINDOW:
            # Not journalled, so that the window stays where it is; in a new epoch the site counts from 1 again.
            epoch = max(epoch for site, epoch in (*self._highest, (notice.site, 0)) if site == notice.site)
            self._out.settle(event.delivery)
            self._out.receipt(notice, Outcome.SEQUENCE_REUSED, "sequence_gap", epoch=epoch)
            return
        run = self.runs.get(notice.run)
        objection = "wrong_run" if run is None else run.rules.reason_against(notice, run.version, run.max_staleness)
        if notice.sequence <= high - limits.SEQUENCE_WINDOW:
            objection = "too_old"
        if self.commands.quarantined(notice.site):
            objection = "quarantined"
        self._out.write(writes.JournalUpdate(delivery=event.delivery, notice=notice, objection=objection or "ok"))

    def _journalled(self, event: events.Journalled) -> None:
        notice = event.notice
        self._out.settle(event.delivery)
        key = (notice.site, notice.epoch)
        self._highest[key] = max(self._highest.get(key, 0), notice.sequence)
        row = UpdateRow.new(event.order, notice, event.objection)
        for run in self._named(notice.run):
            run.take(row)
        if notice.run not in self.runs:
            self._out.finish(row, UpdateState.REJECTED, "wrong_run")

    def _duplicate(self, event: events.Duplicate) -> None:
        self._out.settle(event.delivery)
        if event.state.final:
            self._out.receipt(event.notice, OUTCOME[event.state], event.reason, version=event.version)
        elif event.state == UpdateState.PARKED:
            for run in self._holding(event.notice.id):
                run.again(event.notice)

    def _tick(self) -> None:
        for run in self._all():
            run.tick()
        if self._now >= self._heads.due:
            self._heads.renew(self._now)

    # ---- operators

    def _command(self, event: events.CommandArrived) -> None:
        try:
            self._judge(event)
        except Exception as error:  # a defect of ours must not come again with every start, and end it each time
            self._out.step()
            self.commands.count(event, self._out)
            text = f"the aggregator could not carry this out ({type(error).__name__}); tell those who run it"
            self._out.tell(event, "defect", {}, text=text)

    def _judge(self, event: events.CommandArrived) -> None:
        verdict = self.commands.judge(event, self._out, self._present(event.command))
        seen = self._liveness.ages(self._now)
        if verdict.why != "ok":
            counter = self.commands.counter(event) if verdict.why == REPLAYED else 0
            self._out.tell(event, verdict.why, seen, text=verdict.text, counter=counter)
        elif self._obey(event, verdict.run, seen):
            self._out.tell(event, "ok", seen)

    def _present(self, command: str) -> Present:
        return Present(
            sites=self._sites(),
            runs={name: run.state for name, run in self.runs.items()},
            by={name: run.operator for name, run in self.runs.items()},
            taken=self._taken,
            busy=self._busy,
            versions={name: run.version for name, run in self.runs.items()},
            measured=frozenset(run.name for run in self._all() if command in OF_VERSIONS and run.best is not None),
            complete=frozenset(run.name for run in self._all() if run.complete is not None),
            catalogue=self.catalogue,
        )

    def _obey(self, event: events.CommandArrived, run: str, seen: Mapping[str, float]) -> bool:
        """Carry out a command; tells whether it is done, which otherwise means that its answer is being worked out."""
        if event.targets:
            for site in event.targets:
                self._out.await_reply(event.id, site)
                self._out.pass_on(site, event.raw)
        elif (wanted := TRANSITIONS.get(event.command)) is not None:
            until = event.arguments.get("until") if event.command in GOES_ON_AGAIN else None
            if isinstance(until, int):
                self.runs[run].end_at(until)
            reason = f"{event.command.removeprefix('run.')}-by-{event.operator}"[:64]
            self.runs[run].at(self._now).change(wanted[0], reason)
        elif (sanction := self.commands.sanction(event, self._root_registry.version)) is not None:
            self._sanction(*sanction, event.operator)
        elif event.command in PREPARED:
            self._busy.add(event.operator)
            model = self.catalogue.resolve(str(event.arguments.get("name", "")))
            version, chosen = (None, "") if event.command not in OF_VERSIONS else self.runs[run].meant(event.arguments)
            self._out.do(effects.Prepare(command=event, run=run, model=model, version=version, chosen=chosen))
            return False
        elif event.command == "run.delete":
            self._delete(run)
        elif event.command in ("model.promote", "model.rollback"):
            self._promote(event)
        elif event.command == "dead.purge":
            number = event.arguments.get("id")
            self._out.write(writes.ForgetLetters(number=number if isinstance(number, int) else None))
        else:
            self._out.do(effects.LookUp(command=event, seen=seen))
            return False
        return True

    def _prepared(self, event: events.Prepared) -> None:
        """What a command asked for is ready: it counts from here on, unless another one was faster."""
        if event.command.command in PREPARED:
            self._busy.discard(event.command.operator)
        made, reason, text = event.made, event.reason, event.text
        match made:
            case NewRun() if made.rules.run in self._taken:
                reason, text = "run_exists", TEXTS["run_exists"]
            case NewRun(rules=rules):
                self._out.write(writes.CreateRun(new=made))
                bundle = {"code": rules.bundle} if rules.bundle else {}
                self._out.audit("run_created", {"run": rules.run, "digest": made.digest, **bundle})
                self._add(rules, made.remembered)
                if made.registry != self.registry.version:
                    self.runs[rules.run].start()
            case NewModel(name=name) if self.catalogue.has(name):
                reason, text = "name_taken", TEXTS["name_taken"]
            case NewModel(name=name):
                self.catalogue.publish(name)
                self._out.write(writes.AddModel(model=made))
                self._out.audit("published", {"name": name, "run": made.run, "version": made.version})
            case LettersReplayed(numbers=numbers):
                self._out.write(*(writes.ForgetLetters(number=number) for number in numbers))
            case CodeOffered(run=run) if run in self.runs:
                self._out.write(writes.OfferCode(offered=made))
            case _:
                pass
        values = event.values if reason == "ok" else {}
        self._out.tell(event.command, reason, {}, text=text, values=values)

    def _delete(self, run: str) -> None:
        del self.runs[run]
        self._out.write(writes.DeleteRun(run=run))
        self._out.audit("run_deleted", {"run": run})
        self._heads.renew(self._now, announce=True)

    def _promote(self, event: events.CommandArrived) -> None:
        channel = str(event.arguments["channel"])
        name = None if event.command == "model.rollback" else str(event.arguments["name"])
        if name is not None:
            self.catalogue.promote(name, channel)
        self._out.write(writes.Promote(channel=channel, name=name))
        now = name if name is not None else self.catalogue.roll_back(channel)
        self._out.audit("channel", {"channel": channel, "name": now, "by": event.command})

    def _sanction(self, site: str, sanction: Sanction, operator: str) -> None:
        self._out.write(writes.SetSanction(site=site, sanction=sanction, operator=operator))
        if sanction.kind != "none":
            for run in self._all():
                run.refuse_all_of(site, sanction.kind)
        if sanction.kind == "revoked":
            self._out.do(effects.CutOff(site=site))
            self._use_registry(self._root_registry)
            for run in self._all():
                run.cut_off(self.registry)

    # ---- members and strangers

    def _registry_changed(self, registry: Registry, record: bytes) -> None:
        if registry.version <= self._root_registry.version:
            return
        self.commands.follow(registry)
        self._use_registry(registry)
        self._liveness.expect(self._sites(), self._now)
        self._out.write(writes.StoreRegistry(version=registry.version, record=record))
        self._out.audit("registry", {"version": registry.version})
        for run in self._all():
            run.follow(self.registry)
        if not self.runs:
            self._heads.renew(self._now, announce=True)

    def _use_registry(self, registry: Registry) -> None:
        self._root_registry, self.registry = registry, self.commands.narrowed(registry)
        for run in self.runs.values():
            run.use(self.registry)
        self._out.do(effects.UseRegistry(registry=self.registry))

    # ---- small things

    def _seen(self, site: str) -> None:
        self._liveness.seen(site, self._now)
        for run in self.runs.values():
            run.liveness.seen(site, self._now)

    def _all(self) -> list[Run]:
        return [run.at(self._now) for run in self.runs.values()]

    def _named(self, name: str) -> list[Run]:
        """The run of this name, or nothing: what is said about a run that was deleted meanwhile goes unheard."""
        return [self.runs[name].at(self._now)] if name in self.runs else []

    def _holding(self, id: bytes) -> list[Run]:
        return [run.at(self._now) for run in self.runs.values() if run.holds(id)]

    def _sites(self) -> set[str]:
        return {participant.name for participant in self.registry.members(Role.SITE)}
