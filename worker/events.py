"""What the worker's rules hear, what they want written, and what they want done: values only.

Events come from the shell; writes go into one transaction; effects follow the commit and may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.messages import Head, Outcome, Receipt, RunState
from protocol.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What the worker knows of one run and has done from its newest version."""

    run: str
    state: RunState = RunState.RUNNING
    listed: bool = False
    """Whether a head has named the run; only such a run can be missing from a later one."""
    version: int = -1
    """The newest version noted; -1 before the first."""
    digest: bytes = b""
    """SHA-256 of the version's signed record."""
    updates_per_base: int = 1
    evaluate: bool = False
    bundle: bytes = b""
    """SHA-256 of the code that trains the version; empty: the site's own trainer."""
    sent: int = 0
    """Updates made from this version."""
    evaluated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRow:
    """An update without a final receipt; its envelope and wrapped key stay in the journal, its chunks in the spool."""

    row: int
    id: bytes
    run: str
    base_version: int
    epoch: int
    sequence: int
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A finished message with a blob: signed bytes, the chunks' names, the content key wrapped for its own site."""

    envelope: bytes
    chunks: tuple[bytes, ...]
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Whose code trains a run: its SHA-256 (empty: the site's own trainer) and who deployed it."""

    code: bytes
    operator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything the rules start from; the journal's content without its large fields."""

    epoch: int = 0
    sequence: int = 0
    """The last sequence number reserved in this key epoch."""
    head: int = 0
    """The highest head number seen."""
    registry: int = 0
    registry_digest: bytes = b""
    runs: tuple[RunRow, ...] = ()
    updates: tuple[UpdateRow, ...] = ()
    messages: tuple[int, ...] = ()
    """Outbox rows that are not confirmed yet."""
    answers: Mapping[str, bool] = field(default_factory=dict)
    """What a person at the site said to each run."""
    drained: bool = False
    """Whether the site begins no training until it is undrained."""
    orders: Mapping[str, int] = field(default_factory=dict)
    """The highest counter each operator used."""
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    """What was deployed for each run."""
    left: frozenset[str] = frozenset()
    """Runs that the site has left at an operator's order."""


# ---- events


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSeen:
    """A verified version record that is sealed for this site, announced (`delivery`) or fetched (None)."""

    delivery: Any
    run: str
    version: int
    record: bytes
    digest: bytes
    updates_per_base: int
    evaluate: bool
    bundle: bytes = b""
    """SHA-256 of the code that trains it; empty: the site's own trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSeen:
    """A verified head, announced (`delivery`) or pulled (None), and the wall clock when it came, in seconds."""

    delivery: Any
    head: Head
    wall: float
    known: int = 0
    """What is older than this was put back in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWanted:
    """The connection is new, or something came that the registry in force does not explain."""

    connected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """The head or a record could not be read from the store, or was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySeen:
    """A registry that the root has signed."""

    registry: Registry
    digest: bytes
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptSeen:
    """A verified receipt; `version` is the version it was merged into, if it was."""

    delivery: Any
    receipt: Receipt
    version: int
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The training thread evaluated the version of this training; `envelope` is the signed evaluation."""

    id: bytes
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The training thread is done; every chunk is in the spool and synced."""

    id: bytes
    sealed: Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFailed:
    """No update came of a training."""

    id: bytes
    code: str
    """`aborted`, `disk_full`, `store`, or another fixed word that says what was wrong; safe to tell anybody."""
    case: str = "-"
    """Under which number the full text is kept at the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """Every chunk of an update is in the store."""

    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingFailed:
    """An upload or re-sealing failed for now; with `lost` the spool no longer holds the update's chunks."""

    row: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resealed:
    """An update was signed and encrypted again under another key epoch; its new chunks are in the spool."""

    row: int
    epoch: int
    sequence: int
    sealed: Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The broker confirmed an outbox row."""

    row: int


# ---- writes


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


# ---- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Ack a delivery."""

    delivery: Any
    what: Literal["version", "head", "receipt", "command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullHead:
    """Read the head from the store; the answer is `HeadSeen` with the same `known`: the newest number so far."""

    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRegistry:
    """Read a registry record from the store; the answer is `RegistrySeen`."""

    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRegistry:
    """Trust this registry from now on."""

    registry: Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchVersion:
    """Read a version record from the store; the answer is `VersionSeen`."""

    run: str
    version: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train from a run's newest version: `Evaluated` if `evaluation` is set, then `Trained` or `TrainingFailed`."""

    run: str
    version: int
    epoch: int
    sequence: int
    """The update's; the evaluation, where there is one, has the number before it."""
    id: bytes
    evaluation: bytes
    """Message id of the evaluation to make first; empty when none is due."""
    count: int
    """Updates made from this version before."""
    bundle: bytes = b""
    """SHA-256 of the deployed code to train with; empty: the site's own trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortTraining:
    """Tell the training under way to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Put an update's chunks into the store; the answer is `Uploaded` or `SendingFailed`."""

    row: UpdateRow
    anew: bool
    """Put every chunk again: the aggregator found one missing or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reseal:
    """Sign and encrypt an update again; the answer is `Resealed` or `SendingFailed`."""

    row: UpdateRow
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Hand an update or message to the relay; the answer is `Published`."""

    row: int
    update: bytes = b""
    """The update's id, for the log; empty for other messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSpool:
    """Delete chunks from the spool."""

    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An update is done with; for the log and for display."""

    row: UpdateRow
    outcome: Outcome
    reason: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Show what the worker does; with `publish` also tell the aggregator."""

    state: str
    run: str
    version: int
    publish: bool
    code: str = "-"
    """Why the last training failed, if none has succeeded since."""
    case: str = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something a person should look at."""

    event: str
    details: Mapping[str, Any]
