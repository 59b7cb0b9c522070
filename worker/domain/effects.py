"""What the rules want done once their writes are committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from broker.transport.base import Unacked
from protocol.messages import Outcome
from protocol.registry import Registry
from worker.domain.events import CommandSeen
from worker.domain.state import Leaving, UpdateRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Ack a delivery."""

    delivery: Unacked
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
    measure_only: bool = False
    """The run has ended, and this is its last version: `Evaluated` is all there is to say."""


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
class ReportStatus:
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
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtClock:
    """A training could begin if the site's hours allow it; the answer is `ClockSeen`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetAnswer:
    """The answer to this run is in the journal: the note that told of it can go."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The site is revoked, by what `why` names, or is a member again (empty)."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Obey:
    """Carry out a command, or answer why not."""

    command: CommandSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """End the worker in order."""

    leaving: Leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLast:
    """Fetch the last version of a run that has ended, if the site took part and does not hold it; else `NotKept`."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReply:
    """Sign and send the answer to a command that the rules have decided."""

    command: CommandSeen
    reason: str
    text: str
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetCode:
    """Delete code that no run is deployed with any more."""

    code: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetOwn:
    """Delete the site's own tensors of a run, once no training writes them."""

    run: str


Fetch = PullHead | FetchRegistry | FetchVersion
"""What is read from the store."""
Sending = Upload | Reseal | Publish | Settled | DropSpool
"""What updates need on their way."""
Training = Train | AbortTraining | KeepLast | ForgetCode | ForgetOwn
"""What a run's training needs, or leaves behind."""
Telling = ReportStatus | Alarm | LookAtClock | ForgetAnswer | Judged | Obey | Leave | SendReply
"""What the site says and is told."""
Effect = Settle | UseRegistry | Fetch | Sending | Training | Telling
"""All that the shell does for the rules; after a crash some may be done again."""
