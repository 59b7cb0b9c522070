"""One worker for one state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from broker.runtime.folders import private_folder
from protocol.errors import StateError


def hold(state: Path) -> int:
    """Make the state directory and lock it for this process; the descriptor holds the lock until it is closed.

    Raises:
        StateError: it cannot be used, or another worker uses it.
    """
    try:
        private_folder(state)
        file = os.open(state / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"state directory {state}: {error.strerror}; check the path and its permissions") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise StateError(f"state directory {state}: another worker uses it; stop that one first") from None
    return file
