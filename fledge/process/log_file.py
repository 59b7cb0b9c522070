"""The log that stays on this machine: JSON lines with all details, in files whose sizes add up to 20 MiB at most."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import cast

import structlog

from broker.runtime.folders import private_folder
from protocol.errors import StateError

SIZE, BEHIND = 4 * 1024**2, 4
"""Bytes of one file, and how many full ones are kept behind it: `worker.log`, `worker.1.log` and so on."""
_LONGEST = 64 * 1024
_KEPT_OF_LONG = 24 * 1024
"""Characters of a line that is longer; quoted once more they may become twice as many."""
# A frame's local variables hold keys, tensors and, in a trainer, patients' data; structlog shows them by default.
TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
_ENCODER = json.JSONEncoder(default=repr)
"""Made once: `json.dumps` makes one for every line when it is given a default."""


def to_json(event: object, **_options: object) -> str:
    """One line of JSON; what JSON cannot say is shown as Python would."""
    return _ENCODER.encode(event)


class LogFile(RotatingFileHandler):
    """A file that only its owner may read; each line says its number, which goes on after restarts and rotations.

    What cannot be written is dropped: a full disk must not stop a service.
    """

    def __init__(self, path: Path, clean: Callable[[str], str]) -> None:
        """Open `path` to append to it; `clean` takes secrets out of every line.

        Raises:
            StateError: it cannot be written.
        """
        try:
            private_folder(path.parent)
            super().__init__(path, maxBytes=SIZE, backupCount=BEHIND, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise StateError(f"log {path}: {error.strerror or error}; check the path and its permissions") from error
        self._clean = clean
        self.namer = _numbered
        self._lines = _last_number(path) or _last_number(path.with_suffix(f".1{path.suffix}"))
        if self.stream is not None and not _ends_well(path):
            self.stream.write("\n")

    def keep(self, entry: Mapping[str, object]) -> None:
        """Append an entry of structlog's, without the detour of a record: that costs more than all else of a line."""
        self.acquire()
        try:
            self._append(entry)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Append what a library said."""
        with suppress(Exception):  # whatever it was asked to log, a log must not be what fails
            self._append(self._from_library(record))

    def _append(self, entry: Mapping[str, object]) -> None:
        with suppress(Exception):
            self._lines += 1
            line = self._clean(_bounded({**entry, "line": self._lines})) + "\n"
            if self.stream is None:  # it could not be opened when the last one was full
                self.stream = self._open()
            if self.stream.tell() + len(line) >= SIZE:
                self.doRollover()
            self.stream.write(line)
            self.stream.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
        """Drop the record."""

    def _from_library(self, record: logging.LogRecord) -> dict[str, object]:
        said: dict[str, object] = {
            "event": "library.said",
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            said = dict(TRACEBACKS(None, "", {**said, "exc_info": record.exc_info}))
        return said

    def _open(self) -> TextIOWrapper:
        file = _private(self.baseFilename)
        return cast(TextIOWrapper, os.fdopen(file, self.mode, encoding=self.encoding, errors=self.errors))


def _private(path: str) -> int:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(file, 0o600)
    return file


def _numbered(default: str) -> str:
    """`worker.1.log` for `worker.log.1`, so that the files keep their suffix."""
    path, _, number = default.rpartition(".")
    stem, suffix = os.path.splitext(path)
    return f"{stem}.{number}{suffix}"


def _bounded(entry: dict[str, object]) -> str:
    text = to_json(entry)
    if len(text) <= _LONGEST:
        return text
    short: dict[str, object] = {key: entry[key] for key in ("line", "timestamp", "level") if key in entry}
    return to_json(short | {"event": str(entry.get("event"))[:1024], "cut": text[:_KEPT_OF_LONG]})


def _last_number(path: Path) -> int:
    for line in reversed(_tail(path).split(b"\n")):
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("line"), int):
                return int(entry["line"])
    return 0


def _ends_well(path: Path) -> bool:
    """Whether no line was cut short by a crash or a full disk."""
    return _tail(path)[-1:] in (b"", b"\n")


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2 * _LONGEST))
            return file.read(2 * _LONGEST)
    except OSError:
        return b""
