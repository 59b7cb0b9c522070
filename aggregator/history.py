"""What the journal remembers, read only: for the rules at start, for replay, export and audit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, select

from aggregator.evaluations import Evaluations
from aggregator.events import UpdateRow, UpdateState
from aggregator.order_events import Measured
from aggregator.plan import MergePlan
from aggregator.snapshot import Snapshot
from aggregator.standing import Standing
from aggregator.tables import counters, ledger, measures, members, outbox, registries, run, states, updates, versions
from aggregator.tables import evaluations as evaluations_table
from broker.database import Prepared, open_readonly
from broker.outbox import OutboxRow
from protocol import limits
from protocol.codec import decode, unpack
from protocol.errors import StateError
from protocol.messages import Evaluation, RunState
from protocol.registry import Registry

_PLAN = 64 * 1024 * 1024
_LOOKED_AT = 2048
"""Ledger entries about commands in which unanswered ones are looked for at the start."""
_states_of = Prepared(select(states.c.stream, states.c.record).where(states.c.version == bindparam("of")))


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

    @property
    def empty(self) -> bool:
        """Whether version 0 is still to be stored."""
        with self.engine.connect() as db:
            return db.scalar(select(run.c.id)) is None

    def load(self, registry: Registry) -> Snapshot:
        """Everything the rules need to go on."""
        with self.engine.connect() as db:
            current = db.execute(select(run)).one()
            newest = db.execute(select(versions).order_by(versions.c.version.desc()).limit(1)).one()
            standing = Standing()
            for row in db.execute(select(members).order_by(members.c.version, members.c.position)):
                standing.observe(row.site, row.examples, row.seconds)
                standing.norms.append(row.norm)
            standing.merged(())
            kept = Evaluations()
            for row in db.execute(select(evaluations_table).order_by(evaluations_table.c.version)):
                kept.add(row.version, row.site, decode(Evaluation, row.body, limits.BODY))
            pending = [state.value for state in UpdateState if not state.final]
            rows = db.execute(select(updates).where(updates.c.state.in_(pending)).order_by(updates.c.order))
            highest = db.execute(
                select(updates.c.site, updates.c.epoch, func.max(updates.c.sequence)).group_by(
                    updates.c.site, updates.c.epoch
                )
            )
            waiting = db.execute(select(outbox).order_by(outbox.c.id))
            self.fresh = {r.id: OutboxRow(id=r.id, exchange=r.exchange, key=r.key, body=r.body) for r in waiting}
            return Snapshot(
                version=newest.version,
                digest=newest.digest,
                state=RunState(current.state),
                reason=current.reason,
                elapsed=current.elapsed,
                head=current.head,
                last_row=current.last_row,
                registry=registry,
                record_registry=newest.registry,
                rows=[_update_row(row) for row in rows],
                outbox=list(self.fresh),
                highest={(site, epoch): sequence for site, epoch, sequence in highest},
                standing=standing,
                evaluations=kept,
                counters={row.operator: row.counter for row in db.execute(select(counters))},
                awaited=_awaited(db),
                measures={row.site: Measured(row.measure, row.registry) for row in db.execute(select(measures))},
            )

    def envelope(self, id: bytes) -> bytes:
        """The signed bytes of a journalled update."""
        with self.engine.connect() as db:
            found: bytes | None = db.scalar(select(updates.c.envelope).where(updates.c.id == id))
        if found is None:
            raise StateError(f"update {id.hex()} is not in the journal")
        return found

    def envelopes(self) -> Iterator[tuple[bytes, UpdateState]]:
        """The signed bytes of every journalled update with its state, in order."""
        with self.engine.connect() as db:
            for row in db.execute(select(updates.c.envelope, updates.c.state).order_by(updates.c.order)):
                yield row.envelope, UpdateState(row.state)

    def version_record(self, version: int) -> bytes:
        """The signed record of a version."""
        with self.engine.connect() as db:
            found: bytes | None = db.scalar(select(versions.c.record).where(versions.c.version == version))
        if found is None:
            raise StateError(f"there is no version {version}; `fledge replay` lists what there is")
        return found

    def state_records(self, version: int) -> dict[str, bytes]:
        """The signed records of a version's own streams, by name."""
        with self.engine.connect() as db:
            return {row.stream: row.record for row in _states_of.run(db, {"of": version})}

    def spec_record(self) -> bytes:
        """The signed record of the model specification."""
        with self.engine.connect() as db:
            return bytes(db.execute(select(run.c.spec_record)).scalar_one())

    def plans(self) -> list[tuple[MergePlan, bytes]]:
        """Every version above 0 in order, with its plaintext digest."""
        with self.engine.connect() as db:
            rows = db.execute(select(versions).where(versions.c.version > 0).order_by(versions.c.version))
            return [(decode(MergePlan, row.plan, _PLAN), row.digest) for row in rows]

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

    def broken_link(self) -> int | None:
        """The number of the first ledger entry whose hash does not follow from the one before, or None."""
        previous = b""
        with self.engine.connect() as db:
            for row in db.execute(select(ledger).order_by(ledger.c.number)):
                if ledger_hash(previous, row.kind, row.entry) != row.hash:
                    return int(row.number)
                previous = row.hash
        return None

    def close(self) -> None:
        """Release the file."""
        self.engine.dispose()


def _awaited(db: Connection) -> list[tuple[bytes, str]]:
    """Which of the newest commands were handed to which sites, without those that were replied to."""
    asked: dict[tuple[bytes, str], None] = {}
    newest = select(ledger.c.number, ledger.c.kind, ledger.c.entry).where(ledger.c.kind.in_(("command", "reply")))
    for row in reversed(db.execute(newest.order_by(ledger.c.number.desc()).limit(_LOOKED_AT)).all()):
        entry = unpack(row.entry, limits.STORED_RECORD)
        if row.kind == "reply":
            asked.pop((entry["command"], entry["site"]), None)
        elif entry["taken"]:
            asked |= dict.fromkeys((entry["id"], site) for site in entry.get("sites", ()))
    return list(asked)


def ledger_hash(previous: bytes, kind: str, entry: bytes) -> bytes:
    """The hash of one ledger entry."""
    return hashlib.sha256(previous + kind.encode() + b"\0" + entry).digest()


def _update_row(row: Any) -> UpdateRow:
    state = UpdateState(row.state)
    return UpdateRow(
        order=row.order,
        id=row.id,
        site=row.site,
        epoch=row.epoch,
        sequence=row.sequence,
        base_version=row.base_version,
        state=state,
        objection=row.reason if state == UpdateState.JOURNALLED else "ok",
        examples=row.examples,
        seconds=row.seconds,
        absent=unpack(row.absent, limits.BODY),
        norm=row.norm,
    )
