"""The aggregator's shell: threads, queues, store and database around the rules.

One thread steps the rules and owns the database. Deliveries are verified on the transport's threads, blobs are admitted
and merged on worker threads, the head is put by a thread of its own; all of them only put events into the mailbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import nacl.utils
import structlog

from aggregator.config import until
from aggregator.domain import effects, events, writes
from aggregator.domain.state import UpdateState
from aggregator.intake import Intake
from aggregator.journal.journal import Journal
from aggregator.operators.preparation import Preparation
from aggregator.operators.responder import Responder
from aggregator.pipeline.envelope_cache import EnvelopeCache
from aggregator.pipeline.records import Records, record_digest
from aggregator.pipeline.run_context import RunContext, RunContexts
from aggregator.rules.federation import AggregatorRules
from aggregator.service.event_log import EventLog
from aggregator.service.executors import Executors
from aggregator.service.head_writer import HeadWriter
from aggregator.service.health import HealthWriter
from aggregator.service.registry_updates import RegistryUpdates
from aggregator.service.settings import AggregatorSettings
from broker.blobs.base import BlobStore
from broker.runtime.actor import Actor, Mailbox
from broker.runtime.crash_points import crash_point
from broker.transport.base import Delivery, Subscription, Transport
from broker.transport.outbox import Relay
from protocol import topology
from protocol.envelope import NO_RUN
from protocol.errors import DatabaseBusy, DiskFull, Fenced, StateError
from protocol.keys import Role
from protocol.messages import GOING_ON, RunHead
from protocol.registry import Registry

log = structlog.get_logger("aggregator")
DATABASE = "aggregator.db"
_COMMIT_AGAIN = 5.0  # seconds between looks at a full disk or a locked database


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorGround:
    """What stands before any run is opened."""

    settings: AggregatorSettings
    transport: Transport
    store: BlobStore
    cached: BlobStore
    """The store behind the local ciphertext cache."""
    mailbox: Mailbox[events.Event]
    stopping: threading.Event
    executors: Executors
    envelopes: EnvelopeCache
    intake: Intake
    journal: Journal
    registry: Registry
    record: bytes
    """The registry in force, as the root signed it."""

    def records_of(self, run: str) -> Records:
        """The records of one run."""
        settings = self.settings
        return Records(settings.federation, run, settings.identity, self.cached, self.executors.io, self.envelopes)

    def in_force(self) -> Registry:
        """The registry that what arrives is read by."""
        return self.intake.registry


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorParts:
    """What an aggregator is made of; `assembly` makes them, and nothing here makes its own."""

    ground: AggregatorGround
    rules: AggregatorRules
    contexts: RunContexts
    serving: dict[str, RunContext]
    """The runs, by name."""
    registries: RegistryUpdates
    responder: Responder
    preparation: Preparation
    heads: HeadWriter
    health: HealthWriter | None
    """None where nothing is kept on a disk."""


class AggregatorService:
    """A federation's runs, served until it is stopped. `start` returns at once; `join` waits and raises errors."""

    def __init__(self, parts: AggregatorParts) -> None:
        self._parts, ground = parts, parts.ground
        self._transport = ground.transport
        self._intake = ground.intake
        self._pools = ground.executors
        self.journal = ground.journal
        self.rules = parts.rules
        self.serving = parts.serving
        self.pulse = parts.health
        self.registry = ground.registry
        self._registry_digest = record_digest(ground.record)
        self._observer = ground.settings.observer
        self._log = EventLog(self._observer)
        self._actor = Actor(parts.rules, self._commit, self._perform, mailbox=ground.mailbox, may_wait=may_wait)
        self._relay = Relay(ground.transport, lambda row: self._tell(events.Published(row=row)))
        self._subscriptions: list[Subscription] = []
        self._sites: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="aggregator", daemon=True)
        self._error: BaseException | None = None
        self.ended = threading.Event()
        """Set when no run goes on any more, by itself or by command."""

    # ---- life

    def start(self) -> None:
        """Declare the topology, begin to consume and to step."""
        self._parts.registries.declare(self.registry)
        self._tell(events.Started())
        self._thread.start()
        self._consume_sites()
        inbox = topology.inbox_queue(topology.AGGREGATOR)
        self._subscriptions.append(self._transport.consume(inbox, self._take_command))
        if self.pulse is not None:
            self.pulse.start()
        log.info("aggregator.started", runs=list(self.rules.runs), sites=len(self._sites))

    def stop(self) -> None:
        """End orderly: what is journalled stays journalled, what is in the outbox goes out at the next start."""
        self._parts.ground.stopping.set()
        for subscription in self._subscriptions:
            subscription.cancel()
        self._actor.mailbox.close()
        if self._thread.ident is None and not self.ended.is_set():
            self._close(in_force=False)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises:
            Fenced: another aggregator took over.
            FledgeError: whatever else ended the service.
        """
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._actor.run()
        except BaseException as error:
            self._error = error
            log.error("aggregator.failed", error=str(error), kind=type(error).__name__)
        finally:
            # Whatever ended it: what was delivered and not acked goes back, for the next consumer.
            self._parts.ground.stopping.set()
            for subscription in self._subscriptions:
                subscription.cancel()
            self._close(in_force=not isinstance(self._error, Fenced))
            log.info("aggregator.stopped")

    def _close(self, *, in_force: bool) -> None:
        """`in_force`: this is the aggregator that heads and the sign of health are of."""
        self.ended.set()
        if self.pulse is not None:
            self.pulse.stop(fenced=not in_force)
        self._relay.close()
        self._parts.heads.close(put=in_force)
        self._pools.close()
        self.journal.close()

    def update_registry(self, record: bytes) -> None:
        """Put a newer registry in force: new sites get the current version, revoked ones are cut off.

        Raises:
            WireError: it is not signed by the root or not newer.
        """
        self._parts.registries.update(record)

    def _tell(self, event: events.Event) -> None:
        self._actor.mailbox.put(event)

    # ---- deliveries

    def _consume_sites(self) -> None:
        for participant in self.registry.members(Role.SITE):
            site = participant.name
            if site not in self._sites:
                self._sites.add(site)
                self._subscriptions += [
                    self._transport.consume(topology.in_queue(site), partial(self._take_update, site)),
                    self._transport.consume(topology.event_queue(site), partial(self._take_event, site)),
                ]

    def _take_update(self, site: str, delivery: Delivery) -> None:
        crash_point("aggregator.received")
        self._tell(self._intake.update(site, delivery, delivery.body))

    def _take_event(self, site: str, delivery: Delivery) -> None:
        event, sign = self._intake.live(site, delivery, delivery.body)
        self._tell(event)
        if sign is not None:
            self._parts.responder.seen(site, sign)
            told = sign.event
            self._observer("site", {"site": site, "state": told.state, "progress": told.progress, **told.metrics})

    def _take_command(self, delivery: Delivery) -> None:
        self._tell(self._intake.command(delivery, delivery.body, time.time()))

    # ---- commits

    def _commit(self, written: Sequence[writes.Write]) -> list[events.Recorded]:
        for write in written:
            if isinstance(write, writes.CommitVersion):
                crash_point("aggregator.merged")
        answers = self._commit_when_it_can_be(written)
        for write in written:
            self._after(write)
            self._log.committed(write)
        return answers

    def _commit_when_it_can_be(self, written: Sequence[writes.Write]) -> list[events.Recorded]:
        """Commit; on a full disk or a locked database wait and try again: nothing is acked meanwhile, so the broker
        keeps what arrives."""
        while True:
            try:
                return self.journal.commit(written)
            except (DiskFull, DatabaseBusy) as error:
                what = "disk.full" if isinstance(error, DiskFull) else "database.busy"
                log.error(what, error=str(error), seconds=_COMMIT_AGAIN)
                if self._parts.ground.stopping.wait(_COMMIT_AGAIN):
                    raise

    def _after(self, write: writes.Write) -> None:
        """Follow the database with what is kept beside it, once it is committed."""
        match write:
            case writes.CommitVersion(plan=plan, product=product):
                self.serving[plan.run].record, self.serving[plan.run].states = product.record, product.states
                crash_point("aggregator.committed")
            case writes.ReplaceRecord(run=run, record=record, spec_record=spec_record):
                self.serving[run].record, self.serving[run].spec_record = record, spec_record
            case writes.CreateRun(new=new) if new.rules.run in self.rules.runs:
                # With the strategy that was tried: one that cannot be made again must not end the hub here.
                self.serving[new.rules.run] = self._parts.contexts.open(new.rules.run, new.rules)
            case writes.OfferCode(offered=offered):
                self.serving[offered.run].code_record = offered.code_record
            case writes.DeleteRun(run=run):
                self.serving.pop(run, None)
            case writes.SetEnd(run=run, versions=versions):
                self.serving[run].config = until(self.serving[run].config, versions)
            case writes.JournalUpdate():
                crash_point("aggregator.journalled")
            case _:
                pass

    # ---- effects

    def _perform(self, effect: effects.Effect) -> None:
        pools = self._pools
        match effect:
            case effects.Settle(delivery=delivery):
                delivery.ack()
                crash_point("aggregator.acked")
            case effects.Publish(row=row):
                if row in self.journal.fresh:
                    self._relay.send([self.journal.fresh[row]])
                    crash_point("aggregator.publishing")
            case effects.Admit(run=run, id=id):
                if run in self.serving:
                    pools.submit(pools.admissions, self.serving[run].work.admit, id, self.journal.envelope(id))
            case effects.Merge(plan=plan):
                if (it := self.serving.get(plan.run)) is not None:
                    inputs = it.inputs(plan, self.journal, self.rules.registry)
                    pools.submit(pools.merges, it.work.merge, plan, inputs)
            case effects.PutHead():
                self._parts.heads.put(self._head(effect))
            case effects.AnnounceHead():
                self._parts.heads.announce()
            case effects.Reissue(run=run, registry=registry, version=version):
                if (it := self.serving.get(run)) is not None:
                    pools.submit(pools.merges, it.work.reissue, version, registry, it.record, it.spec_record)
            case effects.Ended():
                if not any(run.state in GOING_ON for run in self.rules.runs.values()):
                    self.ended.set()
            case effects.Prepare():
                self._prepare(effect)
            case effects.UseRegistry(registry=registry):
                self._follow_registry(registry)
            case effects.AnswerCommand() | effects.LookUp() | effects.GrantUrls() | effects.CutOff():
                self._parts.responder.serve(effect)
            case _:
                assert_never(effect)

    def _prepare(self, wanted: effects.Prepare) -> None:
        """Gather what the journal knows for a command that takes time, and have it worked on."""
        source = None
        try:
            if (it := self.serving.get(wanted.run)) is not None:
                source = self._parts.contexts.source(it, wanted.command, wanted.version)
        except StateError as error:
            self._tell(events.Prepared(command=wanted.command, reason="not_possible", text=str(error)))
            return
        card = self.journal.model(wanted.model) if wanted.model else None
        self._pools.submit(self._pools.preparations, self._parts.preparation.work, wanted, source, card)

    def _follow_registry(self, registry: Registry) -> None:
        self.registry = self._parts.responder.registry = registry
        self._parts.registries.follow(registry)
        raw = self.journal.registry_record()
        if raw is not None:
            self._registry_digest = record_digest(raw)
        self._consume_sites()

    def _head(self, effect: effects.PutHead) -> bytes:
        runs = [
            RunHead(
                run=place.run,
                state=place.state,
                reason=place.reason,
                version=place.version,
                record=record_digest(self.serving[place.run].record),
            )
            for place in effect.runs
            if place.run in self.serving
        ]
        lifetime = 24 * 3600
        records = self._parts.ground.records_of(NO_RUN)
        return records.head(effect.number, int(time.time()), self._registry_digest, runs, new_id(), lifetime=lifetime)


def may_wait(write: writes.Write) -> bool:
    """Whether a write may share a later commit: lost confirms are published again, lost admissions done again."""
    return isinstance(write, writes.RemoveSent) or (
        isinstance(write, writes.SetState) and write.state == UpdateState.VALIDATED
    )


def new_id() -> bytes:
    """A message's id."""
    return nacl.utils.random(16)
