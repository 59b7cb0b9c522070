"""Small JSON files that one process leaves for another: replaced as a whole, readable by their owner only."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from broker.runtime.folders import private_file
from protocol.errors import StateError

_LIMIT = 64 * 1024


def write_note(path: Path, table: Mapping[str, object]) -> None:
    """Replace the file `path` by one that says `table`; a reader sees the old or the new one.

    Raises:
        StateError: it cannot be written.
    """
    write_words(path, json.dumps(table))


def write_words(path: Path, words: str) -> None:
    """Replace the file `path` by one that holds `words`; a reader sees the old or the new one.

    Nothing is synced: a note tells of a process that a power failure ends too.

    Raises:
        StateError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        file = private_file(unfinished)
        try:
            with open(file, "w", encoding="utf-8") as opened:
                opened.write(words)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateError(
            f"{path} cannot be written: {error.strerror or error}; check its folder and the disk"
        ) from error


def read_note(path: Path) -> dict[str, object]:
    """What a note says; nothing if it is missing, torn or too long to be one.

    Raises:
        StateError: it is there but cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror or error}; run this as the service's user") from error
    try:
        table = json.loads(raw) if len(raw) <= _LIMIT else None
    except (ValueError, RecursionError):
        table = None
    return table if isinstance(table, dict) else {}
