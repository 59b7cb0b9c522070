"""What the rules want done once their writes are committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator.domain.events import CommandArrived, RequestArrived
from aggregator.domain.state import RunPlace
from aggregator.strategy.plan import MergePlan
from broker.transport.base import Unacked
from protocol.codec import Value
from protocol.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Ack a delivery."""

    delivery: Unacked


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
class PutHead:
    """Sign the head with this number and put it into the store; the newest number wins."""

    number: int
    runs: tuple[RunPlace, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceHead:
    """Publish the head itself to all sites (a run state or the registry changed; nothing relies on its arrival)."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissue:
    """Wrap the current version's and the specification's record for the registry's sites; the answer is `Reissued`."""

    run: str
    version: int
    registry: Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The run is over; the shell may tell its waiting callers."""

    run: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRegistry:
    """Judge whatever arrives from now on by this registry: the root's, without whom operators revoked since."""

    registry: Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """Take a revoked site's login at the broker away; doing it again is harmless."""

    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCommand:
    """Answer an operator; an answer that is lost is asked for again."""

    operator: str
    command: bytes
    reason: str = "ok"
    text: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    counter: int = 0
    """With `replayed`: the highest counter noted for the key."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """For a command that went to sites: seconds since each of these was heard of."""
    cut_off: bool = False
    """The command also takes a login at the broker away, which is the responder's to do, or to say that it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """Have the responder answer: a question, or a command whose effect comes back as an event of its own."""

    command: CommandArrived
    seen: Mapping[str, float]
    """Seconds since each site was heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make ready what a command asks for; the answer is `Prepared`."""

    command: CommandArrived
    run: str
    """The run it is about, or is to make."""
    version: int | None = None
    """The version it is about; None: the newest (of a clone: version 0)."""
    chosen: str = ""
    """Why this version, where the command named none by its number."""
    model: str = ""
    """The published model it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantUrls:
    """Answer a site's hello or request for URLs."""

    request: RequestArrived


Answering = AnswerCommand | LookUp | GrantUrls | CutOff
"""What the responder does."""
Effect = Settle | Admit | Merge | Publish | PutHead | AnnounceHead | Reissue | Ended | UseRegistry | Prepare | Answering
"""All that the shell does for the rules."""
