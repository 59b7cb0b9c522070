"""The tables of the worker's journal. Tables may be added: a journal from before gets them when it is opened."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, MetaData, String, Table

from broker.transport.outbox import outbox_table

metadata = MetaData()
counters = Table(
    "counters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("head", Integer, nullable=False),
)
registries = Table(
    "registry",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("record", LargeBinary, nullable=False),
)
runs = Table(
    "runs",
    metadata,
    Column("run", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("listed", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("updates_per_base", Integer, nullable=False),
    Column("evaluate", Boolean, nullable=False),
    Column("sent", Integer, nullable=False),
    Column("evaluated", Boolean, nullable=False),
    Column("record", LargeBinary, nullable=False),
)
updates = Table(
    "updates",
    metadata,
    Column("row", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False, unique=True),
    Column("run", String, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("chunks", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("made", Float, nullable=False),
)
receipts = Table(
    "receipts",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("run", String, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("outcome", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("receipt", LargeBinary, nullable=False),
    Column("received", Float, nullable=False),
)
answers = Table(
    "answers",
    metadata,
    Column("run", String, primary_key=True),
    Column("approved", Boolean, nullable=False),
    Column("given", Float, nullable=False),
)
orders = Table(
    "orders",
    metadata,
    Column("operator", String, primary_key=True),
    Column("counter", Integer, nullable=False),
)
drains = Table("drained", metadata, Column("since", Float, primary_key=True))
"""One row while the site is drained."""
bundles = Table(
    "bundles",
    metadata,
    Column("run", String, primary_key=True),
    Column("bundle", LargeBinary, nullable=False),
)
"""The code that trains each run's newest version; beside `runs`, so that journals from before there was any go on."""
deployments = Table(
    "deployments",
    metadata,
    Column("run", String, primary_key=True),
    Column("code", LargeBinary, nullable=False),
    Column("operator", String, nullable=False),
    Column("since", Float, nullable=False),
)
left_runs = Table(
    "left_runs",
    metadata,
    Column("run", String, primary_key=True),
    Column("since", Float, nullable=False),
)
outbox = outbox_table(metadata)
