"""The worker's rules, without any I/O: announcements and receipts in, decisions out.

1. What is announced is noted, then acked; only the newest version of a run counts, and versions, registries and the
   head's number never go back.
2. A running run's newest version is trained from until `updates_per_base` updates have been made from it, and only
   while fewer than that many of the run's updates (and fewer than two) are on their way: behind a slow line or a busy
   aggregator more of them would only grow old. A version that arrives in mid-training does not interrupt it; the end
   of its run does.
3. A sequence number is reserved in the journal before anything is sealed under it. A number may stay unused.
4. An update is journalled with its signed bytes before anything leaves the site, then uploaded, then published; a
   failure or a restart repeats these steps with the same bytes until a final receipt comes.
5. A reused sequence means that the journal is older than what the aggregator has seen (a restored backup): a higher
   key epoch begins; that update, and whatever has not left the site yet, is sealed again under it. Message ids stay.
6. Nothing is decided while events of one batch are still coming in: `Tick`, which ends each batch, decides.
7. A version or receipt that starts nothing waits up to `HOLD` seconds for a commit to share, and is acked after it; of
   several versions of a run only the newest is written.
8. The site has its own say (`gate.py`): a drained site begins no training, nor any site outside its hours; a run it
   wants to be asked about waits for a person's yes, and a no ends the training under way. What is made is sent.
9. A run that brings code is trained by exactly that code, once an operator has deployed it for this run, and a run
   that was left is not trained (`deployments.py`).
10. A revoked site trains and sends nothing, until it is a member again (`standing.py`).
11. The last version of a run that has ended is fetched, for the site's own use (`fetching.py`), and measured, if the
    run evaluates (`last_evaluation.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from broker.runtime.actor import Step, Tick
from protocol.messages import Head, RunState
from protocol.registry import Registry
from worker.domain import effects, events, writes
from worker.domain.state import CODE_LOST, ENDED, WITH_ITS_RUN, RunRow, Snapshot, UpdateRow
from worker.policy import OPEN, SitePolicy
from worker.rules import duplicate_worker
from worker.rules.commands import CommandCounter
from worker.rules.decisions import Decisions, pause
from worker.rules.fetching import HeadPolling, LastVersions
from worker.rules.gate import Gate
from worker.rules.last_evaluation import LastEvaluations
from worker.rules.membership import Membership
from worker.rules.outgoing import Outgoing
from worker.rules.reporting import Reports, Shown

HEAD_TOLERANCE = 10 * 60.0
"""Seconds by which this machine's clock may be wrong."""
HOLD = 0.25
"""Seconds; with sites that train for milliseconds this saves every third commit, with slower ones it costs nothing."""
READ_NOTHING_HELD = effects.ReportStatus | effects.Upload | effects.Publish
"""What overtakes what is held; nothing else does, since it may read that: a run's last version, say. A sign of life
comes with every version, which would otherwise be committed alone."""
ON_THEIR_WAY = 2
"""Updates of a run without a final receipt that a site may always have: one is sent while the next is trained."""
NOT_FAILED = ("-", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTerms:
    """What is fixed about a worker while it runs."""

    heartbeat: float
    """Seconds between signs of life."""
    policy: SitePolicy = OPEN
    own_trainer: bool = True
    """Whether the site has a trainer for runs that bring no code."""


class WorkerRules:
    """What the worker does next. Rebuilt from the journal's snapshot, it takes up everything that was pending."""

    def __init__(
        self,
        snapshot: Snapshot,
        terms: WorkerTerms,
        *,
        site: str,
        new_id: Callable[[], bytes],
        dice: random.Random,
        membership: Membership | None = None,
    ) -> None:
        """`new_id` gives message ids of 16 random bytes; `membership`: None judges nothing."""
        self._heartbeat = terms.heartbeat
        self._new_id = new_id
        self._dice = dice
        self._sending = Outgoing(snapshot, site, dice)
        self._gate = Gate(snapshot, terms.policy, terms.own_trainer)
        self._obeying = CommandCounter(snapshot.counters)
        self._membership = membership or Membership(None, Registry(version=0, entries=()))
        self._pulls = HeadPolling(dice)
        self._keeping = LastVersions(dice)
        self._last_evaluations = LastEvaluations()
        self._reporting = Reports(terms.heartbeat)
        self._head = snapshot.head
        self._registry = snapshot.registry
        self._registry_digest = snapshot.registry_digest
        self._runs = {row.run: row for row in snapshot.runs}
        self._training: effects.Train | None = None
        self._failures = 0
        self._blocked = False
        self._failed = NOT_FAILED
        self._train_at = float("-inf")
        self._decided = Decisions()
        self._held = Decisions()
        self._held_until = float("inf")

    def deadline(self) -> float | None:
        """When `Tick` should come at the latest."""
        due = [self._pulls.at, self._reporting.at, self._held_until, self._keeping.at]
        if not self._membership.why:
            due.append(self._sending.deadline())
        if self._training is None and self._next() is not None:
            due.append(max(self._train_at, self._gate.deadline()))
        return min(due)

    def step(self, event: events.Event | Tick, now: float) -> Step[writes.Write, effects.Effect]:
        """What `event` leads to at `now`."""
        decided = self._decided = Decisions()
        match event:
            case Tick():
                self._tick(now)
            case events.VersionSeen():
                self._on_version(event)
                self._hold(now)
            case events.HeadSeen():
                self._on_head(event)
            case events.HeadWanted(connected=connected):
                self._pulls.wanted(now, connected=connected)
                if connected:
                    self._sending.connected(now)
            case events.FetchFailed():
                self._pulls.failed(now)
            case events.HubAnswered():
                self._membership.welcome()
            case events.SiteLeftOut(run=run):
                self._membership.on_left_out(event, self._runs.get(run, RunRow(run=run)))
                if not self._membership.why:  # it may be that the hub has yet to seal it for this site
                    self._pulls.failed(now)
            case events.RegistrySeen():
                self._on_registry(event)
            case events.ReceiptSeen():
                decided.effects.append(effects.Settle(delivery=event.delivery, what="receipt"))
                self._membership.on_receipt(event.receipt)
                settled = self._sending.on_receipt(event, now, decided)
                if settled is not None and event.receipt.outcome in WITH_ITS_RUN:
                    self._count(settled, -1)  # it may go on from the same version
                    self._pulls.doubt(settled.run, now)
                if settled is not None or not decided.writes:
                    self._hold(now)
            case events.Evaluated():
                self._on_evaluated(event)
            case events.Trained():
                self._on_trained(event, now)
            case events.TrainingFailed():
                self._on_training_failed(event, now)
            case events.NotKept(run=run):
                self._keeping.failed(run, now)
            case events.CommandSeen():
                self._obeying.on_command(event, decided)
            case events.Obeyed(envelope=envelope):
                self._obeying.on_obeyed(event, self._sending.add_message(envelope, decided))
            case events.Uploaded() | events.SendingFailed() | events.Resealed() | events.Published():
                if isinstance(event, events.Published):
                    self._obeying.on_published(event.row, decided)
                lost = self._sending.on_progress(event, now, decided)
                if lost is not None:
                    self._count(lost, -1)
            case events.RunAnswered() | events.ClockSeen() | events.Drain() | events.Undrain() | events.RunCommanded():
                self._gate.on_said(event, self._runs, self._training, now, decided)
            case _:
                assert_never(event)
        reads = any(not isinstance(effect, READ_NOTHING_HELD) for effect in self._decided.effects)
        if self._decided.writes or reads or now >= self._held_until:
            self._release()
        return Step(tuple(self._decided.writes), tuple(self._decided.effects))

    def _hold(self, now: float) -> None:
        """Let what this step writes, and what follows from it, wait for a commit to share.

        While something is held, so is the ack of a message that came again: what the first one said is not noted yet.
        """
        if not self._decided.writes and not self._held.writes:
            return
        newer = {write.row.run for write in self._decided.writes if isinstance(write, writes.NoteVersion)}
        kept = (w for w in self._held.writes if not isinstance(w, writes.NoteVersion) or w.row.run not in newer)
        self._held.writes = [*kept, *self._decided.writes]
        self._held.effects += self._decided.effects
        self._held_until = min(self._held_until, now + HOLD)
        self._decided = Decisions()

    def _release(self) -> None:
        """Put what was held before what this step decided: later rows of a run hold all that earlier ones did."""
        held, self._held, self._held_until = self._held, Decisions(), float("inf")
        self._decided.writes[:0] = held.writes
        self._decided.effects[:0] = held.effects

    # ---- what is announced

    def _on_version(self, event: events.VersionSeen) -> None:
        if event.delivery is not None:
            self._decided.effects.append(effects.Settle(delivery=event.delivery, what="version"))
        self._pulls.worked()
        known = self._runs.get(event.run, RunRow(run=event.run))
        if event.version < known.version or event.digest == known.digest:
            return
        self._membership.welcome()
        news = replace(
            known,
            version=event.version,
            digest=event.digest,
            updates_per_base=event.updates_per_base,
            evaluate=event.evaluate,
            bundle=event.bundle,
        )
        if event.version > known.version:
            news = replace(news, sent=0, evaluated=False)
        # The run with the latest news goes last, which is where `_candidate` looks first.
        self._runs.pop(event.run, None)
        self._runs[event.run] = news
        self._decided.writes.append(writes.NoteVersion(row=news, record=event.record))

    def _on_head(self, event: events.HeadSeen) -> None:
        if event.delivery is not None:
            self._decided.effects.append(effects.Settle(delivery=event.delivery, what="head"))
        head = event.head
        if head.number < self._head:
            # A message may come again, and a newer head may be announced while an older one is being pulled; but what
            # is pulled may not be older than what was known before.
            if head.number < event.known:
                self._alarm("head.went_back", number=head.number, seen=self._head)
            return
        if event.wall > head.not_after + HEAD_TOLERANCE:
            self._alarm("head.stale", number=head.number, overdue_s=round(event.wall - head.not_after))
        self._pulls.told()
        self._last_evaluations.heard(head)
        wanted: list[effects.Effect] = []
        if head.registry != self._registry_digest:
            wanted.append(effects.FetchRegistry(digest=head.registry))
        if head.number > self._head:
            self._head = head.number
            self._decided.writes.append(writes.NoteHead(number=head.number))
            self._apply(head)
        for run in head.runs:
            known = self._runs.get(run.run, RunRow(run=run.run))
            reissued = run.version == known.version and run.record != known.digest
            concerns = run.state not in ENDED or (run.state == RunState.STOPPED and known.version >= 0)
            if concerns and (run.version > known.version or reissued):
                wanted.append(effects.FetchVersion(run=run.run, version=run.version, digest=run.record))
        self._decided.effects += wanted
        if not wanted:
            self._pulls.worked()

    def _apply(self, head: Head) -> None:
        named = {run.run: run.state for run in head.runs}
        for name in {**self._runs, **named}:
            known = self._runs.get(name, RunRow(run=name))
            if name in named:
                news = replace(known, state=named[name], listed=True)
            else:
                news = replace(known, state=RunState.STOPPED) if known.listed else known
            if news != known:
                self._runs[name] = news
                self._decided.writes.append(writes.NoteRun(row=news))
        training = self._training
        if training is not None and self._ended(training):
            self._decided.effects.append(effects.AbortTraining())

    def _on_registry(self, event: events.RegistrySeen) -> None:
        version = event.registry.version
        if version < self._registry:
            self._alarm("registry.went_back", version=version, known=self._registry)
            return
        self._registry_digest = event.digest
        if version == self._registry:
            return  # signed twice; the list in force stays
        self._registry = version
        self._membership.on_registry(event.registry)
        self._decided.writes.append(writes.NoteRegistry(version=version, digest=event.digest, record=event.record))
        self._decided.effects += [effects.UseRegistry(registry=event.registry), effects.PullHead(known=self._head)]

    # ---- training

    def _wanting(self) -> Iterator[RunRow]:
        """Runs that could do with an update of this site, those with the latest news first."""
        for run in () if self._membership.why else reversed(self._runs.values()):
            if run.state != RunState.RUNNING or run.version < 0 or run.run in self._pulls.doubted:
                continue
            most = max(ON_THEIR_WAY, run.updates_per_base)
            if run.sent < run.updates_per_base and self._sending.on_their_way(run.run) < most:
                yield run

    def _candidate(self) -> RunRow | None:
        return next((run for run in self._wanting() if self._gate.lets(run)), None)

    def _next(self) -> RunRow | None:
        """What to train next, or else to measure."""
        if (run := self._candidate()) is not None or self._membership.why:
            return run
        return self._last_evaluations.due(self._runs.values(), self._gate)

    def _ended(self, training: effects.Train) -> bool:
        run = self._runs[training.run]
        return not self._last_evaluations.allows(run) if training.measure_only else run.state in ENDED

    def _unwanted(self, training: effects.Train) -> bool:
        return self._ended(training) or self._gate.forbids(training.run, training.bundle)

    def _decide(self, now: float) -> effects.Train | None:
        run = self._next()
        if run is None or self._training is not None or now < self._train_at:
            return None
        if not self._gate.open(now, self._decided):
            return None
        evaluation = self._new_id() if run.evaluate and not run.evaluated else b""
        sequence = self._sending.reserve(2 if evaluation else 1, self._decided)
        self._training = effects.Train(
            run=run.run,
            version=run.version,
            epoch=self._sending.epoch,
            sequence=sequence,
            id=self._new_id(),
            evaluation=evaluation,
            count=run.sent,
            bundle=run.bundle,
            measure_only=run.state == RunState.STOPPED,
        )
        return self._training

    def _on_evaluated(self, event: events.Evaluated) -> None:
        training = self._training
        if training is None or training.id != event.id:
            return
        self._training = None if training.measure_only else replace(training, evaluation=b"")
        if training.measure_only:
            self._failures, self._blocked, self._failed = 0, False, NOT_FAILED
            if self._unwanted(training):
                return
        self._measured(training)
        if event.envelope:
            self._sending.add_message(event.envelope, self._decided)

    def _measured(self, training: effects.Train) -> None:
        """Measure a version no more, while it is the newest."""
        run = self._runs[training.run]
        if run.version == training.version:
            self._note(replace(run, evaluated=True))

    def _on_trained(self, event: events.Trained, now: float) -> None:
        training = self._training
        if training is None or training.id != event.id or self._unwanted(training):
            self._decided.effects.append(effects.DropSpool(chunks=event.sealed.chunks))
        if training is None or training.id != event.id:
            return
        self._training, self._failures, self._blocked, self._failed = None, 0, False, NOT_FAILED
        if self._unwanted(training):
            return
        update = UpdateRow(
            row=0,
            id=training.id,
            run=training.run,
            base_version=training.version,
            epoch=training.epoch,
            sequence=training.sequence,
            chunks=event.sealed.chunks,
        )
        self._sending.add_update(update, event.sealed, now, self._decided)
        self._count(update, 1)

    def _on_training_failed(self, event: events.TrainingFailed, now: float) -> None:
        training = self._training
        if training is None or training.id != event.id:
            return
        self._training = None
        # Another run goes first next time: code that never loads must not keep the site from everything else.
        self._runs = {training.run: self._runs[training.run]} | self._runs
        if training.measure_only and self._last_evaluations.in_vain(event.code):
            self._measured(training)
        if event.code == CODE_LOST:
            self._gate.deployments.lost(training.run, self._decided)
        self._blocked = event.code != "aborted"
        if not self._blocked:
            return
        self._failed = (event.code, event.case)
        if event.code == "disk_full":
            self._train_at = now + self._heartbeat
        else:
            self._failures += 1
            self._train_at = now + pause(self._dice, self._failures, longest=300.0)

    def _count(self, update: UpdateRow, change: int) -> None:
        """Count an update towards the version it was made from, while that is still the newest."""
        run = self._runs[update.run]
        if run.version == update.base_version:
            self._note(replace(run, sent=max(0, run.sent + change)))

    def _note(self, run: RunRow) -> None:
        self._runs[run.run] = run
        self._decided.writes.append(writes.NoteRun(row=run))

    # ---- time

    def _tick(self, now: float) -> None:
        if self._pulls.due(now):
            self._decided.effects.append(effects.PullHead(known=self._head))
        self._membership.tick(self._decided)
        begun = self._decide(now)
        self._gate.turned()
        if not self._membership.why:
            self._sending.tick(now, self._decided)
        self._reporting.tick(self._shown(), now, self._decided, member=not self._membership.why)
        if not self._membership.why:
            self._keeping.tick(self._runs.values(), now, self._decided)
        if begun is not None:  # after the report, which would hide what a quick trainer has said already
            self._decided.effects.append(begun)

    def _shown(self) -> Shown:
        shown = self._doing()
        if shown.code != "-":
            return shown
        if self._failed == NOT_FAILED and self._sending.duplicate.seen:
            return shown._replace(code=duplicate_worker.CODE)
        code, case = self._failed
        return shown._replace(code=code, case=case)

    def _doing(self) -> Shown:
        training = self._training
        if training is not None:
            return Shown("evaluating" if training.evaluation else "training", training.run, training.version)
        last = next(reversed(self._runs.values()), RunRow(run=""))
        if self._membership.why:
            return Shown("revoked", last.run, last.version)
        candidate = self._candidate()
        if self._blocked and candidate is not None:
            return Shown("blocked", candidate.run, candidate.version)
        if self._sending.busy:
            return Shown("sending", last.run, last.version)
        if self._gate.drained:
            return Shown("drained", last.run, last.version)
        waiting = self._gate.waiting(self._wanting(), candidate)
        if waiting is not None:
            run, lacks = waiting
            return Shown("waiting", run.run, run.version, lacks or "-")
        return Shown("idle", last.run, last.version)

    def _alarm(self, event: str, **details: object) -> None:
        self._decided.effects.append(effects.Alarm(event=event, details=details))
