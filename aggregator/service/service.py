"""The aggregator's shell: threads, queues, store and database around the rules.

One thread steps the rules and owns the database. Deliveries are verified on the transport's threads, blobs are admitted
and merged on worker threads, the head is put by a thread of its own; all of them only put events into the mailbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import assert_never

import nacl.utils
import structlog

from aggregator.config import RunConfig
from aggregator.domain import effects, events, writes
from aggregator.domain.state import UpdateState
from aggregator.intake import Intake
from aggregator.journal.journal import Journal
from aggregator.operators.admin_access import AdminAccess
from aggregator.operators.preparation import Preparation
from aggregator.operators.responder import NOBODY, Responder
from aggregator.pipeline.envelope_cache import EnvelopeCache
from aggregator.pipeline.genesis import Genesis, registry_in_force, take_over
from aggregator.pipeline.records import Records, record_digest
from aggregator.pipeline.run_context import RunContexts
from aggregator.rules.federation import AggregatorRules
from aggregator.service.event_log import EventLog, Observer, nobody
from aggregator.service.executors import Executors
from aggregator.service.head_writer import HeadWriter
from aggregator.service.health import HealthWriter
from broker.blobs.base import BlobStore
from broker.blobs.cache import SMALL, CachedBlobs
from broker.runtime.actor import Actor
from broker.runtime.crash_points import crash_point
from broker.transport.base import Delivery, Subscription, Transport
from broker.transport.outbox import Relay
from protocol import topology
from protocol.envelope import NO_RUN, seal
from protocol.errors import ConfigError, DiskFull, Fenced, LoginRefused, NotAllowed, StateError, Untrusted, WrongContext
from protocol.keys import Identity, Participant, Role
from protocol.messages import GOING_ON, RunHead, RunState
from protocol.registry import Registry, open_registry

log = structlog.get_logger("aggregator")
DATABASE = "aggregator.db"
_ROOM_AGAIN = 5.0  # seconds between looks at a full disk


class AggregatorService:
    """A federation's runs, served until it is stopped. `start` returns at once; `join` waits and raises errors."""

    def __init__(
        self,
        config: RunConfig | None,
        *,
        federation: str,
        identity: Identity,
        registry_record: bytes,
        root: bytes,
        transport: Transport,
        store: BlobStore,
        state: Path | None,
        genesis: Genesis | None,
        code: bytes = b"",
        observer: Observer = nobody,
        cache_bytes: int = 4 << 30,
        doors: AdminAccess = AdminAccess(),  # noqa: B008  # frozen
    ) -> None:
        """`config`: a run to begin with, besides those that the journal knows and operators will create; `genesis` (its
        version 0) and `code` (a zip archive) are needed the first time only. `state` None keeps the database in memory.

        `cache_bytes` bounds the local ciphertext cache: best a little more than K + 3 times the model.

        Raises:
            ConfigError, StateError, WireError, StoreError: a run cannot be opened.
        """
        self._federation = federation
        self._identity = identity
        self._root = root
        self._transport = transport
        self._store = self._uncached = store
        if state is not None:
            self._store = CachedBlobs(store, state / "cache", cache_bytes, keep_puts=True, small=SMALL)
        self._observer = observer
        self._telling = EventLog(observer)
        self._doors = doors
        self._stopping = threading.Event()
        self._pools = Executors(self._tell, self._stopping)
        self._opened = EnvelopeCache()
        self.journal = Journal(None if state is None else state / DATABASE, self._seal)
        self._open(registry_record, config, genesis, code)
        self._relay = Relay(transport, lambda row: self._tell(events.Published(row=row)))
        self.pulse = None if state is None else HealthWriter(transport, state)
        announce = partial(transport.publish, topology.GLOBAL, "")
        self._heads = HeadWriter(store, federation, announce, self._registry_record)
        self._subscriptions: list[Subscription] = []
        self._sites: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="aggregator", daemon=True)
        self._error: BaseException | None = None
        self._registry_lock = threading.Lock()
        self.ended = threading.Event()
        """Set when no run goes on any more, by itself or by command."""

    def _open(self, registry_record: bytes, config: RunConfig | None, genesis: Genesis | None, code: bytes) -> None:
        """Open every run and build the rules from what the journal remembers."""
        self.registry, record = registry_in_force(self.journal, registry_record, self._root, self._federation)
        self._registry_digest = record_digest(record)
        self._registry_record = record
        self._intake = Intake(self._federation, self._identity, self.registry, self._opened)
        if config is not None:
            self._begin(config, genesis, code)
        registry = partial(getattr, self._intake, "registry")
        self._servings = RunContexts(
            self.journal, self.records_of, self._store, self._pools.io, self._pools.cipher, registry
        )
        self.serving = {name: self._servings.open(name) for name in self.journal.names()}
        snapshot = self.journal.load(self.registry)
        rules = {name: serving.rules for name, serving in self.serving.items()}
        self.rules = AggregatorRules(rules, snapshot, new_id=_new_id, now=time.monotonic())
        self._intake.registry = self.rules.registry
        self._preparing = Preparation(self.records_of, self._uncached, registry)
        self._desk = Responder(
            self._federation,
            self._identity,
            self.registry,
            self._transport,
            self.journal,
            rules=self.rules,
            serving=self.serving,
            head=lambda: self._heads.newest,
            again=lambda site, raw: self._tell(self._intake.update(site, NOBODY, raw)),
            put_registry=self.update_registry,
            later=self._pools.io.submit,
            card=self._preparing.card,
            doors=self._doors,
        )
        self._actor = Actor(self.rules, self._commit, self._perform, may_wait=may_wait)

    def _begin(self, config: RunConfig, genesis: Genesis | None, code: bytes) -> None:
        """Take over a run that lies beside the aggregator, or its settings as they are now."""
        if config.name in self.journal.names():
            self.journal.set_config(config.name, config.model_dump_json())
            return
        if genesis is None:
            raise ConfigError(f"run {config.name} has no version 0 yet; make one with `fledge init-run`")
        records = self.records_of(config.name)
        self.journal.begin(take_over(config, genesis, records, self.registry, code=code, state=RunState.RUNNING))

    def records_of(self, run: str) -> Records:
        """The records of one run."""
        return Records(self._federation, run, self._identity, self._store, self._pools.io, self._opened)

    # ---- life

    def start(self) -> None:
        """Declare the topology, begin to consume and to step."""
        self._declare(self.registry)
        self._tell(events.Started())
        self._thread.start()
        self._consume_sites()
        self._subscriptions.append(
            self._transport.consume(topology.inbox_queue(topology.AGGREGATOR), self._take_command)
        )
        if self.pulse is not None:
            self.pulse.start()
        log.info("aggregator.started", runs=list(self.rules.runs), sites=len(self._sites))

    def stop(self) -> None:
        """End orderly: what is journalled stays journalled, what is in the outbox goes out at the next start."""
        self._stopping.set()
        for subscription in self._subscriptions:
            subscription.cancel()
        self._actor.mailbox.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises:
            Fenced: another aggregator took over.
            FledgeError: whatever else ended the service.
        """
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
            self._stopping.set()
            for subscription in self._subscriptions:
                subscription.cancel()
            self.ended.set()
            if self.pulse is not None:
                self.pulse.stop(fenced=isinstance(self._error, Fenced))
            self._relay.close()
            self._heads.close(put=not isinstance(self._error, Fenced))
            self._pools.close()
            self.journal.close()
            log.info("aggregator.stopped")

    def update_registry(self, record: bytes) -> None:
        """Put a newer registry in force: new sites get the current version, revoked ones are cut off.

        Raises:
            WireError: it is not signed by the root or not newer.
        """
        registry = open_registry(record, self._root, self._federation)
        known = self.registry.version
        if registry.version <= known:
            raise WrongContext(f"registry version {registry.version} is not newer than version {known}, in force")
        self.records_of(NO_RUN).put_record(record)
        self._declare(registry)
        with self._registry_lock:
            if registry.version <= self._intake.registry.version:
                raise WrongContext(f"registry version {registry.version} has been overtaken by a newer one")
            # At once for what arrives, not only once the rules have heard of it: whom it revokes says nothing more.
            self._intake.registry = self.rules.orders.narrowed(registry)
        self._opened.clear()
        self._tell(events.RegistryChanged(registry=registry, record=record))

    def _declare(self, registry: Registry) -> None:
        members = {role: sorted(p.name for p in registry.members(role)) for role in (Role.SITE, Role.OPERATOR)}
        try:
            self._transport.declare(topology.topology(members[Role.SITE], members[Role.OPERATOR]))
        except LoginRefused as error:  # which the transport goes on trying
            log.warning("topology.login_refused", registry=registry.version, error=str(error))
        except NotAllowed:  # as it should be: the broker's administrator declares, by `fledge deploy broker`
            log.info("topology.declared_by_others", registry=registry.version)

    def _tell(self, event: events.Event) -> None:
        """An event for the rules; safe from any thread."""
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
            self._desk.seen(site, sign)
            told = sign.event
            self._observer("site", {"site": site, "state": told.state, "progress": told.progress, **told.metrics})

    def _take_command(self, delivery: Delivery) -> None:
        self._tell(self._intake.command(delivery, delivery.body, time.time()))

    # ---- commits

    def _commit(self, written: Sequence[writes.Write]) -> list[events.Recorded]:
        for write in written:
            if isinstance(write, writes.CommitVersion):
                crash_point("aggregator.merged")
        answers = self._commit_when_there_is_room(written)
        for write in written:
            self._after(write)
            self._telling.committed(write)
        return answers

    def _commit_when_there_is_room(self, written: Sequence[writes.Write]) -> list[events.Recorded]:
        """Commit; on a full disk wait and try again: nothing is acked meanwhile, so the broker keeps what arrives."""
        while True:
            try:
                return self.journal.commit(written)
            except DiskFull as error:
                log.error("disk.full", error=str(error), seconds=_ROOM_AGAIN)
                if self._stopping.wait(_ROOM_AGAIN):
                    raise

    def _after(self, write: writes.Write) -> None:
        """Follow the database with what is kept beside it, once it is committed."""
        match write:
            case writes.CommitVersion(plan=plan, product=product):
                self.serving[plan.run].record = product.record
                crash_point("aggregator.committed")
            case writes.ReplaceRecord(run=run, record=record, spec_record=spec_record):
                self.serving[run].record, self.serving[run].spec_record = record, spec_record
            case writes.CreateRun(new=new) if new.rules.run in self.rules.runs:
                self.serving[new.rules.run] = self._servings.open(new.rules.run)
            case writes.OfferCode(offered=offered):
                self.serving[offered.run].code_record = offered.code_record
            case writes.DeleteRun(run=run):
                self.serving.pop(run, None)
            case writes.JournalUpdate():
                crash_point("aggregator.journalled")
            case _:
                pass

    def _seal(self, write: writes.Send) -> bytes:
        return seal(
            self._identity,
            write.kind,
            write.body,
            [addressee(self._intake.registry, write.recipient)],
            federation=self._federation,
            message_id=write.id,
            run=write.run,
            sequence=write.row,
            version=write.version,
        )

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
                self._heads.put(self._head(effect))
            case effects.AnnounceHead():
                self._heads.announce()
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
                self._desk.serve(effect)
            case _:
                assert_never(effect)

    def _prepare(self, order: effects.Prepare) -> None:
        """Gather what the journal knows for an order that takes time, and have it worked on."""
        source = None
        try:
            if (it := self.serving.get(order.run)) is not None:
                source = self._servings.source(it, order.command)
        except StateError as error:
            told = events.Prepared(command=order.command, reason="not_possible", text=str(error))
            self._tell(told)
            return
        card = self.journal.model(order.model) if order.model else None
        self._pools.submit(self._pools.preparations, self._preparing.work, order, source, card)

    def _follow_registry(self, registry: Registry) -> None:
        self.registry = self._intake.registry = self._desk.registry = registry
        self._opened.clear()
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
        records = self.records_of(NO_RUN)
        return records.head(effect.number, int(time.time()), self._registry_digest, runs, _new_id(), lifetime=lifetime)


def may_wait(write: writes.Write) -> bool:
    """Whether a write may share a later commit: lost confirms are published again, lost admissions done again."""
    return isinstance(write, writes.RemoveSent) or (
        isinstance(write, writes.SetState) and write.state == UpdateState.VALIDATED
    )


def _new_id() -> bytes:
    return nacl.utils.random(16)


def addressee(registry: Registry, site: str) -> Participant:
    """Whom a receipt is sealed for: the keys of this name, the newest ones also when they are revoked.

    A site that was revoked is still told so; a receipt holds nothing that its site does not know.

    Raises:
        Untrusted: no participant ever had the name.
    """
    for entry in reversed(registry.entries):
        if entry.name == site:
            return entry.participant
    raise Untrusted(f"registry version {registry.version} knows no {site}")
