"""What the rules want written; all writes of a step go into one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from worker.domain.state import Deployment, RunRow, Sealed, UpdateRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteVersion:
    """Keep a version's record as its run's newest."""

    row: RunRow
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRun:
    """Keep what a head says of a run, or what was done from its version; the record stays."""

    row: RunRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteHead:
    """The head's number rose."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRegistry:
    """A newer registry is in force."""

    version: int
    digest: bytes
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Sequence numbers up to this one are taken in this key epoch."""

    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddUpdate:
    """Keep a signed update until its final receipt."""

    row: UpdateRow
    sealed: Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceUpdate:
    """The same update under another key epoch."""

    row: UpdateRow
    sealed: Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class AddMessage:
    """Keep a signed message until the broker has it."""

    row: int
    exchange: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveMessage:
    """The broker has this message."""

    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleUpdate:
    """Forget an update and keep what became of it; `receipt` holds the signed bytes (empty: lost here)."""

    row: UpdateRow
    outcome: str
    reason: str
    version: int
    receipt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteAnswer:
    """Keep what a person at the site said to a run."""

    run: str
    approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteDrained:
    """Keep whether the site is drained."""

    drained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteCounter:
    """Lower counters under this operator's key are refused from now on."""

    key: str
    counter: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteDeployment:
    """Keep whose code trains a run."""

    run: str
    deployment: Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class DropDeployment:
    """Nothing is deployed for this run any more."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLeft:
    """Keep whether the site has left a run."""

    run: str
    left: bool


OfUpdates = Reserve | AddUpdate | ReplaceUpdate | AddMessage | RemoveMessage | SettleUpdate
"""What becomes of what the site sends."""
OfSite = NoteAnswer | NoteDrained | NoteCounter | NoteDeployment | DropDeployment | NoteLeft
"""What was said at the site, or to it."""
Write = NoteVersion | NoteRun | NoteHead | NoteRegistry | OfUpdates | OfSite
"""All that the journal can write."""
