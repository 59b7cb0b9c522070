"""What the journal remembers, read only: for the rules at start, for replay, export and audit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, Row, func, select

from aggregator.domain.state import RunSnapshot, Sanction, Snapshot, UpdateRow, UpdateState
from aggregator.journal.run_history import RunHistory, read_evaluations
from aggregator.journal.tables import (
    DELETED,
    channels,
    counters,
    federation,
    ledger,
    measures,
    members,
    models,
    outbox,
    registries,
    runs,
    updates,
    versions,
)
from aggregator.strategy.weighting import SiteStatistics
from broker.runtime.database import open_readonly
from broker.transport.outbox import OutboxRow
from protocol import limits
from protocol.codec import decode, unpack
from protocol.errors import StateError
from protocol.messages import RunState
from protocol.registry import Registry

_AS_STORED = ("order", "id", "run", "site", "epoch", "sequence", "base_version", "examples", "seconds", "norm")
AT = "at"
"""Under which name a ledger entry holds when it was noted, in seconds since 1970."""
_PART = 1000
"""Rows of one look at a table that grows: while a reader looks, the writer has to wait."""
_LOOKED_AT = 2048
"""Ledger entries about commands in which unanswered ones are looked for at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One entry of the ledger as it is stored."""

    number: int
    kind: str
    entry: bytes
    hash: bytes


class History:
    """Reads an aggregator's database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fresh: dict[int, OutboxRow] = {}
        """Outbox rows written and not yet taken by the relay."""

    @classmethod
    def open(cls, path: Path) -> History:
        """Read a database beside the aggregator that writes it.

        Raises:
            StateError: there is no such database.
        """
        return cls(open_readonly(path))

    def names(self) -> tuple[str, ...]:
        """Every run that was not deleted, in the order they were made."""
        with self.engine.connect() as db:
            return tuple(db.scalars(select(runs.c.name).where(runs.c.state != DELETED).order_by(runs.c.number)))

    def run(self, name: str) -> RunHistory:
        """One run of this database."""
        return RunHistory(self.engine, name)

    def load(self, registry: Registry) -> Snapshot:
        """Everything the rules need to go on."""
        with self.engine.connect() as db:
            counted = db.execute(select(federation)).one_or_none()
            every = db.execute(select(runs.c.name, runs.c.state).order_by(runs.c.number)).all()
            waiting = db.execute(select(outbox).order_by(outbox.c.id))
            self.fresh = {r.id: OutboxRow(id=r.id, exchange=r.exchange, key=r.key, body=r.body) for r in waiting}
            pending = _pending(db)
            there = [row.name for row in every if row.state != DELETED]
            epoch = (updates.c.site, updates.c.epoch)
            highest = db.execute(select(*epoch, func.max(updates.c.sequence)).group_by(*epoch))
            named: dict[str, tuple[str, ...]] = {}
            for row in db.execute(select(channels).order_by(channels.c.number)):
                named[row.channel] = (*named.get(row.channel, ()), row.name)
            return Snapshot(
                head=counted.head if counted else 0,
                last_row=counted.last_row if counted else 0,
                registry=registry,
                outbox=list(self.fresh),
                highest={(site, epoch): sequence for site, epoch, sequence in highest},
                counters={row.operator: row.counter for row in db.execute(select(counters))},
                sanctions={row.site: Sanction(row.measure, row.registry) for row in db.execute(select(measures))},
                awaited=_awaited(db),
                runs={name: _run(db, name, pending.get(name, [])) for name in there},
                strays=[row for name, rows in pending.items() if name not in there for row in rows],
                taken=frozenset(row.name for row in every),
                models=tuple(db.scalars(select(models.c.name))),
                channels=named,
            )

    def envelope(self, id: bytes) -> bytes:
        """The signed bytes of a journalled update."""
        with self.engine.connect() as db:
            found: bytes | None = db.scalar(select(updates.c.envelope).where(updates.c.id == id))
        if found is None:
            raise StateError(f"update {id.hex()} is not in the journal")
        return found

    def envelopes(self) -> Iterator[tuple[bytes, UpdateState]]:
        """The signed bytes of every journalled update with its state, in order, read in parts; not of deleted runs."""
        last = 0
        kept = select(updates.c.order, updates.c.envelope, updates.c.state).where(updates.c.envelope != b"")
        while True:
            part = kept.where(updates.c.order > last).order_by(updates.c.order).limit(_PART)
            with self.engine.connect() as db:
                rows = db.execute(part).all()
            if not rows:
                return
            last = rows[-1].order
            yield from ((row.envelope, UpdateState(row.state)) for row in rows)

    def model(self, name: str) -> tuple[str, bytes] | None:
        """A published model's run and signed card."""
        with self.engine.connect() as db:
            row = db.execute(select(models.c.run, models.c.record).where(models.c.name == name)).one_or_none()
        return None if row is None else (row.run, row.record)

    def model_records(self) -> list[bytes]:
        """The signed cards of all published models."""
        with self.engine.connect() as db:
            return list(db.scalars(select(models.c.record)))

    def registry_record(self) -> bytes | None:
        """The newest registry stored."""
        with self.engine.connect() as db:
            return db.scalar(select(registries.c.record).order_by(registries.c.version.desc()).limit(1))

    def update_rows(self, ids: list[bytes]) -> list[UpdateRow]:
        """Journalled updates in the order of `ids`."""
        with self.engine.connect() as db:
            found = {row.id: _update_row(row) for row in db.execute(select(updates).where(updates.c.id.in_(ids)))}
        if missing := [id.hex()[:8] for id in ids if id not in found]:
            raise StateError(f"updates {missing} are not in the journal")
        return [found[id] for id in ids]

    def ledger(self) -> Iterator[LedgerRow]:
        """Every entry of the ledger, in order, read in parts."""
        last = 0
        while True:
            part = select(ledger).where(ledger.c.number > last).order_by(ledger.c.number).limit(_PART)
            with self.engine.connect() as db:
                rows = [LedgerRow(**row._mapping) for row in db.execute(part)]
            if not rows:
                return
            last = rows[-1].number
            yield from rows

    def broken_link(self) -> int | None:
        """The number of the first ledger entry whose hash does not follow from the one before, or None."""
        previous = b""
        for row in self.ledger():
            if ledger_hash(previous, row.kind, row.entry) != row.hash:
                return row.number
            previous = row.hash
        return None

    def close(self) -> None:
        self.engine.dispose()


def _pending(db: Connection) -> dict[str, list[UpdateRow]]:
    """Updates that have not come to their end, by run."""
    open_states = [state.value for state in UpdateState if not state.final]
    found: dict[str, list[UpdateRow]] = {}
    for row in db.execute(select(updates).where(updates.c.state.in_(open_states)).order_by(updates.c.order)):
        found.setdefault(row.run, []).append(_update_row(row))
    return found


def _run(db: Connection, name: str, rows: list[UpdateRow]) -> RunSnapshot:
    current = db.execute(select(runs).where(runs.c.name == name)).one()
    of_run = select(versions).where(versions.c.run == name)
    newest = db.execute(of_run.order_by(versions.c.version.desc()).limit(1)).one()
    site_statistics = SiteStatistics()
    merged = select(members).where(members.c.run == name).order_by(members.c.version, members.c.position)
    for row in db.execute(merged):
        site_statistics.observe(row.site, row.examples, row.seconds)
        site_statistics.norms.append(row.norm)
    site_statistics.merged(())
    kept = read_evaluations(db, name)
    return RunSnapshot(
        operator=current.operator,
        version=newest.version,
        digest=newest.digest,
        state=RunState(current.state),
        reason=current.reason,
        elapsed=current.elapsed,
        record_registry=newest.registry,
        rows=rows,
        site_statistics=site_statistics,
        evaluations=kept,
    )


@dataclass(frozen=True, slots=True)
class _CommandEntry:
    """Of a command's ledger entry: whom it was handed to."""

    taken: bool
    id: bytes = b""
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _ReplyEntry:
    """Of a reply's ledger entry: what it answers."""

    command: bytes
    site: str


def _awaited(db: Connection) -> list[tuple[bytes, str]]:
    """Which of the newest commands were handed to which sites, without those that were replied to."""
    asked: dict[tuple[bytes, str], None] = {}
    newest = select(ledger.c.number, ledger.c.kind, ledger.c.entry).where(ledger.c.kind.in_(("command", "reply")))
    for row in reversed(db.execute(newest.order_by(ledger.c.number.desc()).limit(_LOOKED_AT)).all()):
        if row.kind == "reply":
            reply = decode(_ReplyEntry, row.entry, limits.STORED_RECORD)
            asked.pop((reply.command, reply.site), None)
            continue
        command = decode(_CommandEntry, row.entry, limits.STORED_RECORD)
        if command.taken:
            asked |= dict.fromkeys((command.id, site) for site in command.sites)
    return list(asked)


def read_entry(entry: bytes) -> tuple[float | None, dict[str, object]]:
    """When a ledger entry was noted (seconds since 1970; None: before times were), and what else it says."""
    plain = unpack(entry, limits.STORED_RECORD)
    said = dict(plain) if isinstance(plain, dict) else {}
    at = said.pop(AT, None)
    return at if isinstance(at, float) else None, said


def ledger_hash(previous: bytes, kind: str, entry: bytes) -> bytes:
    """The hash of one ledger entry."""
    return hashlib.sha256(previous + kind.encode() + b"\0" + entry).digest()


def _update_row(row: Row[tuple[object, ...]]) -> UpdateRow:
    state = UpdateState(row.state)
    return UpdateRow(
        **{name: row._mapping[name] for name in _AS_STORED},
        state=state,
        objection=row.reason if state == UpdateState.JOURNALLED else "ok",
        absent=decode(tuple[str, ...], row.absent, limits.BODY),
    )
