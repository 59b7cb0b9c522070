"""The journal: the aggregator's whole memory in one database, written in fenced transactions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError, OperationalError

from aggregator import events
from aggregator.events import UpdateState
from aggregator.history import History, ledger_hash
from aggregator.tables import (
    SCHEMA,
    counters,
    lease,
    ledger,
    members,
    metadata,
    outbox,
    registries,
    run,
    states,
    updates,
    versions,
)
from aggregator.tables import evaluations as evaluations_table
from broker.database import commit_error, open_database
from broker.outbox import OutboxRow
from protocol.codec import encode
from protocol.errors import Fenced, StateError
from protocol.messages import RunState

Seal = Callable[[events.Send], bytes]
_PLAN = 64 * 1024 * 1024


class Journal(History):
    """Executes the rules' writes and answers what the unique keys say. One thread uses it.

    Opening it takes over: the epoch rises, and whoever held the database before is fenced at its next commit.
    """

    def __init__(self, path: Path | None, seal: Seal, *, engine: Any = None) -> None:
        """`engine` lets a test keep one in-memory database over several lives of the journal."""
        super().__init__(engine if engine is not None else open_database(path, metadata, SCHEMA))
        self._path = path
        self._seal = seal
        with self.engine.begin() as db:
            found = db.scalar(select(lease.c.epoch))
            self._epoch = 1 if found is None else found + 1
            db.execute(
                upsert(lease)
                .values(id=1, epoch=self._epoch)
                .on_conflict_do_update(index_elements=["id"], set_={"epoch": self._epoch})
            )

    # ---- the first version

    def begin(self, name: str, digest: bytes, record: bytes, spec_record: bytes, registry: int) -> None:
        """Store version 0; the run is running from here on."""
        with self._transaction() as db:
            db.execute(
                insert(run).values(
                    id=1,
                    name=name,
                    state=RunState.RUNNING.value,
                    reason="ok",
                    elapsed=0.0,
                    head=0,
                    last_row=0,
                    spec_record=spec_record,
                )
            )
            db.execute(insert(versions).values(version=0, digest=digest, plan=b"", record=record, registry=registry))
            self._chain(db, "run", {"name": name, "digest": digest, "registry": registry})

    # ---- commits

    def commit(self, writes: Sequence[Any]) -> list[Any]:
        """Write everything or nothing; returns the journal's answers to `JournalUpdate`.

        Raises:
            Fenced: another aggregator has taken over this database.
            StateError: the database cannot be written (the commit may still have happened).
        """
        answers: list[Any] = []
        try:
            with self._transaction() as db:
                for write in writes:
                    answer = self._write(write, db)
                    if answer is not None:
                        answers.append(answer)
        except OperationalError as error:
            raise commit_error(self._path, error) from error
        return answers

    def _transaction(self) -> Any:
        return _Fence(self.engine, self._epoch)

    @singledispatchmethod
    def _write(self, write: Any, db: Connection) -> Any:
        raise StateError(f"the journal does not know how to write {type(write).__name__}")

    @_write.register
    def _(self, write: events.JournalUpdate, db: Connection) -> Any:
        notice = write.notice
        try:
            with db.begin_nested():
                result = db.execute(
                    insert(updates).values(
                        id=notice.id,
                        site=notice.site,
                        epoch=notice.epoch,
                        sequence=notice.sequence,
                        base_version=notice.base_version,
                        envelope=notice.envelope,
                        state=UpdateState.JOURNALLED.value,
                        reason=write.objection,
                        examples=notice.examples,
                        seconds=notice.seconds,
                        absent=encode(notice.absent),
                        norm=0.0,
                        version=0,
                    )
                )
        except IntegrityError:
            return self._known(write, db)
        order = int(result.lastrowid)
        sha256 = hashlib.sha256(notice.envelope).digest()
        self._chain(
            db,
            "journalled",
            {
                "id": notice.id,
                "site": notice.site,
                "epoch": notice.epoch,
                "sequence": notice.sequence,
                "base": notice.base_version,
                "envelope": sha256,
            },
        )
        return events.Journalled(delivery=write.delivery, order=order, notice=notice, objection=write.objection)

    def _known(self, write: events.JournalUpdate, db: Connection) -> Any:
        """What the row in the way says: the same update again, or another one under a used sequence.

        An update that its site sealed again under another epoch has other bytes and numbers, but it is the same update.
        """
        notice = write.notice
        row = db.execute(select(updates).where(updates.c.site == notice.site, updates.c.id == notice.id)).one_or_none()
        if row is not None and (
            row.envelope == notice.envelope or (row.epoch, row.sequence) != (notice.epoch, notice.sequence)
        ):
            return events.Duplicate(
                delivery=write.delivery,
                notice=notice,
                state=UpdateState(row.state),
                reason=row.reason,
                version=row.version,
            )
        highest = db.scalar(select(func.max(updates.c.epoch)).where(updates.c.site == notice.site))
        return events.Reused(delivery=write.delivery, notice=notice, highest_epoch=int(highest or 0))

    @_write.register
    def _(self, write: events.SetState, db: Connection) -> None:
        values: dict[str, Any] = {"state": write.state.value, "reason": write.reason, "version": write.version}
        if write.norm:
            values["norm"] = write.norm
        db.execute(update(updates).where(updates.c.id == write.id).values(**values))

    @_write.register
    def _(self, write: events.Send, db: Connection) -> None:
        self._queue(db, write.row, write.exchange, write.key, self._seal(write))

    @_write.register
    def _(self, write: events.SendRaw, db: Connection) -> None:
        self._queue(db, write.row, write.exchange, write.key, write.body)

    def _queue(self, db: Connection, row: int, exchange: str, key: str, body: bytes) -> None:
        db.execute(insert(outbox).values(id=row, exchange=exchange, key=key, body=body))
        db.execute(update(run).values(last_row=row))
        self.fresh[row] = OutboxRow(id=row, exchange=exchange, key=key, body=body)

    @_write.register
    def _(self, write: events.RemoveSent, db: Connection) -> None:
        db.execute(delete(outbox).where(outbox.c.id == write.row))
        self.fresh.pop(write.row, None)

    @_write.register
    def _(self, write: events.CommitVersion, db: Connection) -> None:
        plan, product = write.plan, write.product
        db.execute(
            insert(versions).values(
                version=plan.version,
                digest=product.digest,
                plan=encode(plan),
                record=product.record,
                registry=plan.registry,
            )
        )
        if product.states:
            db.execute(
                insert(states),
                [{"version": plan.version, "stream": name, "record": raw} for name, raw in product.states.items()],
            )
        db.execute(
            insert(members),
            [
                {
                    "version": plan.version,
                    "position": i,
                    "id": m.id,
                    "site": m.site,
                    "examples": m.examples,
                    "seconds": m.seconds,
                    "norm": m.norm,
                }
                for i, m in enumerate(plan.members)
            ],
        )
        db.execute(update(run).values(elapsed=write.elapsed))

    @_write.register
    def _(self, write: events.ReplaceRecord, db: Connection) -> None:
        db.execute(
            update(versions)
            .where(versions.c.version == write.version)
            .values(record=write.record, registry=write.registry)
        )
        db.execute(update(run).values(spec_record=write.spec_record))

    @_write.register
    def _(self, write: events.StoreEvaluation, db: Connection) -> None:
        body = encode(write.evaluation)
        db.execute(
            upsert(evaluations_table)
            .values(version=write.version, site=write.site, body=body)
            .on_conflict_do_update(index_elements=["version", "site"], set_={"body": body})
        )

    @_write.register
    def _(self, write: events.StoreRegistry, db: Connection) -> None:
        db.execute(upsert(registries).values(version=write.version, record=write.record).on_conflict_do_nothing())

    @_write.register
    def _(self, write: events.SetRun, db: Connection) -> None:
        db.execute(update(run).values(state=write.state.value, reason=write.reason, elapsed=write.elapsed))

    @_write.register
    def _(self, write: events.SetHead, db: Connection) -> None:
        db.execute(update(run).values(head=write.number, elapsed=write.elapsed))

    @_write.register
    def _(self, write: events.SetCounter, db: Connection) -> None:
        db.execute(
            upsert(counters)
            .values(operator=write.operator, counter=write.counter)
            .on_conflict_do_update(index_elements=["operator"], set_={"counter": write.counter})
        )

    @_write.register
    def _(self, write: events.Audit, db: Connection) -> None:
        self._chain(db, write.kind, write.entry)

    def _chain(self, db: Connection, kind: str, entry: Any) -> None:
        last = db.scalar(select(ledger.c.hash).order_by(ledger.c.number.desc()).limit(1)) or b""
        packed = encode(dict(entry))
        db.execute(insert(ledger).values(kind=kind, entry=packed, hash=ledger_hash(last, kind, packed)))

    def store_registry(self, version: int, record: bytes) -> None:
        """Keep a signed registry; an older one stays beside it."""
        self.commit([events.StoreRegistry(version=version, record=record)])


class _Fence:
    """A transaction that begins with the fence."""

    def __init__(self, engine: Any, epoch: int) -> None:
        self._context = engine.begin()
        self._epoch = epoch

    def __enter__(self) -> Connection:
        db: Connection = self._context.__enter__()
        found = db.scalar(select(lease.c.epoch))
        if found != self._epoch:
            self._context.__exit__(None, None, None)
            raise Fenced(f"another aggregator (epoch {found}) has taken over from this one (epoch {self._epoch})")
        return db

    def __exit__(self, *details: Any) -> Any:
        return self._context.__exit__(*details)
