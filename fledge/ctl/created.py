"""Which code this kit has sent for which run: what sites are told to run is compared with it."""

from __future__ import annotations

import json
from pathlib import Path

from fledge.ctl.members import folder_of
from protocol.errors import ConfigError

FILE = "runs.json"
_LIMIT = 1024 * 1024


def codes(kit: Path) -> dict[str, str]:
    """SHA-256 of the code (hex; empty: none) of every run that was created with this kit.

    Raises:
        ConfigError: the file is damaged, or others may read it.
    """
    from deploy.keyfiles import must_be_private, read_bounded

    path = folder_of(kit) / FILE
    if not path.exists():
        return {}
    must_be_private(path, path.stat().st_mode)
    try:
        found = json.loads(read_bounded(path, _LIMIT, "the list of runs created with this kit"))["codes"]
        return {str(run): str(code) for run, code in found.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is damaged; remove it, and compare digests by --code from then on") from None


def remember(kit: Path, run: str, code: str | None) -> None:
    """Note a run's code; None forgets the run.

    Raises:
        ConfigError: the file cannot be written.
    """
    from deploy.keyfiles import replace_private

    held = codes(kit)
    changed = {name: each for name, each in held.items() if name != run} | ({} if code is None else {run: code})
    if changed != held:
        replace_private(folder_of(kit) / FILE, json.dumps({"codes": changed}, indent=1).encode())
