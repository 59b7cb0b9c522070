"""What the rules start from: what is fixed about a run, and what the journal remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from aggregator.strategy.base import Strategy
from aggregator.strategy.evaluations import Evaluations
from aggregator.strategy.stopping import Stopping
from aggregator.strategy.weighting import SiteStatistics
from protocol.encodings import DENSE_F32
from protocol.messages import EXAMINED, GOING_ON, Event, Outcome, RunState
from protocol.registry import Registry


class UpdateState(StrEnum):
    """Where an update is on its way; the row is the update from `journalled` on."""

    JOURNALLED = "journalled"
    PARKED = "parked"
    VALIDATED = "validated"
    MERGED = "merged"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    RUN_ABORTED = "run_aborted"
    RUN_ENDED = "run_ended"

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the update."""
        return self not in (UpdateState.JOURNALLED, UpdateState.PARKED, UpdateState.VALIDATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateNotice:
    """What intake read from a verified update envelope."""

    id: bytes
    site: str
    run: str
    epoch: int
    sequence: int
    base_version: int
    spec: bytes
    length: int
    encoding: str
    examples: int
    seconds: float
    absent: tuple[str, ...]
    envelope: bytes
    bundle: bytes | None = None
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the training came to, the loss for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRow:
    """An update that is in no version yet, as the journal holds it."""

    order: int
    id: bytes
    run: str
    site: str
    epoch: int
    sequence: int
    base_version: int
    state: UpdateState
    examples: int
    seconds: float
    absent: tuple[str, ...]
    norm: float
    objection: str = "ok"
    """Why it is to be refused, found when it arrived."""

    @classmethod
    def new(cls, order: int, notice: UpdateNotice, objection: str) -> UpdateRow:
        """The row of an update that was just journalled."""
        return cls(
            order=order,
            id=notice.id,
            run=notice.run,
            site=notice.site,
            epoch=notice.epoch,
            sequence=notice.sequence,
            base_version=notice.base_version,
            state=UpdateState.JOURNALLED,
            examples=notice.examples,
            seconds=notice.seconds,
            absent=notice.absent,
            norm=0.0,
            objection=objection,
        )


OUTCOME: dict[UpdateState, Outcome] = {
    UpdateState.MERGED: Outcome.MERGED,
    UpdateState.REJECTED: Outcome.REJECTED,
    UpdateState.SUPERSEDED: Outcome.SUPERSEDED,
    UpdateState.RUN_ABORTED: Outcome.RUN_ABORTED,
    UpdateState.RUN_ENDED: Outcome.RUN_ENDED,
}
"""The receipt each final state is told by."""

LAST_STATE = {RunState.ABORTED: UpdateState.RUN_ABORTED, RunState.STOPPED: UpdateState.RUN_ENDED}
"""How a run's end ends its updates."""

AT_REST = (RunState.CREATED, RunState.STOPPED, RunState.ABORTED)

TRANSITIONS = {
    "run.start": (RunState.RUNNING, (RunState.PAUSED, *AT_REST)),
    "run.pause": (RunState.PAUSED, (RunState.RUNNING,)),
    "run.resume": (RunState.RUNNING, (RunState.PAUSED, RunState.STOPPED, RunState.ABORTED)),
    "run.stop": (RunState.STOPPED, GOING_ON),
    "run.abort": (RunState.ABORTED, GOING_ON),
}
"""What each command makes of a run, and in which states it is taken. What ended can go on from its newest version."""


def choose(named: object, runs: Mapping[str, RunState]) -> tuple[str, str]:
    """Which run a command is for that names one, or none if only one comes into question: its name, and `ok` or why
    there is none.
    """
    if named is not None:
        return (str(named), "ok") if named in runs else ("", "unknown_run")
    for some in ([name for name, state in runs.items() if state in GOING_ON], list(runs)):
        if len(some) == 1:
            return some[0], "ok"
        if some:
            return "", "which_run"
    return "", "no_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """Where one run stands."""

    run: str
    state: RunState
    reason: str
    version: int


MOST_GOING_ON = 64
"""Runs that a head tells."""


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """What a site said last, and about which run and version."""

    event: Event
    run: str
    version: int
    doctor: Event | None = None
    """What its doctor found last."""

    @property
    def alive(self) -> bool:
        """Whether its worker said so; a doctor also speaks where no worker runs."""
        return self.event.state != EXAMINED

    def after(self, before: SiteStatus | None) -> SiteStatus:
        """This sign with what is still to be known of the one before: a doctor says nothing of what a worker does."""
        if not self.alive:
            return replace(before or self, doctor=self.event)
        return self if before is None else replace(self, doctor=before.doctor)


SanctionKind = Literal["revoked", "quarantined", "none"]


@dataclass(frozen=True, slots=True)
class Sanction:
    """What operators did to a site, and the version of the root's registry at that time."""

    kind: SanctionKind
    registry: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRules:
    """What is fixed about a run while the aggregator runs."""

    run: str
    spec: bytes
    update_length: int
    names: frozenset[str]
    strategy: Strategy
    parameters: Mapping[str, object]
    stopping: Stopping
    min_sites: int
    max_wait: float | None
    """Seconds; None: max(60, twice the median training time)."""
    grace: float
    heartbeat: float
    bundle: bytes | None = None
    """SHA-256 of the code that sites have to train it with; None: any code of their own."""
    release_decay: float
    """Decay of the released average; 0 releases the raw version."""

    def reason_against(self, notice: UpdateNotice, version: int, max_staleness: int) -> str | None:
        """Why an update is refused before a byte of its blob is read; None if nothing speaks against it."""
        checks = (
            (self.bundle is not None and notice.bundle != self.bundle, "wrong_code"),
            (notice.spec != self.spec, "wrong_spec"),
            (notice.length != self.update_length, "wrong_length"),
            (notice.encoding != DENSE_F32.name, "unknown_encoding"),
            (not self.names.issuperset(notice.absent), "unknown_tensor"),
            (notice.base_version > version, "future_base"),
            (version - notice.base_version > max_staleness, "too_stale"),
        )
        return next((reason for wrong, reason in checks if wrong), None)


@dataclass(slots=True, kw_only=True)
class RunSnapshot:
    """What the journal remembers of one run."""

    operator: str
    version: int
    digest: bytes
    state: RunState
    reason: str
    elapsed: float
    record_registry: int
    """Registry version the current record is wrapped for."""
    rows: list[UpdateRow]
    site_statistics: SiteStatistics
    evaluations: Evaluations


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What the journal remembers, for a fresh start of the rules."""

    head: int
    last_row: int
    registry: Registry
    outbox: list[int]
    highest: dict[tuple[str, int], int]
    counters: dict[str, int]
    sanctions: dict[str, Sanction]
    awaited: list[tuple[bytes, str]]
    """Commands that sites were given lately and have not replied to."""
    runs: dict[str, RunSnapshot]
    """In the order they were made."""
    strays: list[UpdateRow]
    """Updates without an end whose run there is not."""
    taken: frozenset[str]
    """Names that no new run may have, those of deleted runs among them."""
    models: tuple[str, ...]
    channels: dict[str, tuple[str, ...]]
    """For each the published models it has named, the present one last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run that is ready to be taken over: its version 0 and its records are in the store."""

    rules: RunRules
    config: str
    """`run.toml` as it stands."""
    digest: bytes
    """Of version 0's plaintext payload."""
    record: bytes
    spec: bytes
    """The model's specification."""
    spec_record: bytes
    code_record: bytes
    """Empty where sites train with code of their own."""
    registry: int
    operator: str = ""
    """The operator who brought it; empty: it was begun at the hub."""
    state: RunState = RunState.CREATED

    @property
    def remembered(self) -> RunSnapshot:
        """What the journal would remember of it."""
        return RunSnapshot(
            operator=self.operator,
            version=0,
            digest=self.digest,
            state=self.state,
            reason="ok",
            elapsed=0.0,
            record_registry=self.registry,
            rows=[],
            site_statistics=SiteStatistics(),
            evaluations=Evaluations(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """A model that is ready to be published: its blob and its signed card are in the store."""

    name: str
    run: str
    version: int
    size: int
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LettersReplayed:
    """Refused messages that have come to an end after all, and need not be kept any more."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOffered:
    """A run's code is wrapped for the sites there are now."""

    run: str
    code_record: bytes
