"""How much one answer may hold: what fits into a message, and into one list of it."""

from __future__ import annotations

from collections.abc import Sequence

from protocol import limits
from worker.looking.scrub import shortened

BYTES = 160 * 1024
"""What the lines of an answer may take; the rest of a message's body is for whatever is beside them."""
_BESIDE = 5
"""Bytes a line takes besides its text, at most."""


def fitting(lines: Sequence[str], *, newest: bool = False) -> tuple[str, ...]:
    """As many lines as an answer holds, each of at most 1024 characters: the first, or with `newest` the last."""
    kept: list[str] = []
    left = BYTES
    for line in map(shortened, reversed(lines) if newest else lines):
        left -= len(line.encode("utf-8", "replace")) + _BESIDE
        if left < 0 or len(kept) == limits.PLAINS:
            break
        kept.append(line)
    return tuple(reversed(kept) if newest else kept)
