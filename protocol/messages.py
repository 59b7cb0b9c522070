"""What the messages say: one frozen dataclass per kind, checked on arrival by `codec.decode`.

Run, base version, sender and sequence are not repeated here: they stand in the envelope's core.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import Field

from protocol import limits
from protocol.cipher import Suite
from protocol.codec import EXACT, TEXT, Count, Digest, Flag, Id, Metrics, Parameters, Real, Share, Text, Word, many
from protocol.keys import Role

TensorNames = Annotated[
    tuple[Annotated[str, Field(strict=True, max_length=limits.TENSOR_NAME)], ...], many(limits.ABSENT)
]


class Kind(IntEnum):
    """The kind byte of an envelope; numbers are never reused."""

    UPDATE = 1
    EVALUATION = 2
    EVENT = 3
    VERSION = 4
    RECEIPT = 5
    HEAD = 6
    REGISTRY = 7
    SPEC = 8
    STATE = 9
    COMMAND = 10
    REPLY = 11
    ANSWER = 12
    REQUEST = 13
    GRANT = 14
    BUNDLE = 15
    CODE = 16
    CARD = 17
    ATTESTATION = 18
    CHECKPOINT = 19


SIGNER: dict[Kind, Role] = {
    Kind.UPDATE: Role.SITE,
    Kind.EVALUATION: Role.SITE,
    Kind.EVENT: Role.SITE,
    Kind.REPLY: Role.SITE,
    Kind.VERSION: Role.AGGREGATOR,
    Kind.RECEIPT: Role.AGGREGATOR,
    Kind.HEAD: Role.AGGREGATOR,
    Kind.SPEC: Role.AGGREGATOR,
    Kind.STATE: Role.AGGREGATOR,
    Kind.ANSWER: Role.AGGREGATOR,
    Kind.REQUEST: Role.SITE,
    Kind.GRANT: Role.AGGREGATOR,
    Kind.REGISTRY: Role.ROOT,
    Kind.COMMAND: Role.OPERATOR,
    Kind.BUNDLE: Role.OPERATOR,
    Kind.CODE: Role.AGGREGATOR,
    Kind.CARD: Role.AGGREGATOR,
    Kind.ATTESTATION: Role.AGGREGATOR,
    Kind.CHECKPOINT: Role.AGGREGATOR,
}
"""Who may sign which kind."""


def hashes_plaintext(kind: int, suite: Suite) -> bool:
    """Whether a blob's plaintext is hashed beside its chunks.

    The first suite always does. Later ones where the hash names something, as it does a version: that the bytes are
    those of the sender the signed chunk hashes and the records' tags show by themselves.
    """
    return suite is Suite.XCHACHA20 or kind not in (Kind.UPDATE, Kind.STATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Something chosen by name with its parameters: an encoding, a privacy filter."""

    __pydantic_config__ = EXACT
    name: Word
    parameters: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Which data an update was trained on, in a way only the site can check."""

    __pydantic_config__ = EXACT
    count: Count
    root: Digest
    """HMAC-SHA-256 over the examples' digests under a key that stays at the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One site's contribution; its delta (trained − base) is the envelope's blob."""

    __pydantic_config__ = EXACT
    encoding: Named
    examples: Annotated[int, Field(strict=True, ge=1, le=2**40)]
    steps: Count
    """Local optimizer steps."""
    seconds: Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]
    """Time the training took at the site."""
    filters: Annotated[tuple[Named, ...], many(16, 1)]
    trainer: Word
    bundle: Digest | None
    absent: TensorNames
    """Tensors the site keeps to itself; zeros in the data."""
    fingerprint: Fingerprint | None
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a version did on one site's own data."""

    __pydantic_config__ = EXACT
    examples: Count
    metrics: Metrics


CERTIFICATE_DAYS = "certificate.days"
"""The metric of a sign of life that tells how long the site's certificate lasts."""
RESTART_NEEDED = "restart.needed"
"""The metric of a sign of life of a site whose configuration is no longer the one that its worker runs with."""
EXAMINED = "examined"
"""The state of a sign that a site's doctor gives, in which `code` is the first thing in the way."""
DOCTOR = "doctor."
"""How the metrics of such a sign begin, before the check's name: 1 is good, 0.5 to be looked at, 0 bad."""
DOCTOR_AT = "doctor.at"
"""The metric that tells when it looked, by its own clock, in seconds since 1970-01-01 UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A sign of life; for display and liveness only, never stored by the broker for long."""

    __pydantic_config__ = EXACT
    state: Word
    """`idle`, `training`, `evaluating`, `sending`, `blocked` (no room, or training fails), `waiting` (for a person's
    yes, or the hours the site trains in), `drained`, `stopped`, or `examined` (by a doctor, whose findings the metrics
    are: what the worker does is not said)."""
    progress: Share
    metrics: Metrics
    software: Word
    code: Word = "-"
    """Why the last training failed, in a fixed word; `-` once one has succeeded."""
    case: Word = "-"
    """The number under which the site keeps the full text, for those who work there."""


class RunState(StrEnum):
    """Whether a run takes part in training; heads name no run that was never started."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABORTED = "aborted"


GOING_ON = (RunState.RUNNING, RunState.PAUSED)
"""States of runs that were started and are not over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model version: the signed record whose blob is the model; also its announcement."""

    __pydantic_config__ = EXACT
    parent: Digest | None
    """Plaintext digest of the version before; None for version 0."""
    spec_record: Digest
    """SHA-256 of the stored specification record."""
    updates_per_base: Annotated[int, Field(strict=True, ge=1, le=64)]
    max_staleness: Count
    evaluate: Flag
    """Sites evaluate this version on their own data before they train from it."""
    task: Parameters
    """Plain values for the trainer (never code)."""
    registry: Count
    """Version of the registry whose sites this record is wrapped for."""
    bundle: Digest | None = None
    """SHA-256 of the code that trains this run; None where every site trains with code of its own."""


class Outcome(StrEnum):
    """What became of a message; every one but `journalled` is final."""

    JOURNALLED = "journalled"
    MERGED = "merged"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    RUN_ABORTED = "run_aborted"
    RUN_ENDED = "run_ended"
    SEQUENCE_REUSED = "sequence_reused"
    REUPLOAD = "reupload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The aggregator's signed word on one message; the envelope's core names run and, if merged, the version."""

    __pydantic_config__ = EXACT
    message: Id
    epoch: Count
    sequence: Count
    outcome: Annotated[Outcome, TEXT]
    reason: Word
    """`ok`, or the fixed word that says why not."""
    highest_epoch: Count
    """With `sequence_reused`: the site continues under a key epoch above this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """All that the aggregator has to say about one update, signed for anybody who trusts the root; the core names run,
    epoch, sequence and, if merged, the version."""

    __pydantic_config__ = EXACT
    update: Id
    site: Word
    base_version: Count
    outcome: Annotated[Outcome, TEXT]
    reason: Word
    digest: Digest | None
    """SHA-256 of the update's signed envelope as it was journalled; None where its bytes are not kept."""
    examples: Count
    weight: Real | None
    """The factor on its delta in the version; None if it is in none."""
    model: Digest | None
    """Plaintext digest of the version that holds it."""
    arrived: Count | None
    """Milliseconds since 1970 by the hub's clock, as are the next two; None where no time was kept."""
    settled: Count | None
    issued: Count
    """When this was signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far the aggregator's ledger went, signed for anybody who is given a copy of it."""

    __pydantic_config__ = EXACT
    number: Count
    """Of the last entry; 0 where there was none."""
    hash: Digest | None
    """Of the last entry, which holds all before it."""
    issued: Count
    """Milliseconds since 1970 by the hub's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """Where one run stands."""

    __pydantic_config__ = EXACT
    run: Word
    state: Annotated[RunState, TEXT]
    reason: Word
    version: Count
    record: Digest
    """SHA-256 of the stored version record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The truth about a federation: announcements are hints."""

    __pydantic_config__ = EXACT
    number: Count
    """Only rises; a worker refuses to go back."""
    issued: Count
    not_after: Count
    """Seconds since the epoch; after this a worker raises an alarm (no aggregator signs the head again)."""
    registry: Digest
    """SHA-256 of the stored registry record."""
    runs: Annotated[tuple[RunHead, ...], many(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An operator's signed command; `counter` strictly rises per operator."""

    __pydantic_config__ = EXACT
    counter: Count
    expires: Count
    """Seconds since the epoch."""
    command: Word
    arguments: Parameters
    targets: Annotated[tuple[Word, ...], many(limits.RECIPIENTS)] = ()
    """The sites that have to obey, each of them also a recipient; empty: the aggregator alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a command, by a site or by the aggregator; a table in `values` is a list for each column."""

    __pydantic_config__ = EXACT
    message: Id
    ok: Flag
    reason: Word
    text: Text
    values: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A site without credentials for the store asks for URLs: to put these chunks of its own, to get these objects."""

    __pydantic_config__ = EXACT
    puts: Annotated[tuple[Digest, ...], many(limits.URLS)]
    gets: Annotated[tuple[Text, ...], many(limits.URLS)]
    """Object keys of published models and records; with `puts` at most `URLS` in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The answer to a request: the newest head, and one URL for each thing asked for, in that order."""

    __pydantic_config__ = EXACT
    message: Id
    head: Annotated[bytes, Field(strict=True, max_length=limits.HEAD)]
    """The signed head; empty while there is none or if it is larger (it can be got by URL then)."""
    urls: Annotated[tuple[Text, ...], many(limits.URLS)]
    """Empty where the request was for something this site may not have."""
    expires: Count
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A blob only the aggregator reads: an optimizer moment or the released average, named by its version row."""

    __pydantic_config__ = EXACT
    stream: Word
    weight: Real
    """Bias-correction weight of an average; 1 otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A run as an operator brings it, for the aggregator alone: settings here; code, specification and version 0 are
    the blob, one after the other."""

    __pydantic_config__ = EXACT
    config: Annotated[bytes, Field(strict=True, min_length=1, max_length=limits.CONFIG)]
    """`run.toml` as it stands."""
    code: Annotated[int, Field(strict=True, ge=0, le=limits.CODE)]
    """Bytes of the zip archive of training code; 0: every site trains with code of its own."""
    spec: Annotated[int, Field(strict=True, ge=1, le=limits.SPEC)]
    """Bytes of the model's specification; what follows it is version 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one site measured of a model on its own data."""

    __pydantic_config__ = EXACT
    site: Word
    examples: Count
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a published model is; the model itself is the blob, run and version stand in the core."""

    __pydantic_config__ = EXACT
    name: Word
    publisher: Word
    """The operator who published it."""
    published: Count
    """Seconds since the epoch."""
    application: Text
    description: Text
    framework: Text
    precision: Word
    licence: Text
    labels: Annotated[tuple[Word, ...], many(32)]
    released: Flag
    """Whether this is the average over versions, not the raw version."""
    parameters: Count
    """Numbers in the model."""
    sites: Annotated[tuple[Word, ...], many(limits.RECIPIENTS)]
    """Whose updates are in it."""
    measurements: Annotated[tuple[Measurement, ...], many(limits.MEASUREMENTS)]


BODY: dict[Kind, type] = {
    Kind.UPDATE: Update,
    Kind.EVALUATION: Evaluation,
    Kind.EVENT: Event,
    Kind.VERSION: Version,
    Kind.RECEIPT: Receipt,
    Kind.HEAD: Head,
    Kind.COMMAND: Command,
    Kind.REPLY: Reply,
    Kind.ANSWER: Reply,
    Kind.REQUEST: Request,
    Kind.GRANT: Grant,
    Kind.STATE: State,
    Kind.BUNDLE: Bundle,
    Kind.CARD: Card,
    Kind.ATTESTATION: Attestation,
    Kind.CHECKPOINT: Checkpoint,
}
"""The body of each kind; registry and specification records carry their own, code has none."""
