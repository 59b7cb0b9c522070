"""The newest lines of the worker's log, each with its number, so that one can ask for what came after."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol import limits
from worker.inspection.arguments import Arguments
from worker.inspection.safe_open import open_file
from worker.inspection.scrub import TEXT, fitting, log_entry
from worker.inspection.view import behind

_WINDOW = 2 * 1024**2
"""Bytes of the log that are looked at, from its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLines:
    """Some lines of the log."""

    lines: tuple[str, ...]
    next: int
    """Number of the last line that was looked at: with `since` it asks for newer ones."""
    missed: int = 0
    """Lines after `since` that are no longer within reach."""


def newest(log_file: Path, arguments: Arguments) -> LogLines:
    """The newest lines, or with `since` the oldest of those that came after it, so that nothing is skipped.

    `grep` is a text, whatever its case; what is not told cannot be searched for either.
    """
    most = arguments.number("lines", 100, 1, limits.PLAINS)
    wanted = arguments.text("grep", "").casefold()
    since = arguments.number("since", 0, 0, 2**63 - 1)
    following = arguments.given("since")
    arguments.done()
    entries = _entries(log_file)
    last = entries[-1][0] if entries else 0
    if since > last:  # the log was begun anew
        since = 0
    later = [(number, entry) for number, entry in entries if number > since or not following]
    shown = [(number, line) for number, entry in later if wanted in (line := _told(entry)).casefold()]
    picked = shown[:most] if following else shown[-most:]
    lines = fitting([line for _, line in picked], newest=not following)
    if following and len(lines) < len(shown):
        last = shown[len(lines) - 1][0]
    missed = entries[0][0] - since - 1 if following and since and entries else 0
    return LogLines(lines=lines, next=last, missed=max(0, missed))


def _told(entry: dict[str, object] | None) -> str:
    return TEXT if entry is None else log_entry(entry)


def _entries(log_file: Path) -> list[tuple[int, dict[str, object] | None]]:
    """Number and entry of every line within reach, oldest first; a line that is none has the number before it."""
    now = _numbered(_end(log_file, _WINDOW))
    used = _size(log_file)
    if used >= _WINDOW:
        return now
    before = _numbered(_end(log_file.with_name(behind(log_file.name, 1)), _WINDOW - used))
    # The files may have changed their names in between.
    first = now[0][0] if now else 2**63
    return [each for each in before if each[0] < first] + now


def _numbered(raw: list[bytes]) -> list[tuple[int, dict[str, object] | None]]:
    numbered = []
    number = 0
    for text in raw:
        entry = None
        with suppress(ValueError, RecursionError):
            parsed = json.loads(text)
            entry = parsed if isinstance(parsed, dict) else None
        if entry is not None and isinstance(line := entry.get("line"), int):
            number = line
        numbered.append((number, entry))
    return numbered


def _end(path: Path, size: int) -> list[bytes]:
    try:
        with open_file(path.parent, (path.name,)) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            lines = file.read(size).split(b"\n")
    except OSError:
        return []
    # What is not whole: the beginning of the first, and a last one that is still being written.
    return [line for line in lines[1 if start else 0 : -1] if line]


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
