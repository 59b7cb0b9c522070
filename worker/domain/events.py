"""What the worker's rules hear; events come from the shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from broker.transport.base import Unacked
from protocol.codec import Value
from protocol.messages import Head, Receipt
from protocol.registry import Registry
from worker.domain.state import Leaving, Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSeen:
    """A verified version record that is sealed for this site, announced (`delivery`) or fetched (None)."""

    delivery: Unacked | None
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

    delivery: Unacked | None
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

    delivery: Unacked
    receipt: Receipt
    version: int
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The training thread evaluated the version of this training; `envelope` is the signed evaluation.

    It is empty where a run's last version was to be measured and the site has not taken part in the run.
    """

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
    """`aborted`, `disk_full`, `store`, or another fixed word that says what was wrong; safe to tell anyone."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAnswered:
    """A person at the site approved or refused a run."""

    run: str
    approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSeen:
    """The answer to `LookAtClock`: the time of day at the site."""

    local: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Begin no further training; what is being trained is finished, and everything is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrain:
    """Train again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLeftOut:
    """A genuine version record is not sealed for this site."""

    run: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAnswered:
    """The hub has answered a request that was made just now, which it does for its members only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSeen:
    """An operator's genuine command for this site; `objection` says why it is refused all the same."""

    delivery: Unacked
    operator: str
    signer: bytes
    """Id of the key it is signed with; counters are the key's, so that a stolen one cannot lock its successor out."""
    counter: int
    id: bytes
    command: str
    arguments: Mapping[str, Value] = field(default_factory=dict)
    objection: str = "ok"
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obeyed:
    """A command was carried out or refused; `envelope` is the signed answer."""

    envelope: bytes
    leaving: Leaving = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotKept:
    """The last version of a run cannot be fetched now."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommanded:
    """An operator's command about a run, which may be obeyed; `code` is what a deployment named and the site now holds.

    Empty code: the site's own trainer trains the run.
    """

    command: CommandSeen
    run: str
    code: bytes = b""


SaidAtSite = RunAnswered | ClockSeen | Drain | Undrain | RunCommanded
"""What is said at the site, or to it, about what may be trained."""
Progress = Uploaded | SendingFailed | Resealed | Published
"""What becomes of what is being sent."""
Heard = VersionSeen | HeadSeen | HeadWanted | FetchFailed | RegistrySeen | ReceiptSeen | HubAnswered | CommandSeen
"""What comes from the hub and the store."""
Done = Evaluated | Trained | TrainingFailed | SiteLeftOut | Obeyed | NotKept
"""What comes of slow work."""
Event = Heard | Done | SaidAtSite | Progress
"""All that the rules hear, besides the passing of time."""
