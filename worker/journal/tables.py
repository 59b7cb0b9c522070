"""The tables of the worker's journal. Tables may be added: a journal from before gets them when it is opened."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, MetaData, String, Table

from broker.runtime.database import required
from broker.transport.outbox import outbox_table

metadata = MetaData()
counters = Table(
    "counters", metadata, Column("id", Integer, primary_key=True), *required(Integer, "epoch", "sequence", "head")
)
registries = Table(
    "registry", metadata, Column("version", Integer, primary_key=True), *required(LargeBinary, "digest", "record")
)
runs = Table(
    "runs",
    metadata,
    Column("run", String, primary_key=True),
    *required(String, "state"),
    *required(Boolean, "listed"),
    *required(Integer, "version"),
    *required(LargeBinary, "digest"),
    *required(Integer, "updates_per_base"),
    *required(Boolean, "evaluate"),
    *required(Integer, "sent"),
    *required(Boolean, "evaluated"),
    *required(LargeBinary, "record"),
)
updates = Table(
    "updates",
    metadata,
    Column("row", Integer, primary_key=True),
    Column("id", LargeBinary, nullable=False, unique=True),
    *required(String, "run"),
    *required(Integer, "base_version", "epoch", "sequence"),
    *required(LargeBinary, "chunks", "envelope", "key"),
    *required(Float, "made"),
)
receipts = Table(
    "receipts",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    *required(String, "run"),
    *required(Integer, "base_version", "epoch", "sequence"),
    *required(String, "outcome", "reason"),
    *required(Integer, "version"),
    *required(LargeBinary, "receipt"),
    *required(Float, "received"),
)
sealed_digests = Table(
    "sealed_digests",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
)
"""SHA-256 of every update's signed envelope, also of those it was sealed as before: what an aggregator's word on it is
compared with."""
answers = Table(
    "answers",
    metadata,
    Column("run", String, primary_key=True),
    *required(Boolean, "approved"),
    *required(Float, "given"),
)
orders = Table("orders", metadata, Column("operator", String, primary_key=True), *required(Integer, "counter"))
drains = Table("drained", metadata, Column("since", Float, primary_key=True))
"""One row while the site is drained."""
bundles = Table("bundles", metadata, Column("run", String, primary_key=True), *required(LargeBinary, "bundle"))
"""The code that trains each run's newest version; beside `runs`, so that journals from before there was any go on."""
deployments = Table(
    "deployments",
    metadata,
    Column("run", String, primary_key=True),
    *required(LargeBinary, "code"),
    *required(String, "operator"),
    *required(Float, "since"),
)
left_runs = Table("left_runs", metadata, Column("run", String, primary_key=True), *required(Float, "since"))
outbox = outbox_table(metadata)
