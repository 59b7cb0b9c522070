"""How the journal keeps what operators commanded: sanctions, refused messages, runs, models and channels."""

from __future__ import annotations

import time
from functools import singledispatch

from sqlalchemy import Connection, delete, func, insert, select, update

from aggregator.config import RunConfig, kept, until
from aggregator.domain import writes
from aggregator.journal import tables
from broker.runtime.database import replacing
from protocol.errors import StateError

LETTERS_KEPT = 256
"""Refused messages kept of each queue."""


@singledispatch
def write_command(write: writes.Write, db: Connection) -> None:
    """Carry out one of the writes that commands lead to, in the transaction under way.

    Raises:
        StateError: it is none of them.
    """
    raise StateError(f"the journal does not know how to write {type(write).__name__}")


@write_command.register
def _(write: writes.CreateRun, db: Connection) -> None:
    new, name = write.new, write.new.rules.run
    db.execute(
        insert(tables.runs).values(
            name=name,
            operator=new.operator,
            state=new.state.value,
            reason="ok",
            elapsed=0.0,
            config=new.config,
            spec=new.spec,
            spec_record=new.spec_record,
            bundle=new.rules.bundle or b"",
            code_record=new.code_record,
        )
    )
    first = {"version": 0, "digest": new.digest, "plan": b"", "record": new.record, "registry": new.registry}
    db.execute(insert(tables.versions).values(run=name, **first))


@write_command.register
def _(write: writes.SetEnd, db: Connection) -> None:
    of_run = tables.runs.c.name == write.run
    config = RunConfig.model_validate_json(db.execute(select(tables.runs.c.config).where(of_run)).scalar_one())
    db.execute(update(tables.runs).where(of_run).values(config=kept(until(config, write.versions))))


@write_command.register
def _(write: writes.OfferCode, db: Connection) -> None:
    offered = write.offered
    db.execute(update(tables.runs).where(tables.runs.c.name == offered.run).values(code_record=offered.code_record))


@write_command.register
def _(write: writes.DeleteRun, db: Connection) -> None:
    """Keys of updates stay: they are the replay cache."""
    for table in (tables.members, tables.states, tables.evaluations, tables.reports, tables.versions):
        db.execute(delete(table).where(table.c.run == write.run))
    db.execute(update(tables.updates).where(tables.updates.c.run == write.run).values(envelope=b""))
    gone = {"state": tables.DELETED, "config": "", "spec": b"", "spec_record": b"", "code_record": b""}
    db.execute(update(tables.runs).where(tables.runs.c.name == write.run).values(**gone))


@write_command.register
def _(write: writes.AddModel, db: Connection) -> None:
    made = write.model
    values = {"name": made.name, "run": made.run, "version": made.version, "size": made.size}
    db.execute(insert(tables.models).values(**values, record=made.record))


@write_command.register
def _(write: writes.Promote, db: Connection) -> None:
    if write.name is not None:
        db.execute(insert(tables.channels).values(channel=write.channel, name=write.name))
        return
    newest = select(func.max(tables.channels.c.number)).where(tables.channels.c.channel == write.channel)
    db.execute(delete(tables.channels).where(tables.channels.c.number == newest.scalar_subquery()))


@write_command.register
def _(write: writes.SetSanction, db: Connection) -> None:
    values = {"measure": write.sanction.kind, "registry": write.sanction.registry, "operator": write.operator}
    db.execute(replacing(tables.measures, "site").values(site=write.site, **values))


@write_command.register
def _(write: writes.KeepLetter, db: Connection) -> None:
    db.execute(insert(tables.letters).values(queue=write.queue, reason=write.reason, at=time.time(), message=write.raw))
    of_queue = select(tables.letters.c.number).where(tables.letters.c.queue == write.queue)
    oldest = of_queue.order_by(tables.letters.c.number.desc()).offset(LETTERS_KEPT)
    db.execute(delete(tables.letters).where(tables.letters.c.number.in_(oldest)))


@write_command.register
def _(write: writes.ForgetLetters, db: Connection) -> None:
    forget = delete(tables.letters)
    db.execute(forget if write.number is None else forget.where(tables.letters.c.number == write.number))


@write_command.register
def _(write: writes.SetCounter, db: Connection) -> None:
    db.execute(replacing(tables.counters, "operator").values(operator=write.key, counter=write.counter))
