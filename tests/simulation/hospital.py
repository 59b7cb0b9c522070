"""A site in the simulation: the product's worker rules and journal, or a script that sends what it was given.

The shell's slow work (fetching, training, uploading, sealing again) follows the product's: an upload always puts the
first chunk and skips others that are there, a chunk the spool cannot give is lost, the spool is swept at start.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from protocol import topology
from protocol.messages import Head, Outcome, Receipt, RunHead, RunState
from tests.simulation.centre import RUN, update_message
from tests.simulation.surroundings import (
    PREFETCH,
    Database,
    Delivery,
    Process,
    read_back,
    require,
    sha256,
    write_down,
)
from worker.domain import effects, events
from worker.domain.effects import ForgetAnswer, KeepLast, LookAtClock
from worker.domain.events import ClockSeen
from worker.domain.state import Sealed, UpdateRow
from worker.rules.worker import WorkerTerms

if TYPE_CHECKING:
    from tests.simulation.world import World


class Hospital(Process):
    """One life of a worker; `disk` outlives it."""

    def __init__(self, world: World, site: str, disk: Disk) -> None:
        super().__init__(world, site)
        self.site = site
        self.disk = disk
        self.queues = (topology.down_queue(site), topology.inbox_queue(site))
        self.alarms: list[str] = []
        self.aborting = False

    def start(self) -> None:
        """What the service does before its first turn."""
        world, parts = self.world, self.world.parts
        self.journal = parts.worker_journal(None, self.site, clock=lambda: world.now, engine=self.disk.database.engine)
        self.slow_writes(self.journal)
        snapshot = self.journal.load()
        named = {name for update in snapshot.updates for name in update.chunks}
        self.disk.spool = {name: data for name, data in self.disk.spool.items() if name in named}
        world.witness.worker_started(self.site, snapshot)
        self.rules = parts.worker_rules(
            snapshot,
            WorkerTerms(heartbeat=world.rules.heartbeat),
            site=self.site,
            new_id=world.new_id,
            dice=random.Random(world.dice.random()),
        )
        self.actor = parts.worker_actor(self.rules, self.commit, self.perform, clock=lambda: world.now)
        self.mailbox = [events.HeadWanted(connected=True)]

    @property
    def ready(self) -> bool:
        """Whether the broker may deliver more."""
        return len(self.unacked) < PREFETCH

    @property
    def idle(self) -> bool:
        """Whether nothing is left to send; what the aggregator has validated only waits."""
        snapshot = self.journal.load()
        waits = self.world.witness.waits
        return not snapshot.messages and all(waits(self.site, update.id) for update in snapshot.updates)

    def commit(self, writes: Any) -> Any:
        """The shell's commit."""
        self.point("before the commit")
        answers = self.journal.commit(writes)
        self.world.witness.worker_committed(self, writes)
        self.point("after the commit")
        return answers

    def reconnect(self) -> None:
        """A new connection asks for the head."""
        super().reconnect()
        if self.alive:
            self.mailbox.append(events.HeadWanted(connected=True))

    # ---- deliveries

    def take(self, delivery: Delivery) -> None:
        """What the reader makes of a delivery; what cannot be read is acked, and the head may explain it."""
        message = read_back(delivery.body)
        if message["kind"] == "receipt":
            self.mailbox.append(receipt_seen(message, delivery))
        elif message["kind"] == "head":
            self.mailbox.append(head_seen(message, delivery, self.world.now))
        elif self.site in message["to"]:
            self.mailbox.append(version_seen(message, delivery.body, delivery))
        else:
            delivery.ack()
            self.mailbox.append(events.HeadWanted(connected=False))

    # ---- effects

    def effect(self, effect: Any) -> None:
        """What the service does about each effect."""
        match effect:
            case effects.Settle(delivery=delivery):
                delivery.ack()
            case effects.PullHead():
                self.answer("pull the head", self.pull_head)
            case effects.FetchRegistry(digest=digest):
                self.answer("fetch a registry", partial(self.fetch_registry, digest))
            case effects.FetchVersion():
                self.answer(f"fetch version {effect.version}", partial(self.fetch_version, effect))
            case effects.UseRegistry():
                pass  # in the simulation the aggregator's key never changes
            case effects.Train():
                self.begin_training(effect)
            case effects.AbortTraining():
                self.aborting = True
            case LookAtClock():
                self.mailbox.append(ClockSeen(local=datetime.fromtimestamp(self.world.now, UTC)))
            case effects.Upload(row=row, anew=anew):
                self.answer(f"upload {row.id.hex()[:4]}", partial(self.upload, row, anew))
            case effects.Reseal(row=row, epoch=epoch, sequence=sequence):
                sealed = self.journal.sealed(row.row)
                if sealed is not None:
                    self.answer(f"reseal {row.id.hex()[:4]}", partial(self.reseal, row, sealed, epoch, sequence))
            case effects.Publish(row=row):
                message = self.journal.outgoing(row)
                if message is not None:
                    confirmed = partial(self.confirmed, row)
                    self.relay(row, message.exchange, message.key, message.body, confirmed)
            case effects.DropSpool(chunks=chunks):
                self.drop(chunks)
            case effects.ReportStatus(publish=True) if not self.world.chance(0.3):
                body = write_down({"kind": "event", "site": self.site})
                self.world.broker.publish(topology.event_exchange(self.site), "", body)
            case effects.Alarm(event=event):
                self.alarms.append(event)
            case effects.ReportStatus() | effects.Settled() | ForgetAnswer() | KeepLast():
                pass
            case _:
                raise TypeError(f"the simulated worker does not know {effect}")

    def confirmed(self, row: int) -> Any:
        """The broker has this row."""
        return events.Published(row=row)

    def drop(self, chunks: tuple[bytes, ...]) -> None:
        """Delete chunks from the spool."""
        self.world.witness.dropping(self.site, chunks)
        for name in chunks:
            self.disk.spool.pop(name, None)

    def pull_head(self) -> Any:
        """The head from the store."""
        raw = self.world.store.head
        if self.world.chance(0.2):
            return events.FetchFailed()
        return None if raw is None else head_seen(read_back(raw), None, self.world.now)

    def fetch_registry(self, digest: bytes) -> Any:
        """A registry record from the store."""
        if self.world.chance(0.2) or digest not in self.world.store.records:
            return events.FetchFailed()
        return events.RegistrySeen(
            registry=self.world.registries[digest], digest=digest, record=self.world.store.records[digest]
        )

    def fetch_version(self, effect: effects.FetchVersion) -> Any:
        """A version record from the store; one that is not sealed for this site is refused."""
        raw = self.world.store.records.get(effect.digest)
        if self.world.chance(0.2) or raw is None:
            return events.FetchFailed()
        message = read_back(raw)
        if self.site not in message["to"] or message["version"] != effect.version:
            return events.FetchFailed()
        return version_seen(message, raw, None)

    # ---- training and sending

    def begin_training(self, effect: effects.Train) -> None:
        """Open the base version and begin."""
        base = read_back(self.journal.version_record(effect.run))
        require(base["version"] == effect.version, self.site, "trains from the version it was told to")
        require(self.site in base["to"], self.site, "can open the version it trains from")
        self.aborting = False
        pending = [effect.evaluation] if effect.evaluation else []

        def run() -> bool:
            if self.aborting:
                self.mailbox.append(events.TrainingFailed(id=effect.id, code="aborted"))
                return True
            if self.world.chance(0.1):
                code = self.world.dice.choice(["disk_full", "store", "trainer"])
                self.mailbox.append(events.TrainingFailed(id=effect.id, code=code))
                return True
            if pending:
                self.mailbox.append(events.Evaluated(id=effect.id, envelope=self.evaluation(pending.pop(), effect)))
                return effect.measure_only
            self.mailbox.append(events.Trained(id=effect.id, sealed=self.train(effect)))
            return True

        self.job(f"train from {effect.version}", run)

    def evaluation(self, id: bytes, effect: effects.Train) -> bytes:
        """What this site found about a version."""
        value = self.world.dice.random()
        return write_down(
            {
                "kind": "evaluation",
                "site": self.site,
                "id": id,
                "version": effect.version,
                "examples": 10,
                "metrics": {"accuracy": value},
            }
        )

    def train(self, effect: effects.Train) -> Sealed:
        """A finished update with its chunks in the spool."""
        return self.seal(
            update_message(
                self.site,
                effect.id,
                sha256(effect.id, self.site.encode()),
                epoch=effect.epoch,
                sequence=effect.sequence,
                base=effect.version,
                run=effect.run,
            )
        )

    def seal(self, message: Mapping[str, Any]) -> Sealed:
        """The signed bytes; the chunks are in the spool and synced."""
        for name in message["chunks"]:
            self.disk.spool[name] = message["content"]
        raw = write_down(message)
        return Sealed(envelope=raw, chunks=tuple(message["chunks"]), key=b"wrapped")

    def upload(self, row: UpdateRow, anew: bool) -> Any:
        """Put the update's chunks."""
        for index, name in enumerate(row.chunks):
            if self.world.chance(0.1):
                return events.SendingFailed(row=row.row, lost=False)
            if index > 0 and not anew and (self.site, name) in self.world.store.chunks:
                continue
            if name not in self.disk.spool:
                return events.SendingFailed(row=row.row, lost=True)
            self.world.store.chunks[self.site, name] = self.disk.spool[name]
        return events.Uploaded(row=row.row)

    def reseal(self, row: UpdateRow, sealed: Sealed, epoch: int, sequence: int) -> Any:
        """The same update under another epoch and sequence."""
        if self.world.chance(0.1):
            return events.SendingFailed(row=row.row, lost=False)
        if any(name not in self.disk.spool for name in sealed.chunks):
            return events.SendingFailed(row=row.row, lost=True)
        old = read_back(sealed.envelope)
        message = update_message(
            self.site,
            old["id"],
            old["content"],
            epoch=epoch,
            sequence=sequence,
            base=old["base"],
            run=old["run"],
            flaw=old["flaw"],
        )
        return events.Resealed(row=row.row, epoch=epoch, sequence=sequence, sealed=self.seal(message))


class Disk:
    """What a worker's machine keeps: the database and the spool; a backup is both."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.spool: dict[bytes, bytes] = {}
        self.backup: tuple[bytes, dict[bytes, bytes]] | None = None

    def back_up(self) -> None:
        """Take a backup."""
        self.backup = (self.database.copy(), dict(self.spool))

    def restore(self) -> None:
        """Go back to the backup."""
        if self.backup is not None:
            self.database.restore(self.backup[0])
            self.spool = dict(self.backup[1])


class Script(Process):
    """A site without a worker: it sends given updates until it has a final receipt for each, and never crashes."""

    def __init__(self, world: World, site: str, updates: list[dict[str, Any]]) -> None:
        super().__init__(world, site)
        self.site = site
        self.queues = (topology.inbox_queue(site), topology.down_queue(site))
        self.open: dict[bytes, dict[str, Any]] = {}
        self.outcomes: dict[bytes, tuple[str, str]] = {}
        self._row = 0
        self._epochs = 0
        for update in updates:
            self.send(update)

    @property
    def ready(self) -> bool:
        """Whether the broker may deliver more."""
        return True

    @property
    def idle(self) -> bool:
        """Whether every update has its final receipt or waits, validated, at the aggregator."""
        return not self.jobs and all(self.world.witness.waits(self.site, id) for id in self.open)

    def send(self, update: dict[str, Any]) -> None:
        """Upload and publish."""
        self.open[update["id"]] = update
        for name in update["chunks"]:
            self.world.store.chunks[self.site, name] = update["content"]
        raw = write_down(update)
        self._row += 1
        self.relay(self._row, topology.up_exchange(self.site), "", raw, lambda: None)

    def take(self, delivery: Delivery) -> None:
        """Act on a receipt at once; announcements do not matter to a script."""
        message = read_back(delivery.body)
        delivery.ack()
        if message["kind"] != "receipt" or message["message"] not in self.open:
            return
        update, outcome = self.open[message["message"]], Outcome(message["outcome"])
        if outcome == Outcome.REUPLOAD:
            self.send(update)
        elif outcome == Outcome.SEQUENCE_REUSED:
            if (message["epoch"], message["sequence"]) == (update["epoch"], update["sequence"]):
                self._epochs = max(self._epochs, message["highest_epoch"]) + 1
                self.send(resigned(update, epoch=self._epochs, sequence=1))
        else:
            del self.open[update["id"]]
            self.outcomes[update["id"]] = (outcome.value, message["reason"])

    def turn(self, events: int | None = None) -> None:
        """A script has no actor."""
        self.mailbox.clear()


def resigned(update: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same update under other numbers."""
    plain = {k: v for k, v in update.items() if k not in ("kind", "site", "id", "content", "chunks")}
    return update_message(update["site"], update["id"], update["content"], **{**plain, **changes})


def head_seen(message: dict[str, Any], delivery: Delivery | None, now: float) -> events.HeadSeen:
    """A verified head."""
    run = RunHead(
        run=RUN,
        state=RunState(message["state"]),
        reason=message["reason"],
        version=message["version"],
        record=message["record"],
    )
    head = Head(
        number=message["number"],
        issued=0,
        not_after=message["not_after"],
        registry=message["registry"],
        runs=(run,),
    )
    return events.HeadSeen(delivery=delivery, head=head, wall=now)


def version_seen(message: dict[str, Any], raw: bytes, delivery: Delivery | None) -> events.VersionSeen:
    """A verified version record."""
    return events.VersionSeen(
        delivery=delivery,
        run=message["run"],
        version=message["version"],
        record=raw,
        digest=sha256(raw),
        updates_per_base=message["updates_per_base"],
        evaluate=message["evaluate"],
    )


def receipt_seen(message: dict[str, Any], delivery: Delivery) -> events.ReceiptSeen:
    """A verified receipt."""
    receipt = Receipt(
        message=message["message"],
        epoch=message["epoch"],
        sequence=message["sequence"],
        outcome=Outcome(message["outcome"]),
        reason=message["reason"],
        highest_epoch=message["highest_epoch"],
    )
    return events.ReceiptSeen(delivery=delivery, receipt=receipt, version=message["version"], raw=delivery.body)
