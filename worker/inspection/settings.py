"""The worker's settings as they may be told: a record for `settings.json`, and the environment without its values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from broker.runtime.json_files import write_note
from worker.config import WorkerConfig
from worker.inspection.view import SETTINGS

HIDDEN = "***"
_NAME = re.compile(r"FLEDGE_[A-Z0-9_]{1,57}")
_HARMLESS = re.compile(r"[01]|true|false|yes|no|on|off", re.IGNORECASE)


def write_settings(state: Path, config: WorkerConfig) -> None:
    """Note in the state directory what of `worker.toml` may be looked at from afar.

    Neither addresses, which may hold passwords, nor paths, nor the trainer's options, which name data.

    Raises:
        StateError: it cannot be written.
    """
    write_note(
        state / SETTINGS,
        {
            "federation": config.federation,
            "filters": ",".join(each.name for each in config.filters),
            "exclude": len(config.exclude),
            "spool_mb": config.spool_mb,
            "cache_mb": config.cache_mb,
            "heartbeat": config.heartbeat,
        },
    )


def environment_rows(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and value of every setting of ours in the environment; a value is hidden unless it can be no secret."""
    for name in sorted(environment):
        if _NAME.fullmatch(name):
            value = environment[name]
            yield name, value if _HARMLESS.fullmatch(value) else HIDDEN
