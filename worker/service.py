"""The worker's shell: threads, queues, store and journal around the rules.

One thread steps the rules and owns the journal. Deliveries are verified on the transport's threads; fetching, training
and uploading have a thread each, which lives as long as the worker and sleeps while there is nothing to do.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nacl.utils
import structlog

from broker.actor import Actor
from broker.blobs import BlobStore
from broker.crash import crash_point
from broker.lanes import Lane
from broker.outbox import Relay
from broker.transport import Delivery, Subscription, Transport
from protocol import topology
from protocol.envelope import NO_RUN, seal
from protocol.errors import ConfigError, DiskFull, FledgeError, StateError, WireError
from protocol.keys import Identity, Role
from protocol.messages import Event, Kind
from protocol.registry import Registry
from worker import events
from worker.announcements import Reader, read_registry
from worker.fetching import Fetcher
from worker.filters import FilterChain
from worker.journal import Journal
from worker.own import OwnTensors
from worker.rules import WorkerRules
from worker.spool import Spool
from worker.trainer import Trainer
from worker.training import Job, Training
from worker.uploading import Uploader

DOUBTS = ("untrusted", "revoked", "not_for_us")
"""Reasons that a newer registry may explain."""
_PROGRESS_EVERY = 0.1
_GRACE = 30.0
_AGAIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """What one worker is doing now, for display."""

    site: str
    state: str
    run: str
    version: int
    progress: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Observer = Callable[[WorkerEvent], None]


def _nobody(event: WorkerEvent) -> None:
    """The observer of a worker that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Who this worker is, what it trains and what may leave its site."""

    federation: str
    identity: Identity
    registry_record: bytes
    """The signed registry of the kit; a newer one that was noted since comes before it."""
    root: bytes
    """The federation root's verify key."""
    trainer: Trainer
    filters: FilterChain
    exclude: Sequence[str] = ()
    spool_quota: int = 16 * 1024**3
    """Bytes."""
    heartbeat: float = 20.0
    """Seconds."""
    seed: bytes = field(default_factory=lambda: nacl.utils.random(32), repr=False)
    """What every training's seed is made from; given, trainings can be repeated."""


class WorkerService:
    """One site's worker. `start` returns at once; `join` waits; errors surface in `join`."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        transport: Transport,
        store: BlobStore,
        state: Path,
        on_event: Observer = _nobody,
        new_id: Callable[[], bytes] = lambda: nacl.utils.random(16),
        dice: random.Random | None = None,
    ) -> None:
        """Open the state directory and take up what an earlier process left.

        Transport and store stay the caller's to close. `on_event` may be called from several threads.

        Raises:
            ConfigError: the identity is not a site's.
            WireError: the registry is not signed by the federation's root.
            StateError: the state directory cannot be used, or another worker uses it.
        """
        identity = settings.identity
        if identity.role != Role.SITE:
            raise ConfigError(f"{identity.name} is a key of the role {identity.role.value}; a worker needs a site's")
        self.site = topology.check_site(identity.name)
        self._settings = settings
        self._state = state
        self._transport = transport
        self._on_event = on_event
        self._software = _software()
        self._log = structlog.get_logger("worker").bind(site=self.site)
        self._dice = dice or random.Random()
        self._lock_file = _hold(state)
        try:
            rules = self._open(new_id)
        except BaseException:
            os.close(self._lock_file)
            raise
        self._actor = Actor(rules, self._commit, self._perform)
        self._relay = Relay(transport, self._confirmed, dice=self._dice)
        self._build_lanes(store)
        self._publishing: dict[int, bytes] = {}
        self._abort = threading.Event()
        self._stopping = threading.Event()
        self._shown = WorkerEvent(site=self.site, state="idle", run="", version=-1, progress=0.0)
        self._shown_at = float("-inf")
        self._subscriptions: list[Subscription] = []
        self._thread = threading.Thread(target=self._run, name=f"{self.site} worker", daemon=True)
        self._error: BaseException | None = None
        self.ended = threading.Event()
        """Set when the worker has ended, by `stop` or by an error."""

    def _open(self, new_id: Callable[[], bytes]) -> WorkerRules:
        """Open journal and spool and build the rules from them."""
        settings = self._settings
        self.journal = Journal(self._state / "worker.db", self.site)
        registry = self._registry(settings.registry_record, settings.root)
        self._reader = Reader(settings.identity, settings.federation, registry)
        snapshot = self.journal.load()
        self._spool = Spool(self._state / "spool", settings.spool_quota)
        swept = self._spool.sweep([name for update in snapshot.updates for name in update.chunks])
        self._log.info("worker.opened", updates=len(snapshot.updates), leftovers=swept, registry=registry.version)
        return WorkerRules(snapshot, site=self.site, heartbeat=settings.heartbeat, new_id=new_id, dice=self._dice)

    def _build_lanes(self, store: BlobStore) -> None:
        tell, settings = self._actor.mailbox.put, self._settings
        fetcher = Fetcher(store, self._reading, settings.root, tell, time.time, self._log)
        self._uploader = Uploader(store, self._spool, self.site, self._reading, tell, self._log)
        self._training = Training(
            trainer=settings.trainer,
            filters=settings.filters,
            exclude=settings.exclude,
            own=OwnTensors(self._state / "own", settings.identity, settings.federation),
            seed=settings.seed,
            store=store,
            spool=self._spool,
            reader=self._reading,
            tell=tell,
            progress=self._on_progress,
            log=self._log,
        )
        self._fetch = Lane[Any](f"{self.site} fetch", fetcher.fetch)
        self._send = Lane[Callable[[], None]](f"{self.site} send", lambda work: work())
        self._train = Lane[Job](f"{self.site} train", self._training.run)

    def _registry(self, kit: bytes, root: bytes) -> Registry:
        """The newer of the kit's registry and the one that was noted last."""
        first = read_registry(kit, root, self._settings.federation)
        noted = self.journal.registry_record()
        if noted is not None:
            last = read_registry(noted, root, self._settings.federation)
            if last.registry.version >= first.registry.version:
                return last.registry
        self.journal.commit(
            [events.NoteRegistry(version=first.registry.version, digest=first.digest, record=first.record)]
        )
        return first.registry

    # ---- life

    def start(self) -> None:
        """Begin to listen, train and send."""
        self._thread.start()
        self._subscriptions += [
            self._transport.consume(topology.down_queue(self.site), self._take_announcement),
            self._transport.consume(topology.inbox_queue(self.site), self._take_receipt),
        ]
        self._transport.on_connected(lambda: self._actor.mailbox.put(events.HeadWanted(connected=True)))
        self._log.info("worker.started", federation=self._settings.federation)

    def stop(self) -> None:
        """End orderly: a training is aborted, what is journalled goes out at the next start. Idempotent."""
        self._stopping.set()
        self._abort.set()
        for subscription in self._subscriptions:
            subscription.cancel()
        if not self._train.stop(_GRACE):
            self._log.warning("training.still_running", waited_s=_GRACE)
        self._actor.mailbox.close()
        if self._thread.ident is None and not self.ended.is_set():
            self._close()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises:
            FledgeError: what ended the worker, if it was not `stop`.
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
            self._log.error("worker.failed", kind=type(error).__name__, error=str(error))
        finally:
            self._actor.mailbox.close()
            self._abort.set()
            for subscription in self._subscriptions:
                subscription.cancel()
            self._publish_event("stopped")
            self._close()
            self._log.info("worker.stopped")

    def _close(self) -> None:
        self._relay.close()
        for lane in (self._fetch, self._send, self._train):
            lane.stop(0)
        self._training.close()
        self.journal.close()
        os.close(self._lock_file)
        self.ended.set()

    def _reading(self) -> Reader:
        return self._reader

    # ---- deliveries

    def _take_announcement(self, delivery: Delivery) -> None:
        self._take(delivery, lambda: self._announced(delivery))

    def _announced(self, delivery: Delivery) -> Any:
        event = self._reader.announcement(delivery.body, delivery, time.time())
        if isinstance(event, events.VersionSeen):
            self._log.info("version.received", run=event.run, version=event.version)
        return event

    def _take_receipt(self, delivery: Delivery) -> None:
        self._take(delivery, lambda: self._reader.receipt(delivery.body, delivery))

    def _take(self, delivery: Delivery, read: Callable[[], Any]) -> None:
        try:
            event = read()
        except WireError as error:
            self._log.warning("message.refused", queue=delivery.queue, reason=error.reason, error=str(error))
            delivery.ack()
            if error.reason not in DOUBTS:
                return
            event = events.HeadWanted(connected=False)
        self._actor.mailbox.put(event)

    def _confirmed(self, row: int) -> None:
        update = self._publishing.pop(row, b"")
        if update:
            self._log.info("update.published", update=update.hex()[:8])
        crash_point("worker.confirmed")
        self._actor.mailbox.put(events.Published(row=row))

    # ---- commits and effects

    def _commit(self, writes: Sequence[Any]) -> Sequence[Any]:
        """Commit as soon as the disk has room: everything waits until then, and nothing is lost."""
        while True:
            try:
                return self.journal.commit(writes)
            except DiskFull as error:
                self._log.error("journal.blocked", error=str(error), seconds=_AGAIN)
                self._show(replace(self._shown, state="blocked"))
                if self._stopping.wait(_AGAIN):
                    raise

    def _perform(self, effect: Any) -> None:
        match effect:
            case events.Settle(delivery=delivery, what=what):
                if what == "version":
                    crash_point("worker.noted")
                delivery.ack()
            case events.PullHead() | events.FetchRegistry() | events.FetchVersion():
                self._fetch.put(effect)
            case events.UseRegistry(registry=registry):
                self._reader = replace(self._reader, registry=registry)
                self._log.info("registry.changed", version=registry.version)
            case events.Train(run=run):
                self._begin_training(effect, self.journal.version_record(run))
            case events.AbortTraining():
                self._abort.set()
            case events.Report():
                self._report(effect)
            case events.Alarm(event=event, details=details):
                self._log.error(event, **details)
            case _:
                self._perform_sending(effect)

    def _begin_training(self, training: events.Train, record: bytes) -> None:
        abort = self._abort = threading.Event()
        if self._stopping.is_set():  # looked at after the event was put in place, so `stop` cannot miss it
            abort.set()
        self._train.put(Job(training, record, abort))

    def _perform_sending(self, effect: Any) -> None:
        match effect:
            case events.Upload(row=row, anew=anew):
                self._log.info("update.spooled", update=row.id.hex()[:8], sequence=row.sequence)
                crash_point("worker.spooled")
                self._send.put(lambda: self._uploader.upload(row, anew=anew))
            case events.Reseal(row=row, epoch=epoch, sequence=sequence):
                sealed = self.journal.sealed(row.row)
                if sealed is not None:
                    self._send.put(lambda: self._uploader.reseal(row, sealed, epoch, sequence))
            case events.Publish(row=number, update=id):
                outgoing = self.journal.outgoing(number)
                if outgoing is not None:
                    self._publishing[number] = id
                    self._relay.send([outgoing])
                    crash_point("worker.published")
            case events.Settled(row=row, outcome=outcome, reason=reason, version=version):
                self._log.info(
                    "update.settled",
                    update=row.id.hex()[:8],
                    outcome=outcome.value,
                    reason=reason,
                    version=version,
                )
                crash_point("worker.receipt")
            case events.DropSpool(chunks=chunks):
                self._spool.drop(chunks)
            case _:
                raise StateError(f"the worker knows no effect {type(effect).__name__}")

    # ---- signs of life

    def _report(self, report: events.Report) -> None:
        shown = self._shown
        if (report.state, report.run, report.version) != (shown.state, shown.run, shown.version):
            self._show(
                WorkerEvent(site=self.site, state=report.state, run=report.run, version=report.version, progress=0.0)
            )
        if report.publish:
            self._publish_event(report.state)

    def _on_progress(self, share: float, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if share < 1 and now - self._shown_at < _PROGRESS_EVERY:
            return
        self._shown_at = now
        self._show(replace(self._shown, progress=min(1.0, max(0.0, share)), metrics=dict(metrics)))

    def _show(self, event: WorkerEvent) -> None:
        self._shown = event
        try:
            self._on_event(event)
        except Exception:  # whoever watches must not be able to stop the worker
            self._log.exception("observer.failed")

    def _publish_event(self, state: str) -> None:
        """Tell the aggregator; nobody waits for the confirm and a failure is dropped."""
        shown = self._shown
        try:
            event = Event(state=state, progress=shown.progress, metrics=dict(shown.metrics), software=self._software)
            raw = seal(
                self._settings.identity,
                Kind.EVENT,
                event,
                self._reader.aggregators,
                federation=self._settings.federation,
                message_id=nacl.utils.random(16),
                run=shown.run or NO_RUN,
                version=max(0, shown.version),
            )
            self._transport.publish(topology.event_exchange(self.site), "", raw)
        except FledgeError as error:
            self._log.debug("event.dropped", error=str(error))


def _software() -> str:
    try:
        return f"fledge-{importlib.metadata.version('fledge-fl')}"
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "fledge"


def _hold(state: Path) -> int:
    """Make the state directory and lock it for this process; the descriptor holds the lock until it is closed."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(state / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"state directory {state}: {error.strerror}; check the path and its permissions") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise StateError(f"state directory {state}: another worker uses it; stop that one first") from None
    return file
