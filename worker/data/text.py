"""Text files as people's programs write them: UTF-8 with or without a byte order mark, and UTF-16 with one."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from protocol.errors import ConfigError
from worker.data.sources import shown

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # it begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(raw: bytes) -> str:
    """The encoding that a byte order mark names; UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), "utf-8")


def read_text(path: Path, limit: int, what: str) -> tuple[str, str]:
    """A file's text and its encoding; `what` says in errors what the file is meant to be.

    Raises:
        ConfigError: it cannot be read, is longer than `limit` bytes, or is no text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error.strerror}; it has to be {what}") from error
    if len(raw) > limit:
        raise ConfigError(f"{shown(path)} is longer than {limit} bytes; is it {what}?")
    encoding = encoding_of(raw)
    try:
        return raw.decode(encoding), encoding
    except ValueError as error:
        raise ConfigError(
            f"{shown(path)} cannot be read: it is no text in UTF-8 (or UTF-16 with a byte order mark); save {what} "
            "as UTF-8"
        ) from error


def write_private_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a new CSV file of mode 0600, whose names are as the disk has them.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
