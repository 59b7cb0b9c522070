"""What an aggregator is told when it is assembled."""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregator.config import RunConfig
from aggregator.operators.admin_access import AdminAccess
from aggregator.pipeline.genesis import Genesis
from aggregator.pipeline.strategy_code import NO_CODE, StrategyCode
from aggregator.service.event_log import Observer, nobody
from protocol.keys import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorSettings:
    """Who the aggregator is, whom it believes, and what it may use."""

    federation: str
    identity: Identity
    registry_record: bytes
    """The signed registry; a newer one that the journal holds wins."""
    root: bytes
    """The key that signs registries."""
    access: AdminAccess = field(default_factory=AdminAccess)
    cache_bytes: int = 4 << 30
    """Bound of the local ciphertext cache: best a little more than K + 3 times the model."""
    observer: Observer = nobody
    strategies: StrategyCode = NO_CODE
    """Makes strategies, also those that runs bring, as far as they are allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """A run to begin with, besides those that the journal knows and operators will create."""

    config: RunConfig
    genesis: Genesis | None = None
    """Its version 0, needed the first time only."""
    code: bytes = b""
    """The zip archive that sites train it with; empty: code of their own."""
