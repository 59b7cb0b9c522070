"""What there is to look at, and nothing else: the worker's log, two records of its own, and what came with a run.

The view is a list of what may be seen, not the state directory with some names crossed out: keys, spool, cache, journal
and cases are not hidden in it, they are not in it. So nothing that is asked for by name tells whether it exists.
Files of a run are those its `manifest.json` names, as long as they are what it says; a file that a trainer made may
hold anything, and is a nameless line in a listing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from broker.runtime.health import HEALTH
from protocol.errors import Unauthorized
from worker.inspection.safe_open import OpenedFile, Place, look, open_file, read, scan
from worker.inspection.scrub import FILE, fields, free_text, is_private, log_line

LOG = "worker.log"
SETTINGS = "settings.json"
RUNS = "runs"
MANIFEST = "manifest.json"
FOLDER = "<folder>"
READABLE = (".txt", ".log", ".json", ".csv", ".toml", ".sh", ".config", ".py")
_ASKED = re.compile(r"[A-Za-z0-9._/-]{0,256}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BACKUPS = 9
_MIB = 1024 * 1024


class Content(Enum):
    """What a file holds, which decides how it is told."""

    LOG = "lines of the worker's log"
    RECORD = "a record of the worker's own"
    SENT = "what came with a run"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Something in the view."""

    name: str
    found: OpenedFile
    base: Path
    place: Place = ()
    """Where it is on the disk, below `base`."""
    holds: Content | None = None
    """None for folders, and for files of which nothing is told but their size."""
    digest: str = ""
    """SHA-256, in hex, of what came with a run."""

    @property
    def folder(self) -> bool:
        """Whether other entries are inside."""
        return self.found.folder and self.name != FOLDER


class FileView:
    """The files of one worker that may be looked at from afar."""

    def __init__(self, state: Path, log_file: Path) -> None:
        self._state = state
        self._log_file = log_file
        self._top = FileEntry(name=".", found=OpenedFile(name=".", folder=True, regular=False), base=state)

    def find(self, asked: str) -> FileEntry:
        """The file or folder of this name.

        Raises:
            Unauthorized: it is not in the view, whether or not there is such a file.
        """
        entry = self._top
        for part in _parts(asked):
            found = [each for each in self.inside(entry) if each.name == part]
            if not found:
                raise Unauthorized(f"there is nothing called {asked!r} that may be looked at; `ls` shows what is")
            entry = found[0]
        return entry

    def inside(self, folder: FileEntry) -> list[FileEntry]:
        """What a folder holds, by name; nothing if it is a file."""
        if not folder.folder:
            return []
        if folder is self._top:
            return self._own()
        if folder.place == (RUNS,):
            return [_run(folder, each) for each in scan(folder.base, folder.place)]
        return _of_run(folder)

    def lines(self, entry: FileEntry) -> Iterator[str]:
        """What a file holds, line by line, without anything private.

        Raises:
            Unauthorized: it is not a file whose contents may be told.
        """
        if entry.holds is None or not entry.name.endswith(READABLE):
            raise Unauthorized(f"{entry.name!r} is not a file that may be read from afar; `ls -l` shows what there is")
        if entry.holds is Content.SENT:
            return _sent(entry)
        return _logged(entry) if entry.holds is Content.LOG else _record(entry)

    def _own(self) -> list[FileEntry]:
        home, there = self._log_file.parent, self._log_file.name
        logs = {LOG: there} | {behind(LOG, n): behind(there, n) for n in range(1, _BACKUPS + 1)}
        entries = [_entry(name, home, (real,), Content.LOG) for name, real in logs.items()]
        entries += [_entry(name, self._state, (name,), Content.RECORD) for name in (HEALTH, SETTINGS)]
        entries.append(_entry(RUNS, self._state, (RUNS,), None))
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.name)


def behind(name: str, number: int) -> str:
    """The name of a log file that was full: `worker.1.log` is the newest behind `worker.log`."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.{number}{suffix}"


def _parts(asked: str) -> list[str]:
    parts = [part for part in asked.split("/") if part not in ("", ".")]
    if not _ASKED.fullmatch(asked) or asked.startswith("/") or ".." in parts:
        raise Unauthorized(
            "a path has letters, digits and . _ - / in it, starts in the worker's own folder and does not leave it; "
            "`ls` shows what is there"
        )
    return parts


def _entry(name: str, base: Path, place: Place, holds: Content | None, digest: str = "") -> FileEntry | None:
    """A file, or without `holds` a folder; None if it is not there, or something else is."""
    found = look(base, place)
    if found is None or not (found.folder if holds is None else found.regular):
        return None
    return FileEntry(name=name, found=found, base=base, place=place, holds=holds, digest=digest)


def _run(folder: FileEntry, found: OpenedFile) -> FileEntry:
    place = (*folder.place, found.name)
    named = _NAME.fullmatch(found.name) and not is_private(found.name)
    return (_entry(found.name, folder.base, place, None) if named else None) or _nameless(folder, found)


def _of_run(folder: FileEntry) -> list[FileEntry]:
    """What is in a folder of a run: by name what came with the run, the rest without."""
    run, above = folder.place[:2], folder.place[2:]
    came = _manifest(folder.base, run)
    folders = {name[:depth] for name in came for depth in range(1, len(name))}
    entries = []
    for each in scan(folder.base, folder.place):
        inner = (*above, each.name)
        entry: FileEntry | None = None
        if inner in came:
            entry = _entry(each.name, folder.base, (*run, *inner), Content.SENT, came[inner])
        elif inner in folders:
            entry = _entry(each.name, folder.base, (*run, *inner), None)
        entries.append(entry or _nameless(folder, each))
    return entries


def _nameless(folder: FileEntry, found: OpenedFile) -> FileEntry:
    mark = FOLDER if found.folder else FILE
    return FileEntry(name=mark, found=replace(found, name=mark), base=folder.base)


def _manifest(base: Path, run: Place) -> Mapping[Place, str]:
    try:
        files = json.loads(read(base, (*run, MANIFEST), _MIB))["files"]
        listed = {tuple(name.split("/")): digest for name, digest in files.items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}
    return {name: digest for name, digest in listed.items() if all(map(_NAME.fullmatch, name))}


def _sent(entry: FileEntry) -> Iterator[str]:
    try:
        raw = read(entry.base, entry.place, _MIB)
    except OSError:
        raw = b""
    if hashlib.sha256(raw).hexdigest() != entry.digest:
        raise Unauthorized(
            f"{entry.name!r} is not what came with the run any more, or over 1 MiB; it stays at the site"
        )
    return (free_text(line) for line in raw.decode("utf-8", "replace").splitlines())


def _record(entry: FileEntry) -> Iterator[str]:
    with suppress(OSError, ValueError, RecursionError):
        table = json.loads(read(entry.base, entry.place, _MIB))
        if isinstance(table, dict):
            yield from (f"{name}={value}" for name, value in fields(table))


def _logged(entry: FileEntry) -> Iterator[str]:
    with suppress(OSError), open_file(entry.base, entry.place) as file:
        while raw := file.readline(_MIB):
            yield log_line(raw.decode("utf-8", "replace"))
