"""Programs with one mistake each, made by subclassing: the simulation has to catch every one.

What is shipped has no switch for any of this. A mutant names the faults its mistake needs to show itself; whatever
else goes wrong is up to the seed. Each docstring says which promise is broken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aggregator.domain import effects, events
from aggregator.domain.state import UpdateRow, UpdateState
from aggregator.domain.writes import Send, SendRaw
from aggregator.journal.journal import Journal
from aggregator.rules import planning
from aggregator.rules.federation import AggregatorRules
from aggregator.rules.run import Run
from aggregator.strategy import plan
from broker.runtime.actor import Actor, Step, Tick
from protocol.messages import Outcome
from tests.simulation.centre import Centre
from tests.simulation.hospital import Hospital
from tests.simulation.world import Parts
from worker.domain import effects as worker_effects
from worker.domain import events as worker_events
from worker.domain import writes as worker_writes
from worker.domain.state import UpdateRow as WorkerUpdateRow
from worker.journal.journal import Journal as WorkerJournal
from worker.rules.worker import WorkerRules

# ---- the loop


class EffectsFirst(Actor):
    """Carries out some effects before the commit."""

    early: tuple[type, ...] = ()

    def turn(self, events: Sequence[Any]) -> None:
        """As the real one, with the two halves in the wrong order for `early` effects."""
        while True:
            steps = [self._rules.step(event, self._clock()) for event in (*events, Tick())]
            effects = [effect for step in steps for effect in step.effects]
            for effect in effects:
                if isinstance(effect, self.early):
                    self._perform(effect)
            writes = [write for step in steps for write in step.writes]
            events = self._write(writes)
            for effect in effects:
                if not isinstance(effect, self.early):
                    self._perform(effect)
            if not events:
                return


class AckOnArrival(AggregatorRules):
    """Settles an update when it comes, not when it is journalled."""

    def step(self, event: Any, now: float) -> Step:
        """The ack is asked for with the arrival."""
        step = super().step(event, now)
        if isinstance(event, events.UpdateArrived):
            return Step(step.writes, (effects.Settle(delivery=event.delivery), *step.effects))
        return step


class AckFirst(EffectsFirst):
    """Acks before the commit."""

    early = (effects.Settle,)


class AckReceiptFirst(EffectsFirst):
    """A worker that acks receipts and announcements before it has noted them."""

    early = (worker_effects.Settle,)


# ---- the journal


def without_unique_keys(definition: str) -> str:
    """A table's definition without its unique keys."""
    return re.sub(r",\s*UNIQUE \([^)]*\)", "", definition)


class AnnounceFirst(Journal):
    """Hands the outbox to the broker while the transaction is still open."""

    process: Any = None

    def commit(self, writes: Sequence[Any]) -> list[Any]:
        """Receipts and announcements leave, then the database is written."""
        for write in writes:
            if isinstance(write, Send | SendRaw):
                body = write.body if isinstance(write, SendRaw) else self._seal(write)
                self.process.world.broker.publish(write.exchange, write.key, body)
                self.process.world.witness.published(self.process, write.row, write.exchange, write.key, body)
                self.process.point("between announcement and commit")
        return super().commit(writes)


class AnnouncingCentre(Centre):
    """An aggregator with such a journal."""

    def commit(self, writes: Any) -> Any:
        """Let the journal know its process."""
        self.journal.process = self
        return super().commit(writes)


class Unfenced(Journal):
    """Writes without looking whether somebody else has taken over."""

    def _transaction(self) -> Any:
        return self.engine.begin()


class Piecemeal(Journal):
    """Commits every write in a transaction of its own."""

    def commit(self, writes: Sequence[Any]) -> list[Any]:
        """One transaction each."""
        return [answer for write in writes for answer in super(Piecemeal, self).commit([write])]


class SentWhenHandedOver(Centre):
    """Takes a row out of the outbox as soon as the relay has it, without waiting for the confirm."""

    def hand_over(self, row: int) -> None:
        """The relay has it, so it is as good as sent."""
        super().hand_over(row)
        self.mailbox.append(events.Published(row=row))


# ---- the aggregator's rules


class Unchecked(Run):
    """Commits a merge without looking at its members and the run's state again."""

    def merged(self, made: plan.MergePlan, product: plan.Product) -> None:
        """Whatever became of the members and the run meanwhile."""
        for member in made.members:
            known = self._rows.get(member.id)
            row = known or UpdateRow(
                order=member.order,
                id=member.id,
                run=made.run,
                site=member.site,
                epoch=0,
                sequence=1,
                base_version=member.base_version,
                state=UpdateState.VALIDATED,
                examples=member.examples,
                seconds=member.seconds,
                absent=member.absent,
                norm=member.norm,
            )
            self._rows[member.id] = replace(row, state=UpdateState.VALIDATED)
        state, self.state = self.state, type(self.state).RUNNING
        super().merged(made, product)
        self.state = state if self.state == type(self.state).RUNNING else self.state


class Trusting(Run):
    """Believes at the start that whatever is journalled may be admitted."""

    def start(self) -> None:
        """Nothing is objected to any more."""
        self._rows = {id: replace(row, objection="ok") for id, row in self._rows.items()}
        super().start()


class NeverSays(AggregatorRules):
    """Ends an update without a receipt when it is superseded or too stale."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        tell = self._out.receipt

        def sometimes(update: Any, outcome: Any, reason: str, **rest: Any) -> None:
            if reason not in ("newer_updates_wait", "too_stale", "revoked", "future_base"):
                tell(update, outcome, reason, **rest)

        self._out.receipt = sometimes


class FreshAtArrival(Run):
    """Counts staleness when an update arrives, not when it is merged."""

    def _consider_merge(self, waiting: Any) -> None:
        real, arrived = planning.members, dict.fromkeys(self._rows, 0)

        def as_at_arrival(rows: Any, version: int, *rest: Any) -> Any:
            made = real(rows, version, *rest)
            return tuple(replace(member, staleness=arrived.get(member.id, member.staleness)) for member in made)

        planning.members = as_at_arrival
        try:
            super()._consider_merge(waiting)
        finally:
            planning.members = real


class HalfIssued(Run):
    """Thinks that a version merged while records are issued again is for the new registry already."""

    def _consider_merge(self, waiting: Any) -> None:
        issued, self._record_registry = self._record_registry, self._registry.version
        super()._consider_merge(waiting)
        self._record_registry = issued


class Patient(Run):
    """Ends what is too stale only if it was validated; what is parked waits for ever."""

    def tick(self) -> None:
        """What is parked is not looked at."""
        parked = {id: row for id, row in self._rows.items() if row.state == UpdateState.PARKED}
        for id in parked:
            del self._rows[id]
        super().tick()
        self._rows |= parked


class Forgetful(AggregatorRules):
    """Does not take up at the start what the outbox holds."""

    def _started(self) -> None:
        self._outbox = []
        super()._started()


class Impatient(Run):
    """Lets a late answer to an older registry overwrite a newer one's records."""

    def reissued(self, event: events.Reissued) -> None:
        """Any answer will do."""
        if event.version == self.version:
            event = replace(event, registry=self._registry.version)
        super().reissued(event)


def ruled(machine: type[Run]) -> type[AggregatorRules]:
    """Rules whose runs are such machines."""
    return type(f"{machine.__name__}Rules", (AggregatorRules,), {"machine": machine})


# ---- the worker


class Unreserved(WorkerJournal):
    """A worker that counts sequences in memory only."""

    def commit(self, writes: Sequence[Any]) -> Sequence[Any]:
        """Everything but the reservations."""
        return super().commit([write for write in writes if not isinstance(write, worker_writes.Reserve)])


class Tidy(Hospital):
    """A worker that empties its spool once the broker has the update, before any receipt."""

    def confirmed(self, row: int) -> Any:
        """It is out of the house."""
        sealed = self.journal.sealed(row)
        if sealed is not None:
            self.drop(sealed.chunks)
        return super().confirmed(row)


class Gullible(WorkerRules):
    """A worker that takes any head for the newest."""

    def _on_head(self, event: worker_events.HeadSeen) -> None:
        self._head = min(self._head, event.head.number - 1)
        super()._on_head(event)


class Backwards(WorkerRules):
    """A worker that takes any version for the newest."""

    def _on_version(self, event: worker_events.VersionSeen) -> None:
        known = self._runs.get(event.run)
        if known is not None:
            self._runs[event.run] = replace(known, version=min(known.version, event.version))
        super()._on_version(event)


class Hasty(WorkerRules):
    """A worker that acks a receipt that comes again at once, while the first is still only in memory."""

    def _hold(self, now: float) -> None:
        if self._decided.writes:
            super()._hold(now)

    def _release(self) -> None:
        if self._decided.writes or not self._decided.effects:
            super()._release()


class Obstinate(WorkerRules):
    """A worker that sends what has a used sequence again as it is."""

    def step(self, event: Any, now: float) -> Step:
        """The aggregator's word on sequences is not heard."""
        if isinstance(event, worker_events.ReceiptSeen) and event.receipt.outcome == Outcome.SEQUENCE_REUSED:
            return Step(effects=(worker_effects.Settle(delivery=event.delivery, what="receipt"),))
        return super().step(event, now)


class Eager(Hospital):
    """A worker that publishes an update before its chunks are in the store."""

    def upload(self, row: WorkerUpdateRow, anew: bool) -> Any:
        """The chunks can wait."""
        del anew
        with suppress(KeyError):
            self.world.store.chunks.pop((self.site, row.chunks[0]))
        return worker_events.Uploaded(row=row.row)


MUTANTS: dict[str, Parts] = {
    "ack before journal": Parts(rules=AckOnArrival, actor=AckFirst, faults=("fuse",)),
    "ack before the journal's answer": Parts(rules=AckOnArrival, faults=("fuse",), often=("restore",)),
    "no unique key": Parts(schema=without_unique_keys, faults=("reconnect",)),
    "announce before commit": Parts(journal=AnnounceFirst, centre=AnnouncingCentre, faults=("fuse",)),
    "no fence": Parts(journal=Unfenced, faults=("takeover",)),
    "a transaction per write": Parts(journal=Piecemeal, faults=("fuse",)),
    "removed from the outbox before the confirm": Parts(centre=SentWhenHandedOver, faults=("crash",)),
    "members not looked at again": Parts(rules=ruled(Unchecked), faults=("command", "registry")),
    "not examined again at the start": Parts(rules=ruled(Trusting), faults=("noise", "fuse"), fuse=0.4),
    "no receipt": Parts(rules=NeverSays, faults=("noise",)),
    "staleness counted at arrival": Parts(rules=ruled(FreshAtArrival)),
    "a version for half a registry": Parts(rules=ruled(HalfIssued), often=("registry",)),
    "outbox forgotten at the start": Parts(rules=Forgetful, faults=("crash",)),
    "an older registry's answer wins": Parts(rules=ruled(Impatient), often=("registry",)),
    "worker: sequences in memory": Parts(worker_journal=Unreserved, faults=("crash",)),
    "worker: spool emptied at the confirm": Parts(hospital=Tidy),
    "worker: receipt acked before it is noted": Parts(worker_actor=AckReceiptFirst, faults=("fuse",)),
    "worker: head goes back": Parts(worker_rules=Gullible, faults=("takeover",)),
    "worker: version goes back": Parts(worker_rules=Backwards, often=("reconnect",)),
    "worker: copy of a receipt acked at once": Parts(worker_rules=Hasty, often=("reconnect",)),
    "worker: reused sequence ignored": Parts(worker_rules=Obstinate, often=("restore",)),
    "worker: published before uploaded": Parts(hospital=Eager),
}
