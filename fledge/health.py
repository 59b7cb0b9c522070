"""Whether a site's worker or a hub's aggregator is healthy: what `fledge healthcheck` says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from broker.runtime.health import HEALTH, HUB_LONGEST_S, SITE_LONGEST_S, stuck, trouble
from protocol.errors import FledgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthVerdict:
    """Whether a service is as it should be, and one sentence that says so or why not."""

    green: bool
    text: str


def site_health(kit: Path) -> HealthVerdict:
    """Whether the worker of this kit lives and was accepted by the hub since it started, not long ago.

    A site whose run waits or whose trainings fail is healthy, since starting it again would not help; the text says so.
    """
    from fledge.federation import WORKER_TOML
    from worker.config import read_config

    waits = ""
    try:
        note = kit / read_config(kit / WORKER_TOML).state / HEALTH
        why = trouble(note, time.time(), SITE_LONGEST_S)
        waits = stuck(note)
    except FledgeError as error:
        why = str(error)
    return _said(why, f"accepted by the hub; but {waits}" if waits else "accepted by the hub")


def hub_health(config: Path) -> HealthVerdict:
    """Whether the aggregator lives and was at work within two minutes."""
    from aggregator.config import AggregatorConfig
    from broker.runtime.settings import read_toml

    try:
        state = config.parent / read_toml(config, AggregatorConfig).state
        why = trouble(state / HEALTH, time.time(), HUB_LONGEST_S)
    except FledgeError as error:
        why = str(error)
    return _said(why, "at work")


def _said(why: str, otherwise: str) -> HealthVerdict:
    return HealthVerdict(green=not why, text=why or otherwise)
