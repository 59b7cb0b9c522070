"""Waiting for what nobody tells."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 60.0
"""Seconds after which whatever is waited for has failed to come, on a busy machine too."""


def eventually(condition: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Ask again and again: for what only the broker knows and does not push."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s until {what}"
        time.sleep(0.05)
