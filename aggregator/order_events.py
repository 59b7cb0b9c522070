"""What the rules hear of operators, and of sites that ask for something, and what they want done: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.messages import Request
from protocol.registry import Registry

Measure = Literal["revoked", "quarantined", "none"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What operators did to a site, and the version of the root's registry at that time."""

    measure: Measure
    registry: int


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


# ---- writes


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
    counter: int = 0
    """With `replayed`: the highest counter noted for the key."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """For a command that went to sites: seconds since each was heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """Answer a question from what the journal holds; nothing changes by it."""

    command: CommandArrived
    seen: Mapping[str, float]
    """Seconds since each site was heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Answer a site's hello or request for URLs."""

    request: RequestArrived
