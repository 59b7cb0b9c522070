"""The journal: the aggregator's whole memory in one database, written in fenced transactions."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, singledispatchmethod
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import OperationalError

from aggregator.domain import events, writes
from aggregator.domain.state import NewRun, UpdateState
from aggregator.journal.command_writes import write_command
from aggregator.journal.history import AT, History, ledger_hash
from aggregator.journal.tables import (
    SCHEMA,
    federation,
    lease,
    ledger,
    members,
    metadata,
    outbox,
    registries,
    reports,
    runs,
    states,
    update_times,
    updates,
    versions,
)
from aggregator.journal.tables import evaluations as evaluations_table
from broker.runtime.database import Statement, commit_error, open_database, opening, replacing
from broker.transport.outbox import OutboxRow
from protocol.codec import encode
from protocol.errors import Fenced

Seal = Callable[[writes.Send], bytes]
_RECENT = 16 * 1024 * 1024
"""Bytes of envelopes kept in memory between journalling and merge, so that they are not read back."""

_fence = Statement(select(lease.c.epoch))
_last_hash = Statement(select(ledger.c.hash).order_by(ledger.c.number.desc()).limit(1))
_add_entry = Statement(insert(ledger), "kind", "entry", "hash")
_add_outgoing = Statement(insert(outbox), "id", "exchange", "key", "body")
_remove_outgoing = Statement(delete(outbox).where(outbox.c.id == bindparam("sent")))
_add_version = Statement(insert(versions), *(column.name for column in versions.columns))
_add_state = Statement(insert(states), *(column.name for column in states.columns))
_add_member = Statement(insert(members), *(column.name for column in members.columns))
_add_times = Statement(insert(update_times), "id", "arrived", "settled")
_set_settled = Statement(
    update(update_times).where(update_times.c.id == bindparam("of")).values(settled=bindparam("at"))
)
_add_update = Statement(
    upsert(updates).on_conflict_do_nothing(), *(column.name for column in updates.columns if column.name != "order")
)
_add_report = Statement(upsert(reports).on_conflict_do_nothing(), *(column.name for column in reports.columns))
_set_state = Statement(
    update(updates)
    .where(updates.c.id == bindparam("of"))
    .values(
        state=bindparam("new_state"),
        reason=bindparam("new_reason"),
        version=bindparam("new_version"),
        norm=func.coalesce(func.nullif(bindparam("new_norm"), 0.0), updates.c.norm),
    )
)


@dataclass(slots=True)
class _Batch:
    """What the transaction under way still has to write: many rows of a kind at once cost little more than one."""

    at: float = 0.0
    """When, by the hub's clock."""
    states: list[dict[str, object]] = field(default_factory=list)
    arrived: list[dict[str, object]] = field(default_factory=list)
    settled: list[dict[str, object]] = field(default_factory=list)
    entries: list[dict[str, object]] = field(default_factory=list)
    outgoing: list[OutboxRow] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    counted: dict[str, object] = field(default_factory=dict)
    runs: dict[str, dict[str, object]] = field(default_factory=dict)
    last_hash: bytes | None = None


class Journal(History):
    """Executes the rules' writes and answers what the unique keys say. One thread uses it.

    Opening it takes over: the epoch rises, and the process that held the database before is fenced at its next commit.
    """

    def __init__(
        self, path: Path | None, seal: Seal, *, engine: Engine | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`engine` lets a test keep one in-memory database over several lives of the journal.

        `clock` tells when things happened, in seconds since 1970; nothing is decided by it.
        """
        super().__init__(engine if engine is not None else open_database(path, metadata, SCHEMA))
        self._path = path
        self._seal = seal
        self._clock = clock
        self._batch = _Batch()
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._recent_bytes = 0
        with opening(self.engine, path), self.engine.begin() as db:
            found = db.scalar(select(lease.c.epoch))
            self._epoch = 1 if found is None else found + 1
            db.execute(replacing(lease, "id").values(id=1, epoch=self._epoch))
            db.execute(upsert(federation).values(id=1, head=0, last_row=0).on_conflict_do_nothing())

    # ---- runs

    def begin(self, new: NewRun) -> None:
        """Store a run that was not ordered from afar, with its version 0."""
        entry = {"run": new.rules.run, "digest": new.digest, "registry": new.registry}
        self.commit([writes.CreateRun(new=new), writes.Audit(kind="run", entry=entry)])

    def set_config(self, run: str, config: str) -> None:
        """Note a run's settings as they are now."""
        with self._transaction() as db:
            db.execute(update(runs).where(runs.c.name == run).values(config=config))

    # ---- commits

    def commit(self, decided: Sequence[writes.Write]) -> list[events.Recorded]:
        """Write everything or nothing; returns the journal's answers to `JournalUpdate`.

        Raises:
            Fenced: another aggregator has taken over this database.
            StateError: the database cannot be written (the commit may still have happened).
        """
        answers: list[events.Recorded] = []
        batch = self._batch = _Batch(at=round(self._clock(), 3))
        write_one = self._write  # looked up once: `singledispatchmethod` makes a function at every look
        try:
            with self._transaction() as db:
                for write in decided:
                    answer = write_one(write, db)
                    if answer is not None:
                        answers.append(answer)
                self._flush(db)
        except OperationalError as error:
            raise commit_error(self._path, error) from error
        self.fresh.update((row.id, row) for row in batch.outgoing)
        for sent in batch.sent:
            self.fresh.pop(sent, None)
        return answers

    def _flush(self, db: Connection) -> None:
        batch = self._batch
        self._flush_rows(db)
        if batch.entries:
            _add_entry.run_many(db, batch.entries)
        if batch.outgoing:
            rows = [{"id": r.id, "exchange": r.exchange, "key": r.key, "body": r.body} for r in batch.outgoing]
            _add_outgoing.run_many(db, rows)
        if batch.sent:
            _remove_outgoing.run_many(db, [{"sent": row} for row in batch.sent])
        if batch.counted:
            _set_counted(frozenset(batch.counted)).run(db, batch.counted)

    def _flush_rows(self, db: Connection) -> None:
        self._flush_states(db)
        for name, values in self._batch.runs.items():
            given = {f"{column}_": value for column, value in values.items()}
            _set_run(frozenset(values)).run(db, given | {"of": name})
        self._batch.runs = {}

    def _flush_states(self, db: Connection) -> None:
        if self._batch.states:
            _set_state.run_many(db, self._batch.states)
            self._batch.states = []
        if self._batch.arrived:
            _add_times.run_many(db, self._batch.arrived)
            self._batch.arrived = []
        if self._batch.settled:
            _set_settled.run_many(db, self._batch.settled)
            self._batch.settled = []

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction that begins with the fence."""
        with self.engine.begin() as db:
            if (found := _fence.value(db)) != self._epoch:
                raise Fenced(f"another aggregator (epoch {found}) has taken over from this one (epoch {self._epoch})")
            yield db

    @singledispatchmethod
    def _write(self, write: writes.Write, db: Connection) -> events.Recorded | None:
        self._flush_rows(db)
        write_command(write, db)
        return None

    @_write.register
    def _(self, write: writes.JournalUpdate, db: Connection) -> events.Recorded:
        notice = write.notice
        kept = write.objection == "ok"  # of what is refused the keys are enough, or one site could fill the disk
        who: dict[str, object] = {"id": notice.id, "run": notice.run, "site": notice.site}
        who |= {"epoch": notice.epoch, "sequence": notice.sequence}
        values = {
            **who,
            "base_version": notice.base_version,
            "envelope": notice.envelope if kept else b"",
            "state": UpdateState.JOURNALLED.value,
            "reason": write.objection,
            "examples": notice.examples,
            "seconds": notice.seconds,
            "absent": encode(notice.absent if kept else ()),
            "norm": 0.0,
            "version": 0,
        }
        result = _add_update.run(db, values)
        if result.rowcount == 0:
            return self._known(write, db)
        order = int(result.lastrowid or 0)
        self._batch.arrived.append({"id": notice.id, "arrived": self._batch.at, "settled": None})
        if kept:
            self._remember(notice.id, notice.envelope)
            place: dict[str, object] = {"id": notice.id, "run": notice.run, "site": notice.site}
            said = {"base_version": notice.base_version, "steps": notice.steps, "metrics": encode(dict(notice.metrics))}
            _add_report.run(db, place | said)
        sha256 = hashlib.sha256(notice.envelope).digest()
        self._chain(db, "journalled", {**who, "base": notice.base_version, "envelope": sha256})
        return events.Journalled(delivery=write.delivery, order=order, notice=notice, objection=write.objection)

    def _known(self, write: writes.JournalUpdate, db: Connection) -> events.Duplicate | events.Reused:
        """What the row in the way says: the same update again, or another one under a used sequence.

        An update that its site sealed again under another epoch has other bytes and numbers, but it is the same update.
        """
        notice = write.notice
        self._flush_states(db)
        row = db.execute(select(updates).where(updates.c.site == notice.site, updates.c.id == notice.id)).one_or_none()
        if row is not None and (
            row.envelope in (notice.envelope, b"") or (row.epoch, row.sequence) != (notice.epoch, notice.sequence)
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
    def _(self, write: writes.SetState, db: Connection) -> None:
        state = {"of": write.id, "new_state": write.state.value, "new_reason": write.reason}
        self._batch.states.append(state | {"new_version": write.version, "new_norm": write.norm})
        if write.state.final:
            self._batch.settled.append({"of": write.id, "at": self._batch.at})
            self._forget(write.id)

    @_write.register
    def _(self, write: writes.Send, db: Connection) -> None:
        self._queue(OutboxRow(id=write.row, exchange=write.exchange, key=write.key, body=self._seal(write)))

    @_write.register
    def _(self, write: writes.SendRaw, db: Connection) -> None:
        self._queue(OutboxRow(id=write.row, exchange=write.exchange, key=write.key, body=write.body))

    def _queue(self, row: OutboxRow) -> None:
        self._batch.outgoing.append(row)
        self._batch.counted["last_row"] = row.id

    @_write.register
    def _(self, write: writes.RemoveSent, db: Connection) -> None:
        self._batch.sent.append(write.row)

    @_write.register
    def _(self, write: writes.CommitVersion, db: Connection) -> None:
        plan, product = write.plan, write.product
        place: dict[str, object] = {"run": plan.run, "version": plan.version}
        made = {"digest": product.digest, "plan": encode(plan), "record": product.record, "registry": plan.registry}
        _add_version.run(db, place | made)
        for name, raw in product.states.items():
            _add_state.run(db, place | {"stream": name, "record": raw})
        rows: list[dict[str, object]] = [
            {"position": i, "id": m.id, "site": m.site, "examples": m.examples, "seconds": m.seconds, "norm": m.norm}
            for i, m in enumerate(plan.members)
        ]
        _add_member.run_many(db, [place | row for row in rows])
        self._of_run(plan.run)["elapsed"] = write.elapsed

    @_write.register
    def _(self, write: writes.ReplaceRecord, db: Connection) -> None:
        db.execute(
            update(versions)
            .where(versions.c.run == write.run, versions.c.version == write.version)
            .values(record=write.record, registry=write.registry)
        )
        self._of_run(write.run)["spec_record"] = write.spec_record

    @_write.register
    def _(self, write: writes.StoreEvaluation, db: Connection) -> None:
        values = {"run": write.run, "version": write.version, "site": write.site, "body": encode(write.evaluation)}
        db.execute(replacing(evaluations_table, "run", "version", "site").values(values))

    @_write.register
    def _(self, write: writes.StoreRegistry, db: Connection) -> None:
        db.execute(upsert(registries).values(version=write.version, record=write.record).on_conflict_do_nothing())

    @_write.register
    def _(self, write: writes.SetRun, db: Connection) -> None:
        changed = {"state": write.state.value, "reason": write.reason, "elapsed": write.elapsed}
        self._of_run(write.run).update(changed)

    def _of_run(self, name: str) -> dict[str, object]:
        return self._batch.runs.setdefault(name, {})

    @_write.register
    def _(self, write: writes.Look, db: Connection) -> None:
        """The transaction itself looked."""

    @_write.register
    def _(self, write: writes.SetHead, db: Connection) -> None:
        self._batch.counted["head"] = write.number
        for name, elapsed in write.elapsed.items():
            self._of_run(name)["elapsed"] = elapsed

    @_write.register
    def _(self, write: writes.Audit, db: Connection) -> None:
        self._chain(db, write.kind, write.entry)

    def _chain(self, db: Connection, kind: str, entry: Mapping[str, object]) -> None:
        batch = self._batch
        if batch.last_hash is None:
            batch.last_hash = _last_hash.value(db) or b""
        packed = encode({**entry, AT: batch.at})
        batch.last_hash = ledger_hash(batch.last_hash, kind, packed)
        batch.entries.append({"kind": kind, "entry": packed, "hash": batch.last_hash})

    # ---- envelopes

    def envelope(self, id: bytes) -> bytes:
        """The signed bytes of a journalled update."""
        return self._recent.get(id) or super().envelope(id)

    def _remember(self, id: bytes, envelope: bytes) -> None:
        self._forget(id)
        self._recent[id] = envelope
        self._recent_bytes += len(envelope)
        while self._recent_bytes > _RECENT:
            self._forget(next(iter(self._recent)))

    def _forget(self, id: bytes) -> None:
        self._recent_bytes -= len(self._recent.pop(id, b""))

    def store_registry(self, version: int, record: bytes) -> None:
        """Keep a signed registry; an older one stays beside it."""
        self.commit([writes.StoreRegistry(version=version, record=record)])


@cache
def _set_counted(columns: frozenset[str]) -> Statement:
    return Statement(update(federation).values({name: bindparam(name) for name in columns}))


@cache
def _set_run(columns: frozenset[str]) -> Statement:
    """The statement that sets these columns of the run called `of`."""
    new: dict[str, ColumnElement[object]] = {name: bindparam(f"{name}_") for name in columns}
    return Statement(update(runs).where(runs.c.name == bindparam("of")).values(new))
