"""What the rules want written; all writes of a step go into one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aggregator.domain.state import CodeOffered, NewModel, NewRun, Sanction, UpdateNotice, UpdateState
from aggregator.strategy.plan import MergePlan, Product
from broker.transport.base import Unacked
from protocol.messages import Evaluation, Kind, Receipt, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalUpdate:
    """Insert the update unless its id or its sequence is known; the delivery is settled with the journal's answer."""

    delivery: Unacked
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
    body: Receipt
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEnd:
    """A run ends after so many versions from now on, and by nothing else."""

    run: str
    versions: int


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
    entry: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRun:
    """A run is there from now on."""

    new: NewRun


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferCode:
    """A run's code record has new recipients."""

    offered: CodeOffered


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRun:
    """Forget a run's versions and what was sent for it; that its name and sequence numbers were used stays known."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddModel:
    """A model stands in the catalogue from now on."""

    model: NewModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """A channel names this model from now on; None: again the one before."""

    channel: str
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCounter:
    """A command was noted; lower counters under its key are refused from now on."""

    key: str
    counter: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSanction:
    """An operator took rights of a site away, or gave them back."""

    site: str
    sanction: Sanction
    operator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLetter:
    """Keep a refused message for operators to look at; the oldest of its queue give way."""

    queue: str
    reason: str
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetLetters:
    """Forget one refused message, or (None) all of them."""

    number: int | None


OfRuns = CommitVersion | ReplaceRecord | StoreEvaluation | SetRun | SetEnd | CreateRun | OfferCode | DeleteRun
"""What becomes of a run."""
OfModels = AddModel | Promote
"""What becomes of published models."""
OfMembers = SetCounter | SetSanction | KeepLetter | ForgetLetters | StoreRegistry
"""What operators did, and what they may look at."""
Outgoing = Send | SendRaw | RemoveSent | SetHead
"""What is on its way to others."""
Write = JournalUpdate | SetState | Look | Audit | OfRuns | OfModels | OfMembers | Outgoing
"""All that the journal can write."""
