"""The worker's journal: what it noted, what it has to send and what became of what it sent, in one SQLite file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import singledispatchmethod
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, bindparam, delete, insert, literal, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import OperationalError

from broker.runtime.database import Statement, commit_error, open_database, open_readonly, opening, replacing
from broker.transport.outbox import OutboxRow
from protocol.errors import StateError
from protocol.messages import RunState
from protocol.topology import up_exchange
from worker.domain import writes
from worker.domain.state import ON_ITS_WAY, Deployment, RunRow, Sealed, SentUpdate, Snapshot, UpdateRow
from worker.journal import tables

SCHEMA = 1
T = TypeVar("T")
_DIGEST = 32
_metadata = tables.metadata

_run_names = [column.name for column in tables.runs.columns if column.name not in ("run", "record")]


_note_version = Statement(replacing(tables.runs, "run"), *tables.runs.columns.keys())
_note_run = Statement(replacing(tables.runs, "run", keep=("record",)), *tables.runs.columns.keys())
_note_registry = upsert(tables.registries).on_conflict_do_nothing()
_forget_registries = delete(tables.registries).where(tables.registries.c.version < bindparam("below"))
_note_head = Statement(update(tables.counters).values(head=bindparam("number")))
_reserve = Statement(update(tables.counters).values(epoch=bindparam("new_epoch"), sequence=bindparam("new_sequence")))
_add_update = Statement(insert(tables.updates), *tables.updates.columns.keys())
_replace_update = (
    update(tables.updates)
    .where(tables.updates.c.row == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in ("epoch", "sequence", "chunks", "envelope", "key")})
)
_forget_update = Statement(delete(tables.updates).where(tables.updates.c.row == bindparam("of")))
_add_digest = Statement(upsert(tables.sealed_digests).on_conflict_do_nothing(), "id", "sha256")
_add_receipt = Statement(upsert(tables.receipts).on_conflict_do_nothing(), *tables.receipts.columns.keys())
_add_message = insert(tables.outbox)
_forget_message = delete(tables.outbox).where(tables.outbox.c.id == bindparam("of"))
_note_answer = replacing(tables.answers, "run")
_note_bundle = Statement(replacing(tables.bundles, "run"), "run", "bundle")
_note_deployment = replacing(tables.deployments, "run")
_record_of = Statement(select(tables.runs.c.record).where(tables.runs.c.run == bindparam("name")))
_sealed_of = select(tables.updates.c.envelope, tables.updates.c.chunks, tables.updates.c.key).where(
    tables.updates.c.row == bindparam("of")
)
_envelope_of = select(tables.updates.c.envelope).where(tables.updates.c.row == bindparam("of"))
_message_of = select(tables.outbox).where(tables.outbox.c.id == bindparam("of"))


class Journal:
    """One worker's database; every method belongs to the thread that runs the rules."""

    def __init__(
        self, path: Path | None, site: str, *, clock: Callable[[], float] = time.time, engine: Engine | None = None
    ) -> None:
        """Open or create it; `path` None keeps it in memory. `clock` stamps rows for people to read.

        `engine` lets a test keep one in-memory database over several lives of the journal.

        Raises:
            StateError: another version wrote it, it is damaged, or it cannot be opened.
        """
        self._path = path
        self._site = site
        self._clock = clock
        self._records: dict[str, bytes] = {}
        self._fresh: dict[int, OutboxRow] = {}
        """Rows written by this process and not read yet: most are wanted once, right after their commit."""
        self._engine = engine if engine is not None else open_database(path, _metadata, SCHEMA)
        with opening(self._engine, path), self._begin() as db:
            db.execute(upsert(tables.counters).values(id=1, epoch=0, sequence=0, head=0).on_conflict_do_nothing())

    @classmethod
    def beside(cls, path: Path) -> Snapshot:
        """What a worker has noted, read beside it while it runs.

        Raises:
            StateError: there is no journal, or it cannot be read.
        """
        return _read_beside(path, _load)

    @classmethod
    def registry_beside(cls, path: Path) -> bytes | None:
        """The newest registry's signed record, read beside the worker; errors as with `beside`."""
        return _read_beside(path, _registry_record)

    @classmethod
    def sent_beside(cls, path: Path) -> list[SentUpdate]:
        """Every update that was made and what became of it, the newest first, read beside the worker; errors as with
        `beside`."""
        return _read_beside(path, _sent)

    @classmethod
    def digests_beside(cls, path: Path, id: bytes) -> frozenset[bytes]:
        """SHA-256 of all envelopes that an update was sealed as here; errors as with `beside`."""
        table = tables.sealed_digests.c
        return _read_beside(path, lambda db: frozenset(db.scalars(select(table.sha256).where(table.id == id))))

    def _begin(self) -> AbstractContextManager[Connection]:
        return self._engine.begin()

    def close(self) -> None:
        self._engine.dispose()

    def commit(self, decided: Sequence[writes.Write]) -> tuple[()]:
        """Carry out all of them in one transaction, durable on return; there is never anything to answer.

        Raises:
            DiskFull: nothing was written.
            StateError: any other failure; it may have been written, so load again.
        """
        write_one = self._write  # looked up once: `singledispatchmethod` makes a function at every look
        try:
            with self._begin() as db:
                for write in decided:
                    write_one(write, db)
        except OperationalError as error:
            raise commit_error(self._path, error) from error
        for write in decided:
            self._remember(write)
        return ()

    def _remember(self, write: writes.Write) -> None:
        match write:
            case writes.NoteVersion(row=row, record=record):
                self._records[row.run] = record
            case writes.AddUpdate(row=row, sealed=sealed) | writes.ReplaceUpdate(row=row, sealed=sealed):
                self._fresh[row.row] = self._up(row.row, sealed.envelope)
            case writes.AddMessage(row=number, exchange=exchange, body=body):
                self._fresh[number] = OutboxRow(id=number, exchange=exchange, key="", body=body)
            case writes.SettleUpdate(row=row):
                self._fresh.pop(row.row, None)

    def _up(self, row: int, body: bytes) -> OutboxRow:
        return OutboxRow(id=row, exchange=up_exchange(self._site), key="", body=body)

    @singledispatchmethod
    def _write(self, write: writes.Write, db: Connection) -> None:
        raise StateError(f"the worker's journal knows no write {type(write).__name__}")

    @_write.register
    def _(self, write: writes.NoteVersion, db: Connection) -> None:
        _note_version.run(db, _run_values(write.row) | {"record": write.record})
        _note_bundle.run(db, {"run": write.row.run, "bundle": write.row.bundle})

    @_write.register
    def _(self, write: writes.NoteRun, db: Connection) -> None:
        _note_run.run(db, _run_values(write.row) | {"record": b""})

    @_write.register
    def _(self, write: writes.NoteHead, db: Connection) -> None:
        _note_head.run(db, {"number": write.number})

    @_write.register
    def _(self, write: writes.NoteRegistry, db: Connection) -> None:
        db.execute(_note_registry, {"version": write.version, "digest": write.digest, "record": write.record})
        db.execute(_forget_registries, {"below": write.version})

    @_write.register
    def _(self, write: writes.NoteAnswer, db: Connection) -> None:
        db.execute(_note_answer, {"run": write.run, "approved": write.approved, "given": self._clock()})

    @_write.register
    def _(self, write: writes.NoteDrained, db: Connection) -> None:
        db.execute(delete(tables.drains))
        if write.drained:
            db.execute(insert(tables.drains).values(since=self._clock()))

    @_write.register
    def _(self, write: writes.Reserve, db: Connection) -> None:
        _reserve.run(db, {"new_epoch": write.epoch, "new_sequence": write.sequence})

    @_write.register
    def _(self, write: writes.AddUpdate, db: Connection) -> None:
        made = {"row": write.row.row, "made": self._clock()}
        _add_update.run(db, _numbers(write.row) | _sealed(write.row, write.sealed) | made)
        _note_digest(db, write)

    @_write.register
    def _(self, write: writes.ReplaceUpdate, db: Connection) -> None:
        values = {"epoch": write.row.epoch, "sequence": write.row.sequence} | _sealed(write.row, write.sealed)
        db.execute(_replace_update, {"of": write.row.row} | {f"new_{name}": value for name, value in values.items()})
        _note_digest(db, write)

    @_write.register
    def _(self, write: writes.SettleUpdate, db: Connection) -> None:
        said = {"outcome": write.outcome, "reason": write.reason, "version": write.version, "receipt": write.receipt}
        _add_receipt.run(db, _numbers(write.row) | said | {"received": self._clock()})
        _forget_update.run(db, {"of": write.row.row})

    @_write.register
    def _(self, write: writes.AddMessage, db: Connection) -> None:
        db.execute(_add_message, {"id": write.row, "exchange": write.exchange, "key": "", "body": write.body})

    @_write.register
    def _(self, write: writes.RemoveMessage, db: Connection) -> None:
        db.execute(_forget_message, {"of": write.row})

    @_write.register
    def _(self, write: writes.NoteCounter, db: Connection) -> None:
        db.execute(replacing(tables.orders, "operator").values(operator=write.key, counter=write.counter))

    @_write.register
    def _(self, write: writes.NoteDeployment, db: Connection) -> None:
        kept = write.deployment
        values = {"run": write.run, "code": kept.code, "operator": kept.operator, "since": self._clock()}
        db.execute(_note_deployment, values)

    @_write.register
    def _(self, write: writes.DropDeployment, db: Connection) -> None:
        db.execute(delete(tables.deployments).where(tables.deployments.c.run == write.run))

    @_write.register
    def _(self, write: writes.NoteLeft, db: Connection) -> None:
        db.execute(delete(tables.left_runs).where(tables.left_runs.c.run == write.run))
        if write.left:
            db.execute(insert(tables.left_runs).values(run=write.run, since=self._clock()))

    def load(self) -> Snapshot:
        """What the rules start from."""
        with self._begin() as db:
            return _load(db)

    def registry_record(self) -> bytes | None:
        """The newest registry's signed record, if one was noted."""
        with self._begin() as db:
            return _registry_record(db)

    def version_record(self, run: str) -> bytes:
        """The signed record of the newest version of `run`; empty before the first."""
        if run not in self._records:
            with self._begin() as db:
                found: bytes | None = _record_of.value(db, {"name": run})
            self._records[run] = found or b""
        return self._records[run]

    def sealed(self, row: int) -> Sealed | None:
        """An update's signed bytes, chunks and wrapped key; None once it is settled."""
        with self._begin() as db:
            found = db.execute(_sealed_of, {"of": row}).first()
        if found is None:
            return None
        return Sealed(envelope=found.envelope, chunks=_names(found.chunks), key=found.key)

    def outgoing(self, row: int) -> OutboxRow | None:
        """What the relay has to publish for this row; None once it is settled or confirmed."""
        fresh = self._fresh.pop(row, None)
        if fresh is not None:
            return fresh
        with self._begin() as db:
            envelope: bytes | None = db.scalar(_envelope_of, {"of": row})
            if envelope is not None:
                return self._up(row, envelope)
            found = db.execute(_message_of, {"of": row}).first()
        return None if found is None else OutboxRow(**found._mapping)

    def receipts(self) -> list[dict[str, object]]:
        """Every settled update with its outcome, oldest first."""
        with self._begin() as db:
            rows = db.execute(select(tables.receipts).order_by(tables.receipts.c.received, tables.receipts.c.id))
            return [dict(row._mapping) for row in rows]


def _read_beside(path: Path, read: Callable[[Connection], T]) -> T:
    engine = open_readonly(path)
    try:
        with engine.connect() as db:
            return read(db)
    except OperationalError as error:
        raise StateError(f"{path}: {error.orig}; has its worker been started with this version?") from error
    finally:
        engine.dispose()


def _sent(db: Connection) -> list[SentUpdate]:
    waiting, settled = tables.updates.c, tables.receipts.c
    columns = ("id", "run", "base_version", "epoch", "sequence")
    under_way = [
        *(waiting[name] for name in columns),
        *(literal(ON_ITS_WAY).label("outcome"), literal("-").label("reason"), literal(0).label("version")),
        *(literal(b"").label("receipt"), waiting.made.label("at")),
    ]
    told = (*columns, "outcome", "reason", "version", "receipt")
    done = [*(settled[name] for name in told), settled.received.label("at")]
    rows = [
        *db.execute(select(*under_way).order_by(waiting.row.desc())),
        *db.execute(select(*done).order_by(settled.received.desc(), settled.id)),
    ]
    return [SentUpdate(**row._mapping) for row in rows]


def _registry_record(db: Connection) -> bytes | None:
    found: bytes | None = db.scalar(
        select(tables.registries.c.record).order_by(tables.registries.c.version.desc()).limit(1)
    )
    return found


def _load(db: Connection) -> Snapshot:
    counters = db.execute(select(tables.counters)).one()
    registry = db.execute(select(tables.registries).order_by(tables.registries.c.version.desc())).first()
    runs = db.execute(select(*(c for c in tables.runs.columns if c.name != "record")))
    of_update = [column for column in tables.updates.columns if column.name not in ("envelope", "key", "made")]
    updates = db.execute(select(*of_update).order_by(tables.updates.c.row))
    messages = db.scalars(select(tables.outbox.c.id).order_by(tables.outbox.c.id))
    answers = db.execute(select(tables.answers.c.run, tables.answers.c.approved))
    drained = db.scalar(select(tables.drains.c.since))
    bundles = {row.run: row.bundle for row in db.execute(select(tables.bundles))}
    deployed = db.execute(select(tables.deployments))
    return Snapshot(
        epoch=counters.epoch,
        sequence=counters.sequence,
        head=counters.head,
        registry=registry.version if registry else 0,
        registry_digest=registry.digest if registry else b"",
        runs=tuple(
            RunRow(**(dict(row._mapping) | {"state": RunState(row.state), "bundle": bundles.get(row.run, b"")}))
            for row in runs
        ),
        updates=tuple(UpdateRow(**(dict(row._mapping) | {"chunks": _names(row.chunks)})) for row in updates),
        messages=tuple(messages),
        answers={row.run: row.approved for row in answers},
        drained=drained is not None,
        counters={row.operator: row.counter for row in db.execute(select(tables.orders))},
        deployments={row.run: Deployment(code=row.code, operator=row.operator) for row in deployed},
        left=frozenset(db.scalars(select(tables.left_runs.c.run))),
    )


def _run_values(row: RunRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in ("run", *_run_names)} | {"state": row.state.value}


def _note_digest(db: Connection, write: writes.AddUpdate | writes.ReplaceUpdate) -> None:
    _add_digest.run(db, {"id": write.row.id, "sha256": hashlib.sha256(write.sealed.envelope).digest()})


def _numbers(row: UpdateRow) -> dict[str, object]:
    of_run = {"id": row.id, "run": row.run, "base_version": row.base_version}
    return {**of_run, "epoch": row.epoch, "sequence": row.sequence}


def _sealed(row: UpdateRow, sealed: Sealed) -> dict[str, object]:
    return {"chunks": b"".join(row.chunks), "envelope": sealed.envelope, "key": sealed.key}


def _names(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[start : start + _DIGEST] for start in range(0, len(joined), _DIGEST))
