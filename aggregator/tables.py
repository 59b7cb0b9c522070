"""The aggregator's tables. A changed column means a new `SCHEMA` number."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from broker.outbox import outbox_table

SCHEMA = 2
metadata = MetaData()

lease = Table("lease", metadata, Column("id", Integer, primary_key=True), Column("epoch", Integer, nullable=False))
"""The fence: whoever raised the epoch last may write."""

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("elapsed", Float, nullable=False),
    Column("head", Integer, nullable=False),
    Column("last_row", Integer, nullable=False),
    Column("spec_record", LargeBinary, nullable=False),
)

updates = Table(
    "updates",
    metadata,
    Column("order", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False),
    Column("site", String, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("absent", LargeBinary, nullable=False),
    Column("norm", Float, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("id"),
    UniqueConstraint("site", "epoch", "sequence"),
    Index("updates_by_state", "state"),
    sqlite_autoincrement=True,
)
"""The journal. Its unique keys are the replay cache, for ever; ids are unique over all sites, so that no site can
speak about another's update."""

versions = Table(
    "versions",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("registry", Integer, nullable=False),
)

states = Table(
    "states",
    metadata,
    Column("version", Integer, ForeignKey("versions.version"), primary_key=True),
    Column("stream", String, primary_key=True),
    Column("record", LargeBinary, nullable=False),
)
"""Records of the aggregator's own streams: `released` (the average) and optimizer moments."""

members = Table(
    "members",
    metadata,
    Column("version", Integer, ForeignKey("versions.version"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False, unique=True),
    Column("site", String, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("norm", Float, nullable=False),
)
"""Who is in which version; an update can be in one only."""

evaluations = Table(
    "evaluations",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("site", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

counters = Table(
    "counters", metadata, Column("operator", String, primary_key=True), Column("counter", Integer, nullable=False)
)

measures = Table(
    "measures",
    metadata,
    Column("site", String, primary_key=True),
    Column("measure", String, nullable=False),
    Column("registry", Integer, nullable=False),
    Column("operator", String, nullable=False),
)
"""Sites that operators revoked or quarantined."""

letters = Table(
    "letters",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("queue", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Index("letters_by_queue", "queue"),
    sqlite_autoincrement=True,
)
"""Refused messages, for operators to look at."""

registries = Table(
    "registries", metadata, Column("version", Integer, primary_key=True), Column("record", LargeBinary, nullable=False)
)

ledger = Table(
    "ledger",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("entry", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
"""Hash-chained: hash = SHA-256(hash before, kind, NUL, entry)."""

outbox = outbox_table(metadata)
