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

from broker.runtime.database import required
from broker.transport.outbox import outbox_table

SCHEMA = 3
metadata = MetaData()

lease = Table("lease", metadata, Column("id", Integer, primary_key=True), Column("epoch", Integer, nullable=False))
"""The fence: the process that raised the epoch last may write."""

federation = Table(
    "federation", metadata, Column("id", Integer, primary_key=True), *required(Integer, "head", "last_row")
)
"""What is counted for all runs together: heads, and rows of the outbox."""

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    *required(String, "operator", "state", "reason"),
    *required(Float, "elapsed"),
    *required(String, "config"),
    *required(LargeBinary, "spec", "spec_record", "bundle", "code_record"),
    sqlite_autoincrement=True,
)
"""Every run there ever was; of a deleted one the name stays. The specification is kept here as well as in the store,
so that a damaged object of one run cannot keep the others from being served."""
DELETED = "deleted"

updates = Table(
    "updates",
    metadata,
    Column("order", Integer, primary_key=True),
    *required(LargeBinary, "id"),
    *required(String, "run", "site"),
    *required(Integer, "epoch", "sequence", "base_version"),
    *required(LargeBinary, "envelope"),
    *required(String, "state", "reason"),
    *required(Integer, "examples"),
    *required(Float, "seconds"),
    *required(LargeBinary, "absent"),
    *required(Float, "norm"),
    *required(Integer, "version"),
    UniqueConstraint("id"),
    UniqueConstraint("site", "epoch", "sequence"),
    Index("updates_by_state", "state"),
    sqlite_autoincrement=True,
)
"""The journal. Its unique keys are the replay cache, for ever; ids are unique over all sites, so that no site can
speak about another's update."""

reports = Table(
    "reports",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    *required(String, "run", "site"),
    *required(Integer, "base_version", "steps"),
    *required(LargeBinary, "metrics"),
    Index("reports_by_run", "run", "site"),
)
"""What sites say of their trainings, by the update's id; for people to look at, no rule reads it. Databases made by
older versions get the table when they are opened."""

versions = Table(
    "versions",
    metadata,
    Column("run", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    *required(LargeBinary, "digest", "plan", "record"),
    *required(Integer, "registry"),
)

states = Table(
    "states",
    metadata,
    Column("run", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("stream", String, primary_key=True),
    *required(LargeBinary, "record"),
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
    *required(String, "site"),
    *required(Integer, "examples"),
    *required(Float, "seconds", "norm"),
    ForeignKeyConstraint(("run", "version"), ("versions.run", "versions.version")),
)
"""Who is in which version; an update can be in one only."""

evaluations = Table(
    "evaluations",
    metadata,
    Column("run", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("site", String, primary_key=True),
    *required(LargeBinary, "body"),
)

counters = Table(
    "counters", metadata, Column("operator", String, primary_key=True), Column("counter", Integer, nullable=False)
)

measures = Table(
    "measures",
    metadata,
    Column("site", String, primary_key=True),
    *required(String, "measure"),
    *required(Integer, "registry"),
    *required(String, "operator"),
)
"""Sites that operators revoked or quarantined."""

models = Table(
    "models",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    *required(String, "run"),
    *required(Integer, "version", "size"),
    *required(LargeBinary, "record"),
    sqlite_autoincrement=True,
)
"""Published models; a run may be deleted, what was published from it stays."""

channels = Table(
    "channels",
    metadata,
    Column("number", Integer, primary_key=True),
    *required(String, "channel", "name"),
    sqlite_autoincrement=True,
)
"""What each channel has named, the present model last."""

letters = Table(
    "letters",
    metadata,
    Column("number", Integer, primary_key=True),
    *required(String, "queue", "reason"),
    *required(Float, "at"),
    *required(LargeBinary, "message"),
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
    *required(String, "kind"),
    *required(LargeBinary, "entry", "hash"),
)
"""Hash-chained: hash = SHA-256(hash before, kind, NUL, entry). What is noted since there were times has the hub's in
its entry under `at`, so that the chain holds it, too."""

update_times = Table(
    "update_times",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    *required(Float, "arrived"),
    Column("settled", Float),
)
"""When an update was journalled and when it came to its end, by the hub's clock; beside `updates`, so that journals
from before there were times go on. Rows of what was never settled since, or came before, are missing or half empty."""

outbox = outbox_table(metadata)
