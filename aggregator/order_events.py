"""What the rules hear of operators, and of sites that ask for something, and what they want done: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregator.evaluations import Evaluations
from aggregator.measures import Measured
from aggregator.snapshot import RunRules, RunSnapshot
from aggregator.standing import Standing
from protocol.messages import Request, RunState
from protocol.registry import Registry

# ---- events


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandArrived:
    """An operator's genuine order; `objection` says why it is refused all the same, found when it arrived."""

    delivery: Any
    operator: str
    counter: int
    command: str
    signer: bytes = b""
    """Id of the key it is signed with; counters are the key's, so that a stolen one cannot lock its successor out."""
    id: bytes = b""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    raw: bytes = b""
    """The signed bytes, for the sites it is for."""
    objection: str = "ok"
    text: str = ""
    """The objection in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyArrived:
    """A site's genuine answer to operators, who get the same bytes."""

    delivery: Any
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

    delivery: Any
    site: str
    id: bytes
    request: Request


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
    """Who brought it; empty: nobody from afar."""
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
            standing=Standing(),
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
class Prepared:
    """What an order asked for is ready, or cannot be made (`reason` is not `ok` then)."""

    command: CommandArrived
    reason: str = "ok"
    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What the operator is answered."""
    made: NewRun | NewModel | CodeOffered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOffered:
    """A run's code is wrapped for the sites there are now."""

    run: str
    code_record: bytes


# ---- writes


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
class SetMeasure:
    """An operator took rights of a site away, or gave them back."""

    site: str
    measured: Measured
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


# ---- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRegistry:
    """Judge whatever arrives from now on by this registry: the root's, without whom operators revoked since."""

    registry: Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """Take a revoked site's login at the broker away; doing it again is harmless."""

    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Answer an operator; an answer that is lost is asked for again."""

    operator: str
    command: bytes
    reason: str = "ok"
    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    counter: int = 0
    """With `replayed`: the highest counter noted for the key."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """For a command that went to sites: seconds since each was heard of."""
    cut_off: bool = False
    """The command also takes a login at the broker away, which is the desk's to do, or to say that it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """Have the desk answer: a question, or an order whose effect comes back as an event of its own."""

    command: CommandArrived
    seen: Mapping[str, float]
    """Seconds since each site was heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make ready what an order asks for; the answer is `Prepared`."""

    command: CommandArrived
    run: str
    """The run it is about, or is to make."""
    model: str = ""
    """The published model it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Answer a site's hello or request for URLs."""

    request: RequestArrived
