"""What the aggregator's rules hear, what they want written, and what they want done: values only.

Events come from the shell; writes go into one transaction; effects follow the commit. The journal's answers to
`JournalUpdate` (`Journalled`, `Duplicate`, `Reused`) are events again: its unique keys are the replay cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aggregator.plan import MergePlan, Product
from protocol.messages import Evaluation, Kind, RunState
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

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands in the queue for the next version."""
        return {"id": self.id, "site": self.site, "base_version": self.base_version, "order": self.order}

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


# ---- events


@dataclass(frozen=True, slots=True)
class Started:
    """The process begins; everything pending is decided again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateArrived:
    """A verified update; `delivery` is settled once it is journalled."""

    delivery: Any
    notice: UpdateNotice


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationArrived:
    """A verified evaluation of a version on a site's own data."""

    delivery: Any
    site: str
    run: str
    version: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSeen:
    """A verified sign of life."""

    delivery: Any
    site: str
    alive: bool = True
    """Whether it is one of the site's worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A delivery that is not a message of this federation; `site` is the queue's, not a claim of the message."""

    delivery: Any
    site: str
    queue: str
    reason: str
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Journalled:
    """The journal's answer: the update is new and has this place in the order."""

    delivery: Any
    order: int
    notice: UpdateNotice
    objection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """The journal's answer: this very update is known, and this became of it."""

    delivery: Any
    notice: UpdateNotice
    state: UpdateState
    reason: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """The journal's answer: the site has used this sequence for another update."""

    delivery: Any
    notice: UpdateNotice
    highest_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Admission streamed the blob: everything holds, and this is the delta's L2 norm."""

    id: bytes
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAdmitted:
    """Admission failed: for good (`retry` False), or for now (store away, chunk `missing`)."""

    id: bytes
    reason: str
    retry: bool
    missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A merge is complete: its chunks and records are in the store, nothing refers to them yet."""

    plan: MergePlan
    product: Product


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFailed:
    """A merge could not be completed; `bad` names a member that no longer decrypts, or (`reject`) must never merge."""

    plan: MergePlan
    reason: str
    bad: bytes | None
    reject: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The broker confirmed an outbox row."""

    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryChanged:
    """A newer registry is in force; `record` is what the root signed."""

    registry: Registry
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissued:
    """The current version's record was wrapped for the new registry's sites; it is in the store."""

    run: str
    version: int
    registry: int
    record: bytes
    spec_record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReissueFailed:
    """The store is away; the records are still for an older registry."""

    run: str


# ---- writes


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalUpdate:
    """Insert the update unless its id or its sequence is known; the delivery is settled with the journal's answer."""

    delivery: Any
    notice: UpdateNotice
    objection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetState:
    """Move an update to another state."""

    id: bytes
    state: UpdateState
    reason: str = "ok"
    norm: float = 0.0
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Seal a message and put it into the outbox under `row`, its sequence number."""

    row: int
    id: bytes
    exchange: str
    key: str
    kind: Kind
    body: Any
    recipient: str
    """Name of the one site it is sealed for; empty: signed only."""
    run: str
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRaw:
    """Put finished bytes (an announcement, a dead letter) into the outbox under `row`."""

    row: int
    exchange: str
    key: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitVersion:
    """The only moment at which the model changes."""

    plan: MergePlan
    product: Product
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceRecord:
    """The version is the same, its record has new recipients."""

    run: str
    version: int
    record: bytes
    registry: int
    spec_record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRegistry:
    """Keep a signed registry."""

    version: int
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEvaluation:
    """Keep one site's evaluation of one version; a later one replaces it."""

    run: str
    site: str
    version: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRun:
    """The run's state changed."""

    run: str
    state: RunState
    reason: str
    elapsed: float


@dataclass(frozen=True, slots=True)
class Look:
    """Write nothing, but look at the fence: an idle aggregator that was taken over from has to notice, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHead:
    """The head's number rose; the elapsed training time of runs that go on is noted with it."""

    number: int
    elapsed: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSent:
    """The broker has this outbox row."""

    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """One entry of the hash-chained ledger."""

    kind: str
    entry: Mapping[str, Any]


# ---- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Ack a delivery."""

    delivery: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Stream an update's blob through admission; the answer is `Admitted` or `NotAdmitted`."""

    run: str
    id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Compute a version; the answer is `Merged` or `MergeFailed`."""

    plan: MergePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Hand an outbox row to the relay; the answer is `Published`."""

    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """Where one run stands."""

    run: str
    state: RunState
    reason: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutHead:
    """Sign the head with this number and put it into the store; the newest number wins."""

    number: int
    runs: tuple[RunPlace, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceHead:
    """Publish the head itself to all sites (a run state or the registry changed; nobody relies on its arrival)."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissue:
    """Wrap the current version's and the specification's record for the registry's sites; the answer is `Reissued`."""

    run: str
    version: int
    registry: Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The run is over; the shell may tell whoever waits."""

    run: str
    reason: str
