"""The worker's shell: threads, queues, store and journal around the rules.

One thread steps the rules and owns the journal. Deliveries are verified on the transport's threads; fetching, training
and uploading have a thread each, which lives as long as the worker and sleeps while there is nothing to do.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import assert_never

from broker.blobs.base import BlobStore
from broker.runtime.actor import Actor, Mailbox
from broker.runtime.crash_points import crash_point
from broker.runtime.health import Health
from broker.runtime.threads import Lane
from broker.transport.base import Delivery, Subscription, Transport
from broker.transport.outbox import Relay
from protocol import topology
from protocol.envelope import kind_of
from protocol.errors import DatabaseBusy, DiskFull, WireError
from protocol.messages import Kind
from worker.domain import effects, events, writes
from worker.domain.state import Leaving
from worker.intake import NotForUs
from worker.journal.approvals import Approvals
from worker.journal.journal import Journal
from worker.pipeline.context import ReaderInForce, SiteContext
from worker.pipeline.fetcher import Fetcher
from worker.pipeline.training import Job, Training
from worker.pipeline.uploader import Uploader
from worker.rules.worker import WorkerRules
from worker.service.code_deployer import CodeDeployer
from worker.service.command_handler import CommandHandler
from worker.service.grant_client import GrantClient
from worker.service.settings import WorkerSettings
from worker.service.status import StatusReporter
from worker.storage.code_store import CodeStore
from worker.storage.spool import Spool

DOUBTS = ("untrusted", "revoked", "not_for_us")
"""Reasons that a newer registry may explain."""
_GRACE = 30.0
_AGAIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGround:
    """What stands before anything is fetched, trained or sent."""

    settings: WorkerSettings
    state: Path
    store: BlobStore
    lock: int
    """Holds the state directory for this process; closed when the worker ends."""
    mailbox: Mailbox[events.Event]
    journal: Journal
    reader: ReaderInForce
    context: SiteContext
    spool: Spool
    codes: CodeStore


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """What a worker is made of; `assembly` makes them, and nothing here makes its own."""

    ground: WorkerGround
    rules: WorkerRules
    transport: Transport
    relay_dice: random.Random
    fetcher: Fetcher
    training: Training
    uploader: Uploader
    approvals: Approvals
    grants: GrantClient
    deployer: CodeDeployer
    commands: CommandHandler
    status: StatusReporter
    health: Health


class WorkerService:
    """One site's worker. `start` returns at once; `join` waits; errors surface in `join`."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts, ground = parts, parts.ground
        self.site = ground.context.site
        self.journal = ground.journal
        self.grants = parts.grants
        self.accepted = parts.grants.accepted
        """Set when the hub has answered this process for the first time."""
        self.health = parts.health
        self._log = ground.context.log
        self._transport = parts.transport
        self._reader = ground.reader
        self._actor = Actor(parts.rules, self._commit, self._perform, mailbox=ground.mailbox)
        self._relay = Relay(parts.transport, self._confirmed, dice=parts.relay_dice)
        self._obey = Lane[Callable[[], None]](f"{self.site} obey", lambda work: work())
        self._fetch = Lane[effects.Fetch](f"{self.site} fetch", parts.fetcher.fetch)
        self._send = Lane[Callable[[], None]](f"{self.site} send", lambda work: work())
        self._train = Lane[Callable[[], None]](f"{self.site} train", lambda work: work())
        self._publishing: dict[int, bytes] = {}
        self._abort = threading.Event()
        self._stopping = threading.Event()
        self._subscriptions: list[Subscription] = []
        self._thread = threading.Thread(target=self._run, name=f"{self.site} worker", daemon=True)
        self._error: BaseException | None = None
        self.leaving: Leaving = ""
        """What an operator commanded, if that is why the worker ends."""
        self.ended = threading.Event()
        """Set when the worker has ended, by `stop` or by an error."""

    # ---- life

    def start(self) -> None:
        """Begin to listen, train and send."""
        self.health.begin()
        self._thread.start()
        self._subscriptions += [
            self._transport.consume(topology.down_queue(self.site), self._take_announcement),
            self._transport.consume(topology.inbox_queue(self.site), self._take_inbox),
        ]
        self._transport.on_connected(self._connected)
        self._transport.on_refused(lambda: self.health.let_in(False))
        self._log.info("worker.started", federation=self._parts.ground.settings.federation)

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
            self._parts.status.tell("stopped")
            self._close()
            self._log.info("worker.stopped")

    def _close(self) -> None:
        self._relay.close()
        self._parts.uploader.close()
        for lane in (self._fetch, self._send, self._train, self._obey):
            lane.stop(0)
        self._parts.training.close()
        self.journal.close()
        self.health.ended()
        os.close(self._parts.ground.lock)
        self.ended.set()

    # ---- deliveries

    def _take_announcement(self, delivery: Delivery) -> None:
        self._take(delivery, lambda: self._announced(delivery))

    def _announced(self, delivery: Delivery) -> events.Event:
        event = self._reader().announcement(delivery.body, delivery, time.time())
        if isinstance(event, events.VersionSeen):
            self._log.info("version.received", run=event.run, version=event.version)
        return event

    def _take_inbox(self, delivery: Delivery) -> None:
        self._take(delivery, lambda: self._read_inbox(delivery))

    def _read_inbox(self, delivery: Delivery) -> events.Event | None:
        match kind_of(delivery.body):
            case Kind.COMMAND:
                return self._parts.commands.read(delivery.body, delivery, time.time())
            case Kind.GRANT:
                self.grants.take(delivery.body)
                delivery.ack()
                return None
            case _:
                return self._reader().receipt(delivery.body, delivery)

    def _connected(self) -> None:
        self.health.let_in(True)
        self._actor.mailbox.put(events.HeadWanted(connected=True))

    def _take(self, delivery: Delivery, read: Callable[[], events.Event | None]) -> None:
        try:
            event = read()
        except WireError as error:
            self._log.warning("message.refused", queue=delivery.queue, reason=error.reason, error=str(error))
            delivery.ack()
            if error.reason not in DOUBTS:
                return
            event = events.HeadWanted(connected=False)
            if isinstance(error, NotForUs):
                event = events.SiteLeftOut(run=error.run, version=error.version)
        if event is not None:
            self._actor.mailbox.put(event)

    def _confirmed(self, row: int) -> None:
        update = self._publishing.pop(row, b"")
        if update:
            self._log.info("update.published", update=update.hex()[:8])
        crash_point("worker.confirmed")
        self._actor.mailbox.put(events.Published(row=row))

    # ---- commits and effects

    def _commit(self, written: Sequence[writes.Write]) -> tuple[()]:
        """Commit as soon as the disk has room and nobody locks it: all waits until then, and nothing is lost."""
        while True:
            try:
                return self.journal.commit(written)
            except (DiskFull, DatabaseBusy) as error:
                self._log.error("journal.blocked", error=str(error), seconds=_AGAIN)
                self._parts.status.blocked()
                if self._stopping.wait(_AGAIN):
                    raise

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Settle(delivery=delivery, what=what):
                if what == "version":
                    crash_point("worker.noted")
                delivery.ack()
            case effects.PullHead() | effects.FetchRegistry() | effects.FetchVersion():
                self._fetch.put(effect)
                if isinstance(effect, effects.PullHead):  # at every connection, and every now and then
                    self.grants.hello()
            case effects.UseRegistry(registry=registry):
                self._reader.follow(registry)
                self._log.info("registry.changed", version=registry.version)
            case effects.Train(run=run):
                self._begin_training(effect, self.journal.version_record(run))
            case effects.AbortTraining():
                self._abort.set()
            case effects.LookAtClock():
                self._actor.mailbox.put(events.ClockSeen(local=datetime.now()))  # the hospital's own time of day
            case effects.ForgetAnswer(run=run):
                self._parts.approvals.noted(run)
            case effects.Obey(command=command):
                self._obey.put(lambda: self._parts.commands.obey(command))
            case effects.SendReply(command=command, reason=reason, text=text, values=values):
                self._obey.put(lambda: self._parts.commands.answer(command, reason, text, dict(values)))
            case effects.ForgetCode(code=code):
                self._obey.put(lambda: self._parts.deployer.forget(code))
            case effects.ForgetOwn(run=run):
                self._train.put(lambda: self._parts.training.forget_own(run))
            case effects.KeepLast(run=run):
                record = self.journal.version_record(run)
                self._train.put(lambda: self._parts.training.keep_last(run, record, self._stopping))
            case effects.Leave(leaving=leaving):
                self.leaving = leaving
                threading.Thread(target=self.stop, name=f"{self.site} leave", daemon=True).start()
            case effects.ReportStatus():
                self._report(effect)
            case effects.Judged(why=why):
                self.health.revoked(bool(why))
                self._parts.status.judged(why)
            case effects.Alarm(event=event, details=details):
                self._log.error(event, **details)
            case effects.Upload() | effects.Reseal() | effects.Publish() | effects.Settled() | effects.DropSpool():
                self._perform_sending(effect)
            case _:
                assert_never(effect)

    def _begin_training(self, training: effects.Train, record: bytes) -> None:
        abort = self._abort = threading.Event()
        if self._stopping.is_set():  # looked at after the event was put in place, so `stop` cannot miss it
            abort.set()
        job = Job(training, record, abort)
        work = self._parts.training.measure if training.measure_only else self._parts.training.run
        self._train.put(lambda: work(job))

    def _perform_sending(self, effect: effects.Sending) -> None:
        match effect:
            case effects.Upload(row=row, anew=anew):
                self._log.info("update.spooled", update=row.id.hex()[:8], sequence=row.sequence)
                crash_point("worker.spooled")
                self._send.put(lambda: self._parts.uploader.upload(row, anew=anew))
            case effects.Reseal(row=row, epoch=epoch, sequence=sequence):
                sealed = self.journal.sealed(row.row)
                if sealed is not None:
                    self._send.put(lambda: self._parts.uploader.reseal(row, sealed, epoch, sequence))
            case effects.Publish(row=number, update=id):
                outgoing = self.journal.outgoing(number)
                if outgoing is not None:
                    self._publishing[number] = id
                    self._relay.send([outgoing])
                    crash_point("worker.published")
            case effects.Settled(row=row, outcome=outcome, reason=reason, version=version):
                self._log.info(
                    "update.settled", update=row.id.hex()[:8], outcome=outcome.value, reason=reason, version=version
                )
                crash_point("worker.receipt")
            case effects.DropSpool(chunks=chunks):
                self._parts.ground.spool.drop(chunks)
            case _:
                assert_never(effect)

    # ---- signs of life

    def _report(self, report: effects.ReportStatus) -> None:
        self._parts.status.report(report)
        self.health.stuck("; ".join(filter(None, (self._parts.status.stuck, self._parts.status.outdated))))
        if report.publish:
            for run, approved in self._parts.approvals.take().items():
                self._actor.mailbox.put(events.RunAnswered(run=run, approved=approved))
