"""What one worker is started with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import nacl.utils

from protocol.keys import Identity
from worker.api.filters import FilterChain
from worker.api.trainer import Trainer
from worker.pipeline.code_loader import Options, no_options
from worker.policy import OPEN, SitePolicy
from worker.service.command_handler import Checks, Inspection, NoInspection, no_checks


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Who this worker is, what it trains and what may leave its site."""

    federation: str
    identity: Identity
    registry_record: bytes
    """The signed registry of the kit; a newer one that was noted since comes before it."""
    root: bytes
    """The federation root's verify key."""
    trainer: Trainer | None
    """The site's own; None: it trains runs that bring code and no others."""
    filters: FilterChain
    exclude: Sequence[str] = ()
    spool_quota: int = 16 * 1024**3
    """Bytes."""
    heartbeat: float = 20.0
    """Seconds."""
    policy: SitePolicy = OPEN
    """What the hospital allows."""
    options: Options = no_options
    """What the site gives the trainers of deployed code, by run."""
    inspection: Inspection = field(default_factory=NoInspection)
    """Who answers operators' questions about this machine."""
    certificate_days: Callable[[], float | None] = lambda: None
    """Days until the site's certificate for the broker ends."""
    changed: Callable[[], Sequence[str]] = tuple
    """Names of configuration files that are no longer as they were read."""
    checks: Checks = no_checks
    """The site's own checks, for operators."""
    seed: bytes = field(default_factory=lambda: nacl.utils.random(32), repr=False)
    """What every training's seed is made from; given, trainings can be repeated."""
