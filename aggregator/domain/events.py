"""What the aggregator's rules hear.

Events come from the shell. The journal's answers to `JournalUpdate` (`Journalled`, `Duplicate`, `Reused`) are events
too: its unique keys are the replay cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator.domain.state import CodeOffered, LettersReplayed, NewModel, NewRun, UpdateNotice, UpdateState
from aggregator.strategy.plan import MergePlan, Product
from broker.transport.base import Unacked
from protocol.codec import Value
from protocol.messages import Evaluation, Request
from protocol.registry import Registry


@dataclass(frozen=True, slots=True)
class Started:
    """The process begins; everything pending is decided again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateArrived:
    """A verified update; `delivery` is settled once it is journalled."""

    delivery: Unacked
    notice: UpdateNotice


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationArrived:
    """A verified evaluation of a version on a site's own data."""

    delivery: Unacked
    site: str
    run: str
    version: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSeen:
    """A verified sign of life."""

    delivery: Unacked
    site: str
    alive: bool = True
    """Whether it is one of the site's worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRefused:
    """A delivery that is not a message of this federation; `site` is the queue's, not a claim of the message."""

    delivery: Unacked
    site: str
    queue: str
    reason: str
    raw: bytes
    kept: bool = False
    """Whether it was refused before, so that operators have it already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journalled:
    """The journal's answer: the update is new and has this place in the order."""

    delivery: Unacked
    order: int
    notice: UpdateNotice
    objection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """The journal's answer: this very update is known, and this became of it."""

    delivery: Unacked
    notice: UpdateNotice
    state: UpdateState
    reason: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """The journal's answer: the site has used this sequence for another update."""

    delivery: Unacked
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
    """A merge could not be completed; `bad` names a member that no longer decrypts, or (`reject`) must never merge.

    `pause`: the run's strategy failed, and would only fail again.
    """

    plan: MergePlan
    reason: str
    bad: bytes | None
    reject: bool = False
    pause: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandArrived:
    """An operator's genuine command; `objection` says why it is refused all the same, found when it arrived."""

    delivery: Unacked
    operator: str
    counter: int
    command: str
    signer: bytes = b""
    """Id of the key it is signed with; counters are the key's, so that a stolen one cannot lock its successor out."""
    id: bytes = b""
    arguments: Mapping[str, Value] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    raw: bytes = b""
    """The signed bytes, for the sites it is for."""
    objection: str = "ok"
    text: str = ""
    """The objection in a sentence."""
    only: frozenset[str] | None = None
    """The sites that the answer may be about; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyArrived:
    """A site's genuine answer to operators, who get the same bytes."""

    delivery: Unacked
    site: str
    command: bytes
    """Id of the command."""
    ok: bool
    reason: str
    operators: tuple[str, ...]
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """A site says hello or asks for URLs."""

    delivery: Unacked
    site: str
    id: bytes
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a command asked for is ready, or cannot be made (`reason` is not `ok` then)."""

    command: CommandArrived
    reason: str = "ok"
    text: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    """What the operator is answered."""
    made: NewRun | NewModel | CodeOffered | LettersReplayed | None = None


FromSite = UpdateArrived | EvaluationArrived | ReplyArrived | RequestArrived | DeliveryRefused
"""What may have arrived from a site."""
Arrival = FromSite | SiteSeen | CommandArrived
"""What intake makes of a delivery."""
Recorded = Journalled | Duplicate | Reused
"""What the journal answers to `JournalUpdate`."""
JobDone = Admitted | NotAdmitted | Merged | MergeFailed | Reissued | ReissueFailed | Prepared
"""What comes of slow work."""
Event = Started | Arrival | Recorded | JobDone | Published | RegistryChanged
"""All that the rules hear, besides the passing of time."""
