"""State of a worker as values: runs, updates, deployments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocol.messages import Outcome, RunState


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


ON_ITS_WAY = "on_its_way"
"""The outcome of an update that has no final receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentUpdate:
    """An update of this site and what became of it, for people to read."""

    id: bytes
    run: str
    base_version: int
    epoch: int
    sequence: int
    outcome: str
    """In the words of receipts, `on_its_way`, or of this site's own where it gave the update up."""
    reason: str
    version: int
    """The version that holds it, if it was merged."""
    receipt: bytes
    """As the aggregator signed it; empty where there is none."""
    at: float
    """When it was made, or its receipt came; seconds since 1970 by the site's clock."""


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
    counters: Mapping[str, int] = field(default_factory=dict)
    """The highest counter each operator used."""
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    """What was deployed for each run."""
    left: frozenset[str] = frozenset()
    """Runs that the site has left at an operator's command."""


Leaving = Literal["", "restart", "shutdown"]

NO_TRAINER, NOT_DEPLOYED, LEFT = "no_trainer", "not_deployed", "left"
"""What keeps a run from being trained here, as signs of life tell it."""
CODE_LOST = "code_lost"
"""The training failed because the site no longer holds the code that was deployed."""
ENDED = (RunState.STOPPED, RunState.ABORTED)
WITH_ITS_RUN = (Outcome.RUN_ENDED, Outcome.RUN_ABORTED)
"""What becomes of updates that are in no version when their run ends."""
