"""Whatever happens in whatever order, and wherever the worker dies: its promises hold."""

from __future__ import annotations

import itertools
import random
from datetime import datetime
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.runtime.actor import Tick
from protocol.messages import Head, Outcome, Receipt, RunHead, RunState
from worker.domain import effects, events, writes
from worker.domain.effects import LookAtClock
from worker.domain.events import ClockSeen, CommandSeen, Drain, RunAnswered, RunCommanded, Undrain
from worker.domain.state import CODE_LOST, Sealed, UpdateRow
from worker.journal.journal import Journal
from worker.policy import OPEN, SitePolicy
from worker.rules.worker import WorkerRules, WorkerTerms

FINAL = [Outcome.MERGED, Outcome.REJECTED, Outcome.SUPERSEDED, Outcome.RUN_ABORTED, Outcome.RUN_ENDED]
QUOTA = 2
CODES = st.sampled_from([b"", b"C" * 32, b"O" * 32])
"""Whose code trains: the site's own, or one of two archives."""
DIES = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2])
"""When the process dies within a turn: not, before the commit, between the commit and its effects."""


class WorkerUnderFire(RuleBasedStateMachine):
    """The real rules over the real journal; the shell's part is played by chance, and may die between any two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = (number.to_bytes(16, "big") for number in itertools.count(1))
        self.journal = Journal(None, "alpha")
        self.now = 0.0
        self.sealed: set[tuple[int, int]] = set()
        """Every (epoch, sequence) that something was sealed under, ever."""
        self.made: dict[tuple[str, int], int] = {}
        """Updates journalled per run and base version."""
        self.updates: dict[bytes, UpdateRow] = {}
        self.settled: dict[bytes, int] = {}
        self.head = 0
        self.newest = -1
        self.kept = self.journal.load()
        self.used: dict[tuple[int, int], bytes] = {}
        """The aggregator's replay cache: whose message has which epoch and sequence."""
        self.policy = OPEN
        self.own_trainer = True
        self.night = True
        """Whether it is an hour the site trains in, if it has such hours."""
        self.restart()

    @initialize(
        used=st.integers(0, 6), epochs=st.integers(1, 3), asks=st.booleans(), nights=st.booleans(), own=st.booleans()
    )
    def the_aggregator_remembers_more_than_the_journal(
        self, used: int, epochs: int, asks: bool, nights: bool, own: bool
    ) -> None:
        """As after a restored backup; and the hospital has its own say and its own trainer, or none."""
        self.policy = SitePolicy(ask_first=asks, hours="20:00-06:00" if nights else None)
        self.own_trainer = own
        self.restart()
        self.used = {(epoch, 1 + number): b"another" for epoch in range(epochs) for number in range(used)}

    def restart(self) -> None:
        """What a new process does: rules from the journal, nothing else survives."""
        self.machine = WorkerRules(
            self.journal.load(),
            WorkerTerms(heartbeat=20.0, policy=self.policy, own_trainer=self.own_trainer),
            site="alpha",
            new_id=lambda: next(self.ids),
            dice=random.Random(1),
        )
        self.pending: list[Any] = []

    def turn(self, *batch: Any, dies: int = 0) -> None:
        """One turn of the actor; `dies` 1: before the commit, 2: after it, before any effect."""
        steps = [self.machine.step(event, self.now) for event in (*batch, Tick())]
        writes = [write for step in steps for write in step.writes]
        if dies == 1:
            self.restart()
            return
        self.journal.commit(writes)
        self.look_at(writes)
        if dies == 2:
            self.restart()
            return
        effects = [effect for step in steps for effect in step.effects]
        self.look_at_effects(effects)
        self.pending += effects

    def look_at(self, written: list[Any]) -> None:
        for write in written:
            match write:
                case writes.AddUpdate(row=row):
                    assert row.id not in self.updates
                    assert "r" not in self.journal.load().left
                    self.updates[row.id] = row
                    self.made[row.run, row.base_version] = self.made.get((row.run, row.base_version), 0) + 1
                case writes.ReplaceUpdate(row=row):
                    self.updates[row.id] = row
                case writes.SettleUpdate(row=row, reason=reason):
                    self.settled[row.id] = self.settled.get(row.id, 0) + 1
                    if reason == "spool_lost":
                        self.made[row.run, row.base_version] -= 1

    def look_at_effects(self, done: list[Any]) -> None:
        kept = self.journal.load()
        journalled = {row.row: row for row in kept.updates}
        for effect in done:
            match effect:
                case effects.Train(epoch=epoch, sequence=sequence, evaluation=evaluation, bundle=bundle):
                    row = {row.run: row for row in kept.runs}["r"]
                    assert row.state == (RunState.STOPPED if effect.measure_only else RunState.RUNNING)
                    assert not effect.measure_only or (row.evaluate and not row.evaluated)
                    deployed = kept.deployments.get("r")
                    assert (deployed is not None and deployed.code == bundle) if bundle else self.own_trainer
                    assert bundle == {row.run: row.bundle for row in kept.runs}["r"]
                    assert "r" not in kept.left
                    assert self.night or self.policy.hours is None
                    assert kept.answers.get("r", not self.policy.ask_first)
                    assert not kept.drained
                    self.seal(epoch, sequence)
                    if evaluation:
                        self.seal(epoch, sequence - 1)
                case effects.Reseal(epoch=epoch, sequence=sequence):
                    self.seal(epoch, sequence)
                case effects.Upload(row=row):
                    assert journalled[row.row] == row
                case effects.Publish(row=number):
                    assert self.journal.outgoing(number) is not None
                case effects.KeepLast(run=run):
                    assert self.journal.version_record(run) == self.machine._runs[run].digest

    def seal(self, epoch: int, sequence: int) -> None:
        kept = self.journal.load()
        assert (epoch, sequence) not in self.sealed
        assert sequence >= 1
        assert epoch < kept.epoch or sequence <= kept.sequence
        self.sealed.add((epoch, sequence))

    # ---- what may happen

    @rule(step=st.integers(-2, 3), evaluate=st.booleans(), bundle=CODES, dies=DIES)
    def a_version_is_announced(self, step: int, evaluate: bool, bundle: bytes, dies: int) -> None:
        number = max(0, self.newest + step)
        self.newest = max(self.newest, number)
        digest = (number.to_bytes(31, "big") + bundle[:1]).rjust(32, b"v")
        seen = events.VersionSeen(
            delivery="d",
            run="r",
            version=number,
            record=digest,
            digest=digest,
            updates_per_base=QUOTA,
            evaluate=evaluate,
            bundle=bundle,
        )
        self.turn(seen, dies=dies)

    @rule(step=st.integers(-1, 2), state=st.sampled_from(RunState), listed=st.booleans(), dies=DIES)
    def a_head_is_seen(self, step: int, state: RunState, listed: bool, dies: int) -> None:
        number = max(0, self.head + step)
        self.head = max(self.head, number)
        run = RunHead(run="r", state=state, reason="ok", version=max(0, self.newest), record=b"v" * 32)
        head = Head(number=number, issued=0, not_after=10**9, registry=b"", runs=(run,) if listed else ())
        self.turn(events.HeadSeen(delivery=None, head=head, wall=0.0), dies=dies)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), good=st.sampled_from([True, True, True, False]), dies=DIES)
    def the_shell_answers(self, data: st.DataObject, good: bool, dies: int) -> None:
        effect = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))
        for answer in self.answers(effect, good):
            self.turn(answer, dies=dies)

    def answers(self, effect: Any, good: bool) -> list[Any]:
        match effect:
            case effects.Train(id=id, evaluation=evaluation):
                sealed = Sealed(envelope=id, chunks=(id * 2,), key=b"k")
                failed = events.TrainingFailed(id=id, code=CODE_LOST if self.night else "trainer")
                done = events.Trained(id=id, sealed=sealed) if good else failed
                measured = [events.Evaluated(id=id, envelope=b"e")] if evaluation else []
                return [*measured, done] if not (effect.measure_only and good) else measured
            case effects.Upload(row=row):
                return [events.Uploaded(row=row.row) if good else events.SendingFailed(row=row.row, lost=False)]
            case effects.Reseal(row=row, epoch=epoch, sequence=sequence):
                sealed = Sealed(envelope=b"again", chunks=row.chunks, key=b"k")
                again = events.Resealed(row=row.row, epoch=epoch, sequence=sequence, sealed=sealed)
                return [again if good else events.SendingFailed(row=row.row, lost=True)]
            case LookAtClock():
                return [ClockSeen(local=datetime(2026, 5, 4, 23 if self.night else 12, 59))]
            case effects.Publish(row=number):
                rows = [row for row in self.journal.load().updates if row.row == number]
                return [events.Published(row=number), *[self.deliver(row) for row in rows] * (1 if good else 2)]
            case _:
                return []

    @precondition(lambda self: self.used)
    @rule(data=st.data(), outcome=st.sampled_from([*FINAL, Outcome.REUPLOAD]), dies=DIES)
    def a_receipt_comes(self, data: st.DataObject, outcome: Outcome, dies: int) -> None:
        place = data.draw(st.sampled_from(sorted(self.used)))
        self.turn(self.receipt(*place, outcome), dies=dies)

    def receipt(self, epoch: int, sequence: int, outcome: Outcome, message: bytes = b"") -> events.ReceiptSeen:
        said = Receipt(
            message=message or self.used[epoch, sequence],
            epoch=epoch,
            sequence=sequence,
            outcome=outcome,
            reason="ok",
            highest_epoch=max(used for used, _ in self.used),
        )
        return events.ReceiptSeen(delivery="d", receipt=said, version=0, raw=b"raw")

    def deliver(self, row: UpdateRow) -> events.ReceiptSeen:
        """What the aggregator answers to an update: its replay cache decides."""
        place = (row.epoch, row.sequence)
        if self.used.setdefault(place, row.id) == row.id:
            return self.receipt(*place, Outcome.JOURNALLED)
        return self.receipt(*place, Outcome.SEQUENCE_REUSED, row.id)

    @rule(approved=st.sampled_from([True, True, False]), dies=DIES)
    def somebody_at_the_hospital_answers(self, approved: bool, dies: int) -> None:
        self.turn(RunAnswered(run="r", approved=approved), dies=dies)

    @rule(drained=st.booleans(), dies=DIES)
    def an_operator_drains_the_site(self, drained: bool, dies: int) -> None:
        self.turn(Drain() if drained else Undrain(), dies=dies)

    @rule(command=st.sampled_from(["deploy", "deploy", "withdraw", "join", "leave"]), code=CODES, dies=DIES)
    def an_operator_orders_something_about_the_run(self, command: str, code: bytes, dies: int) -> None:
        self.turn(self.ordered(command, code), dies=dies)

    def ordered(self, command: str, code: bytes = b"") -> RunCommanded:
        seen = CommandSeen(
            delivery="d", operator="o", signer=b"k" * 16, counter=1, id=b"i" * 16, command=f"run.{command}"
        )
        return RunCommanded(command=seen, run="r", code=code)

    @precondition(lambda self: self.policy.hours is not None)
    @rule()
    def a_day_or_a_night_begins(self) -> None:
        self.night = not self.night

    @rule(seconds=st.sampled_from([0.5, 30.0, 1000.0, 100_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @rule()
    def the_process_dies(self) -> None:
        self.restart()

    # ---- what has to hold

    @invariant()
    def no_update_is_settled_twice(self) -> None:
        assert all(count == 1 for count in self.settled.values())

    @invariant()
    def no_version_gets_more_updates_than_its_quota(self) -> None:
        assert all(count <= QUOTA for count in self.made.values()), self.made

    @invariant()
    def nothing_that_was_noted_goes_back(self) -> None:
        before, self.kept = self.kept, self.journal.load()
        assert (self.kept.head, self.kept.epoch) >= (before.head, before.epoch)
        assert self.kept.epoch > before.epoch or self.kept.sequence >= before.sequence
        versions = {run.run: run.version for run in self.kept.runs}
        assert all(versions[run.run] >= run.version for run in before.runs)
        assert {row.id for row in self.kept.updates} == self.updates.keys() - self.settled.keys()

    @invariant()
    def an_update_is_counted_under_one_number_only(self) -> None:
        counted = [id for id in self.used.values() if id != b"another"]
        assert len(counted) == len(set(counted))

    @invariant()
    def time_alone_always_moves_what_is_due(self) -> None:
        deadline = self.machine.deadline()
        assert deadline is not None
        assert deadline < self.now + 10**6

    def teardown(self) -> None:
        """Leave the worker alone with a friendly world: everything is sent, settled and idle in the end."""
        self.night = True
        self.turn(RunAnswered(run="r", approved=True), Undrain())
        self.turn(self.ordered("join"), self.ordered("deploy", b"C" * 32))
        self.a_version_is_announced(1, False, b"C" * 32, 0)
        self.a_head_is_seen(1, RunState.RUNNING, True, 0)
        for _ in range(100):
            effects, self.pending = self.pending, []
            answers = [answer for effect in effects for answer in self.answers(effect, True)]
            if not answers:
                if not self.journal.load().updates and self.machine.deadline() > self.now + 10:
                    break
                counted = set(self.used.values())
                settled = [row for row in self.journal.load().updates if row.id in counted]
                answers = [self.receipt(row.epoch, row.sequence, Outcome.MERGED) for row in settled]
                self.now += 400.0
            for answer in answers:
                self.turn(answer)
            self.turn()
        kept = self.journal.load()
        assert not kept.updates
        assert not kept.messages
        assert self.made["r", self.newest] == QUOTA
        self.journal.close()


WorkerUnderFire.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTheWorkerUnderFire = WorkerUnderFire.TestCase
