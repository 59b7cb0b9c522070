"""The aggregator's shell: threads, queues, store and database around the rules.

One thread steps the rules and owns the database. Deliveries are verified on the transport's threads, blobs are admitted
and merged on worker threads, the head is put by a thread of its own; all of them only put events into the mailbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nacl.utils
import structlog

from aggregator import events, order_events
from aggregator.config import RunConfig
from aggregator.desk import NOBODY, Desk
from aggregator.doors import Doors
from aggregator.events import UpdateState
from aggregator.heads import HeadWriter
from aggregator.intake import Intake
from aggregator.journal import Journal
from aggregator.letters import addressee
from aggregator.opening import Genesis, open_run
from aggregator.plan import MergePlan
from aggregator.production import Inputs, Production, record_digest
from aggregator.pulse import Pulse
from aggregator.records import Records
from aggregator.rules import AggregatorRules
from aggregator.work import Work
from broker.actor import Actor
from broker.blobs import BlobStore
from broker.cache import SMALL, CachedBlobs
from broker.crash import crash_point
from broker.outbox import Relay
from broker.transport import Delivery, Subscription, Transport
from protocol import topology
from protocol.envelope import seal
from protocol.errors import (
    DiskFull,
    Fenced,
    NotAllowed,
    WrongContext,
)
from protocol.keys import Identity, Role
from protocol.messages import RunHead, Version
from protocol.registry import Registry, open_registry

log = structlog.get_logger("aggregator")
_ROOM_AGAIN = 5.0  # seconds between looks at a full disk
Observer = Callable[[str, Mapping[str, Any]], None]


def _nobody(event: str, fields: Mapping[str, Any]) -> None:
    """The observer of a service that nobody watches."""


class AggregatorService:
    """One run, served until it is stopped. `start` returns at once; `join` waits; errors surface in `join`."""

    def __init__(
        self,
        config: RunConfig,
        *,
        federation: str,
        identity: Identity,
        registry_record: bytes,
        root: bytes,
        transport: Transport,
        store: BlobStore,
        state: Path | None,
        genesis: Genesis | None,
        observer: Observer = _nobody,
        cache_bytes: int = 4 << 30,
        doors: Doors = Doors(),  # noqa: B008  # frozen
    ) -> None:
        """`genesis` (version 0) is needed the first time only; `state` None keeps the database in memory.

        `cache_bytes` bounds the local ciphertext cache: best a little more than K + 3 times the model.

        Raises:
            ConfigError, StateError, WireError, StoreError: the run cannot be opened.
        """
        self._config = config
        # Bound once: a logger of the module is set up anew for every line.
        self._log = log.bind()
        self._federation = federation
        self._identity = identity
        self._root = root
        self._transport = transport
        self._store = store
        if state is not None:
            self._store = CachedBlobs(store, state / "cache", cache_bytes, keep_puts=True, small=SMALL)
        self._observer = observer
        self._doors = doors
        self._io = ThreadPoolExecutor(4, thread_name_prefix="aggregator io")
        self._cipher = ThreadPoolExecutor(3, thread_name_prefix="aggregator cipher")
        # A merge never queues behind admissions: the longer it waited, the more updates would come for nothing.
        self._admissions = ThreadPoolExecutor(2, thread_name_prefix="aggregator admission")
        self._merges = ThreadPoolExecutor(1, thread_name_prefix="aggregator merge")
        self.records = Records(federation, config.name, identity, self._store, self._io)
        self.journal = Journal(None if state is None else state / "aggregator.db", self._seal)
        self._open(registry_record, genesis)
        self._relay = Relay(transport, lambda row: self._actor.mailbox.put(events.Published(row=row)))
        self._pulse = None if state is None else Pulse(transport, state)
        self._heads = HeadWriter(store, federation, partial(transport.publish, topology.GLOBAL, ""))
        self._subscriptions: list[Subscription] = []
        self._sites: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="aggregator", daemon=True)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._registry_lock = threading.Lock()
        self.ended = threading.Event()
        """Set when the run has ended by itself or by command."""

    def _open(self, registry_record: bytes, genesis: Genesis | None) -> None:
        """Open the run and build the rules from what the journal remembers of it."""
        config = self._config
        opened = open_run(config, self.journal, self.records, registry_record, self._root, genesis)
        self.spec, self._strategy, self.registry = opened.spec, opened.strategy, opened.registry
        self._registry_digest = record_digest(opened.registry_record)
        self._intake = Intake(self._federation, self._identity, self.registry, self.records.opened)
        production = Production(self.records, self.spec, self._strategy, self._cipher, average=config.release_decay > 0)
        self._work = Work(self.records, self.spec, production, self._store, self._io, lambda: self._intake.registry)
        snapshot = self.journal.load(self.registry)
        self._record = self.journal.version_record(snapshot.version)
        self._spec_record = self.journal.spec_record()
        self.rules = AggregatorRules(opened.rules, snapshot, new_id=_new_id, now=time.monotonic())
        self._intake.registry = self.rules.registry
        self._desk = Desk(
            self._federation,
            self._identity,
            self.registry,
            self._transport,
            self.journal,
            rules=self.rules,
            run=config,
            head=lambda: self._heads.newest,
            again=lambda site, raw: self._actor.mailbox.put(self._intake.update(site, NOBODY, raw)),
            put_registry=self.update_registry,
            later=self._io.submit,
            doors=self._doors,
        )
        self._actor = Actor(self.rules, self._commit, self._perform, may_wait=may_wait)

    # ---- life

    def start(self) -> None:
        """Declare the topology, begin to consume and to step."""
        self._declare(self.registry)
        self._actor.mailbox.put(events.Started())
        self._thread.start()
        self._consume_sites()
        self._subscriptions.append(
            self._transport.consume(topology.inbox_queue(topology.AGGREGATOR), self._take_command)
        )
        if self._pulse is not None:
            self._pulse.start()
        log.info("aggregator.started", run=self._config.name, version=self.rules.version, sites=len(self._sites))

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
            # Whatever ended it: what was delivered and not acked goes back, for whoever comes next.
            self._stopping.set()
            for subscription in self._subscriptions:
                subscription.cancel()
            self.ended.set()
            if self._pulse is not None:
                self._pulse.stop()
            self._relay.close()
            self._heads.close(put=not isinstance(self._error, Fenced))
            for pool in (self._merges, self._admissions, self._cipher, self._io):
                pool.shutdown(wait=False, cancel_futures=True)
            self.journal.close()

    def update_registry(self, record: bytes) -> None:
        """Put a newer registry in force: new sites get the current version, revoked ones are cut off.

        Raises:
            WireError: it is not signed by the root or not newer.
        """
        registry = open_registry(record, self._root, self._federation)
        known = self.registry.version
        if registry.version <= known:
            raise WrongContext(f"registry version {registry.version} is not newer than version {known}, in force")
        self._store.put(topology.record_key(record_digest(record).hex()), record)
        self._declare(registry)
        with self._registry_lock:
            if registry.version <= self._intake.registry.version:
                raise WrongContext(f"registry version {registry.version} has been overtaken by a newer one")
            # At once for what arrives, not only once the rules have heard of it: whom it revokes says nothing more.
            self._intake.registry = self.rules.orders.narrowed(registry)
        self.records.opened.clear()
        self._actor.mailbox.put(events.RegistryChanged(registry=registry, record=record))

    def _declare(self, registry: Registry) -> None:
        members = {role: sorted(p.name for p in registry.members(role)) for role in (Role.SITE, Role.OPERATOR)}
        try:
            self._transport.declare(topology.topology(members[Role.SITE], members[Role.OPERATOR]))
        except NotAllowed:  # as it should be: whoever runs the broker declares, by `fledge deploy broker`
            log.info("topology.declared_by_others", registry=registry.version)

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
        self._actor.mailbox.put(self._intake.update(site, delivery, delivery.body))

    def _take_event(self, site: str, delivery: Delivery) -> None:
        event, sign = self._intake.live(site, delivery, delivery.body)
        self._actor.mailbox.put(event)
        if sign is not None:
            self._desk.seen(site, sign)
            told = sign.event
            self._observer("site", {"site": site, "state": told.state, "progress": told.progress, **told.metrics})

    def _take_command(self, delivery: Delivery) -> None:
        self._actor.mailbox.put(self._intake.command(delivery, delivery.body, time.time()))

    # ---- commits

    def _commit(self, writes: Any) -> list[Any]:
        for write in writes:
            if isinstance(write, events.CommitVersion):
                crash_point("aggregator.merged")
        answers = self._commit_when_there_is_room(writes)
        for write in writes:
            self._after(write)
        return answers

    def _commit_when_there_is_room(self, writes: Any) -> list[Any]:
        """Commit; on a full disk wait and try again: nothing is acked meanwhile, so the broker keeps what arrives."""
        while True:
            try:
                return self.journal.commit(writes)
            except DiskFull as error:
                log.error("disk.full", error=str(error), seconds=_ROOM_AGAIN)
                if self._stopping.wait(_ROOM_AGAIN):
                    raise

    def _after(self, write: Any) -> None:
        """Follow the database with what is kept beside it, once it is committed."""
        match write:
            case events.CommitVersion(plan=plan, product=product):
                self._record = product.record
                crash_point("aggregator.committed")
                stale = [member.staleness for member in plan.members]
                log.info(
                    "version.committed",
                    version=plan.version,
                    digest=product.digest.hex()[:16],
                    members=[member.id.hex()[:8] for member in plan.members],
                    staleness=stale,
                )
                sites = [member.site for member in plan.members]
                self._observer("version", {"version": plan.version, "sites": sites, "staleness": stale})
            case events.ReplaceRecord(record=record, spec_record=spec_record):
                self._record, self._spec_record = record, spec_record
            case events.JournalUpdate():
                crash_point("aggregator.journalled")
            case events.SetState(id=id, state=state, reason=reason):
                self._log.info("update." + state.value, update=id.hex()[:8], reason=reason)
                self._observer("update", {"state": state.value, "reason": reason})
            case events.SetRun(state=state, reason=reason):
                log.info("run." + state.value, reason=reason)
                self._observer("run", {"state": state.value, "reason": reason})
            case _:
                pass

    def _seal(self, write: events.Send) -> bytes:
        return seal(
            self._identity,
            write.kind,
            write.body,
            [addressee(self._intake.registry, write.recipient)],
            federation=self._federation,
            message_id=write.id,
            run=self._config.name,
            sequence=write.row,
            version=write.version,
        )

    # ---- effects

    def _perform(self, effect: Any) -> None:
        match effect:
            case events.Settle(delivery=delivery):
                delivery.ack()
                crash_point("aggregator.acked")
            case events.Publish(row=row):
                if row in self.journal.fresh:
                    self._relay.send([self.journal.fresh[row]])
                    crash_point("aggregator.publishing")
            case events.Admit(id=id):
                self._submit(self._admissions, self._work.admit, id, self.journal.envelope(id))
            case events.Merge(plan=plan):
                self._submit(self._merges, self._work.merge, plan, self._inputs(plan))
            case events.PutHead():
                self._heads.put(self._head(effect))
            case events.AnnounceHead():
                self._heads.announce()
            case events.Reissue(registry=registry, version=version):
                self._submit(self._merges, self._work.reissue, version, registry, self._record, self._spec_record)
            case events.Ended():
                self.ended.set()
            case order_events.UseRegistry(registry=registry):
                self._follow_registry(registry)
            case _:
                self._desk.serve(effect)

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any) -> None:
        def run() -> None:
            try:
                self._actor.mailbox.put(work(*arguments))
            except Exception:  # a defect must not leave an update or a merge waiting for ever without a word
                if self._stopping.is_set():
                    return  # its pools are gone; what was under way is done again at the next start
                log.exception("work.failed", work=work.__name__)
                raise

        if not self._stopping.is_set():  # what is not begun now is begun at the next start
            pool.submit(run)

    def _inputs(self, plan: MergePlan) -> Inputs:
        return Inputs(
            parent=self._record,
            states=self.journal.state_records(plan.version - 1),
            envelopes=[self.journal.envelope(member.id) for member in plan.members],
            registry=self.rules.registry,
            body=self._body(plan.parent, self.rules.registry),
        )

    def _body(self, parent: bytes | None, registry: Registry) -> Version:
        sites = len(registry.members(Role.SITE)) or 1
        return Version(
            parent=parent,
            spec_record=record_digest(self._spec_record),
            updates_per_base=self._strategy.updates_per_base,
            max_staleness=self._strategy.max_staleness(sites),
            evaluate=self._config.evaluate,
            task=self._config.task,
            registry=registry.version,
        )

    def _follow_registry(self, registry: Registry) -> None:
        self.registry = self._intake.registry = self._desk.registry = registry
        self.records.opened.clear()
        raw = self.journal.registry_record()
        if raw is not None:
            self._registry_digest = record_digest(raw)
        self._consume_sites()

    def _head(self, effect: events.PutHead) -> bytes:
        run = RunHead(
            run=self._config.name,
            state=effect.state,
            reason=effect.reason,
            version=effect.version,
            record=record_digest(self._record),
        )
        lifetime = 24 * 3600
        return self.records.head(
            effect.number, int(time.time()), self._registry_digest, [run], _new_id(), lifetime=lifetime
        )


def may_wait(write: Any) -> bool:
    """Whether a write may share a later commit: lost confirms are published again, lost admissions done again."""
    return isinstance(write, events.RemoveSent) or (
        isinstance(write, events.SetState) and write.state == UpdateState.VALIDATED
    )


def _new_id() -> bytes:
    return nacl.utils.random(16)
