"""The aggregator's tables. A changed column means a new `SCHEMA` number."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from broker.transport.outbox import outbox_table

SCHEMA = 3
metadata = MetaData()

lease = Table("lease", metadata, Column("id", Integer, primary_key=True), Column("epoch", Integer, nullable=False))
"""The fence: the process that raised the epoch last may write."""

federation = Table(
    "federation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("head", Integer, nullable=False),
    Column("last_row", Integer, nullable=False),
)
"""What is counted for all runs together: heads, and rows of the outbox."""

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("operator", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("elapsed", Float, nullable=False),
    Column("config", String, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("spec_record", LargeBinary, nullable=False),
    Column("bundle", LargeBinary, nullable=False),
    Column("code_record", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""Every run there ever was; of a deleted one the name stays. The specification is kept here as well as in the store,
so that a damaged object of one run cannot keep the others from being served."""
DELETED = "deleted"

updates = Table(
    "updates",
    metadata,
    Column("order", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False),
    Column("run", String, nullable=False),
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
    Column("run", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("registry", Integer, nullable=False),
)

states = Table(
    "states",
    metadata,
    Column("run", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("stream", String, primary_key=True),
    Column("record", LargeBinary, nullable=False),
    ForeignKeyConstraint(("run", "version"), ("versions.run", "versions.version")),
)
"""Records of the aggregator's own streams: `released` (the average) and optimizer moments."""

members = Table(
    "members",
    metadata,
    Column("run", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False, unique=True),
    Column("site", String, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("norm", Float, nullable=False),
    ForeignKeyConstraint(("run", "version"), ("versions.run", "versions.version")),
)
"""Who is in which version; an update can be in one only."""

evaluations = Table(
    "evaluations",
    metadata,
    Column("run", String, primary_key=True),
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

models = Table(
    "models",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("run", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("record", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""Published models; a run may be deleted, what was published from it stays."""

channels = Table(
    "channels",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("channel", String, nullable=False),
    Column("name", String, nullable=False),
    sqlite_autoincrement=True,
)
"""What each channel has named, the present model last."""

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
