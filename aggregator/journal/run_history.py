"""What the journal remembers of one run, read only: for serving it, for replay, export and audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, bindparam, func, select

from aggregator.journal.tables import DELETED, evaluations, members, runs, states, versions
from aggregator.strategy.evaluations import Evaluations
from aggregator.strategy.plan import MergePlan
from broker.runtime.database import Statement, open_readonly
from protocol import limits
from protocol.codec import decode
from protocol.errors import StateError
from protocol.messages import Evaluation, Measurement

_PLAN = 64 * 1024 * 1024
_states_of = Statement(
    select(states.c.stream, states.c.record).where(
        states.c.run == bindparam("name"), states.c.version == bindparam("of")
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as it was taken over."""

    name: str
    config: str
    """`run.toml` as it stands."""
    spec: bytes
    """The model's specification."""
    spec_record: bytes
    bundle: bytes | None
    """SHA-256 of its code."""
    code_record: bytes


def read_plan(raw: bytes) -> MergePlan | None:
    """The plan of a version as its row holds it; None for version 0."""
    return decode(MergePlan, raw, _PLAN) if raw else None


def read_evaluations(db: Connection, run: str) -> Evaluations:
    """What sites measured of a run's versions."""
    found = Evaluations()
    for row in db.execute(select(evaluations).where(evaluations.c.run == run).order_by(evaluations.c.version)):
        found.add(row.version, row.site, decode(Evaluation, row.body, limits.BODY))
    return found


class RunHistory:
    """Reads one run in an aggregator's database."""

    def __init__(self, engine: Engine, run: str) -> None:
        self.engine = engine
        self.run = run

    @classmethod
    def open(cls, path: Path, run: str) -> RunHistory:
        """Read a database beside the aggregator that writes it.

        Raises:
            StateError: there is no such database, or no such run in it.
        """
        history = cls(open_readonly(path), run)
        history.record()
        return history

    def record(self) -> RunRecord:
        """What is fixed about it.

        Raises:
            StateError: there is no such run.
        """
        with self.engine.connect() as db:
            row = db.execute(select(runs).where(runs.c.name == self.run, runs.c.state != DELETED)).one_or_none()
            names = db.scalars(select(runs.c.name).where(runs.c.state != DELETED)).all()
        if row is None:
            raise StateError(f"there is no run {self.run} here; known: {', '.join(names) or 'none yet'}")
        return RunRecord(
            name=row.name,
            config=row.config,
            spec=row.spec,
            spec_record=row.spec_record,
            bundle=row.bundle or None,
            code_record=row.code_record,
        )

    def spec_record(self) -> bytes:
        """The signed record of the model specification."""
        return self.record().spec_record

    def newest(self) -> int:
        """The newest version's number."""
        with self.engine.connect() as db:
            return int(db.scalar(select(func.max(versions.c.version)).where(versions.c.run == self.run)) or 0)

    def version_record(self, version: int) -> bytes:
        """The signed record of a version.

        Raises:
            StateError: there is no such version.
        """
        wanted = select(versions.c.record).where(versions.c.run == self.run, versions.c.version == version)
        with self.engine.connect() as db:
            found: bytes | None = db.scalar(wanted)
        if found is None:
            raise StateError(f"run {self.run} has no version {version}; the newest is {self.newest()}")
        return found

    def state_records(self, version: int) -> dict[str, bytes]:
        """The signed records of a version's own streams, by name."""
        with self.engine.connect() as db:
            return dict(_states_of.run(db, {"name": self.run, "of": version}))

    def plans(self) -> list[tuple[MergePlan, bytes]]:
        """Every version above 0 in order, with its plaintext digest."""
        with self.engine.connect() as db:
            rows = db.execute(
                select(versions).where(versions.c.run == self.run, versions.c.version > 0).order_by(versions.c.version)
            )
            return [(decode(MergePlan, row.plan, _PLAN), row.digest) for row in rows]

    def sites(self, version: int) -> tuple[str, ...]:
        """Whose updates are in a version."""
        with self.engine.connect() as db:
            found = select(members.c.site).where(members.c.run == self.run, members.c.version <= version).distinct()
            return tuple(db.scalars(found.order_by(members.c.site)))

    def measurements(self, version: int) -> tuple[Measurement, ...]:
        """What sites measured of a version on their own data."""
        with self.engine.connect() as db:
            rows = db.execute(
                select(evaluations.c.site, evaluations.c.body)
                .where(evaluations.c.run == self.run, evaluations.c.version == version)
                .order_by(evaluations.c.site)
            )
            said = [(row.site, decode(Evaluation, row.body, limits.BODY)) for row in rows]
        return tuple(Measurement(site=site, examples=it.examples, metrics=it.metrics) for site, it in said)

    def evaluations(self) -> Evaluations:
        """What sites measured of all versions, the newest ones."""
        with self.engine.connect() as db:
            return read_evaluations(db, self.run)

    def close(self) -> None:
        self.engine.dispose()
