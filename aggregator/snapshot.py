"""What the rules start from: what is fixed about a run, and what the journal remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregator.evaluations import Evaluations
from aggregator.events import UpdateNotice, UpdateRow
from aggregator.measures import Measured
from aggregator.standing import Standing
from aggregator.stopping import Stopping
from aggregator.strategies import Strategy
from protocol.messages import DENSE_F32, RunState
from protocol.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRules:
    """What is fixed about a run while the aggregator runs."""

    run: str
    spec: bytes
    update_length: int
    names: frozenset[str]
    strategy: Strategy
    parameters: Mapping[str, Any]
    stopping: Stopping
    min_sites: int
    max_wait: float | None
    """Seconds; None: max(60, twice the median training time)."""
    grace: float
    heartbeat: float
    bundle: bytes | None = None
    """SHA-256 of the code that sites have to train it with; None: any code of their own."""
    release_decay: float
    """Decay of the released average; 0 releases the raw version."""

    def reason_against(self, notice: UpdateNotice, version: int, max_staleness: int) -> str | None:
        """Why an update is refused before a byte of its blob is read; None if nothing speaks against it."""
        checks = (
            (self.bundle is not None and notice.bundle != self.bundle, "wrong_code"),
            (notice.spec != self.spec, "wrong_spec"),
            (notice.length != self.update_length, "wrong_length"),
            (notice.encoding != DENSE_F32.name, "unknown_encoding"),
            (not self.names.issuperset(notice.absent), "unknown_tensor"),
            (notice.base_version > version, "future_base"),
            (version - notice.base_version > max_staleness, "too_stale"),
        )
        return next((reason for wrong, reason in checks if wrong), None)


@dataclass(slots=True, kw_only=True)
class RunSnapshot:
    """What the journal remembers of one run."""

    operator: str
    version: int
    digest: bytes
    state: RunState
    reason: str
    elapsed: float
    record_registry: int
    """Registry version the current record is wrapped for."""
    rows: list[UpdateRow]
    standing: Standing
    evaluations: Evaluations


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What the journal remembers, for a fresh start of the rules."""

    head: int
    last_row: int
    registry: Registry
    outbox: list[int]
    highest: dict[tuple[str, int], int]
    counters: dict[str, int]
    measures: dict[str, Measured]
    awaited: list[tuple[bytes, str]]
    """Commands that sites were given lately and have not replied to."""
    runs: dict[str, RunSnapshot]
    """In the order they were made."""
    strays: list[UpdateRow]
    """Updates without an end whose run there is not."""
    taken: frozenset[str]
    """Names that no new run may have, those of deleted runs among them."""
    models: tuple[str, ...]
    channels: dict[str, tuple[str, ...]]
    """For each the published models it has named, the present one last."""
