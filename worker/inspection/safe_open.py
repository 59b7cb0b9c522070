"""Reaching files below a folder without following a link: the path is walked one name at a time."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

Place = tuple[str, ...]
"""Names from a folder downwards."""
_MOST = 1024
"""Names of one folder that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """What the disk says of a name."""

    name: str
    folder: bool
    regular: bool
    """An ordinary file: no link, pipe or device."""
    size: int = 0
    modified: float = 0.0
    accessed: float = 0.0


def look(base: Path, place: Place) -> OpenedFile | None:
    """What is at `place` below `base`; None if nothing is, or the way there leads over a link."""
    try:
        file = _open(base, place)
    except OSError:
        return None
    try:
        return _found(place[-1] if place else "", os.fstat(file))
    finally:
        os.close(file)


def scan(base: Path, place: Place) -> list[OpenedFile]:
    """What a folder holds, by name, at most 1024 of them; nothing if it is none."""
    found: list[OpenedFile] = []
    with suppress(OSError), ExitStack() as stack:
        folder = _open(base, place)
        stack.callback(os.close, folder)
        for entry in stack.enter_context(os.scandir(folder)):
            with suppress(OSError):  # gone since
                found.append(_found(entry.name, entry.stat(follow_symlinks=False)))
            if len(found) == _MOST:
                break
    return sorted(found, key=lambda each: each.name)


def read(base: Path, place: Place, limit: int) -> bytes:
    """A file's bytes, at most `limit` of them and one more.

    Raises:
        OSError: it cannot be reached.
    """
    with open_file(base, place) as file:
        return file.read(limit + 1)


def open_file(base: Path, place: Place) -> BufferedReader:
    """An ordinary file, to be read and closed.

    Raises:
        OSError: it cannot be reached, or is something else.
    """
    file = _open(base, place)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError("not an ordinary file")
    return open(file, "rb")


def _open(base: Path, place: Place) -> int:
    file = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in place:
        above = file
        try:
            # Not blocking: a pipe that was put there would wait for its other end.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    return file


def _found(name: str, status: os.stat_result) -> OpenedFile:
    return OpenedFile(
        name=name,
        folder=stat.S_ISDIR(status.st_mode),
        regular=stat.S_ISREG(status.st_mode),
        size=status.st_size,
        modified=status.st_mtime,
        accessed=status.st_atime,
    )
