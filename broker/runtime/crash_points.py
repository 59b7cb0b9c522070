"""Labelled crash points: with `FLEDGE_CRASH_AT=label[:n]` set, the process kills itself at the n-th pass of `label`.

They exist so that anyone can check the promise that a process may die anywhere; without the variable they cost a
comparison. The label is written to standard error first, so that a log proves where the process died.
"""

from __future__ import annotations

import os
import signal
import sys

_label, _, _count = os.environ.get("FLEDGE_CRASH_AT", "").partition(":")
_left = int(_count) if _count.isdigit() else 1


def crash_point(label: str) -> None:
    """Die here by SIGKILL if this is the pass that was asked for."""
    global _left  # noqa: PLW0603  # a per-process countdown is what it is
    if label != _label:
        return
    _left -= 1
    if _left <= 0:
        sys.stderr.write(f"crash point {label}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
