"""Cases: the full text of what went wrong, kept at the site under a number that may be told to anyone."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from broker.net.redact import redacted
from broker.runtime.folders import private_file, private_folder
from protocol.errors import ConfigError

NO_CASE = "-"
"""What stands for a case that could not be kept."""
_MOST = 100
_SIZE = 64 * 1024
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
"""Without vowels and look-alikes: no number spells a word, and each can be read out on the telephone."""
_LENGTH = 7
_NUMBER = re.compile(f"[{_ALPHABET}]{{{_LENGTH}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A case in a list: its number, and its first line, which says when and what."""

    number: str
    title: str


class Incidents:
    """A directory of at most 100 cases of at most 64 KiB each, readable by its owner only; the oldest go first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last: tuple[bytes, str] = (b"", NO_CASE)

    def keep(self, title: str, text: str) -> str:
        """Write a case down and return its number; what is the same as the last one is not written again.

        A disk that takes nothing gives `NO_CASE`: whatever went wrong before matters more.
        """
        title, text = redacted(title), redacted(text)
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        last, number = self._last
        if digest == last and self._path(number).exists():
            return number
        number = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        try:
            private_folder(self._directory)
            self._drop_oldest()
            file = private_file(self._path(number))
            with open(file, "wb") as opened:
                opened.write(_cut(f"{when} {title}\n\n{text}\n"))
        except OSError:
            return NO_CASE
        self._last = (digest, number)
        return number

    def all(self) -> list[Incident]:
        """Every case, the newest first."""
        found = []
        for path in reversed(self._by_age()):
            with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
                found.append(Incident(number=path.stem, title=file.readline(1024).strip()))
        return found

    def text(self, number: str) -> str:
        """The full text of a case.

        Raises:
            ConfigError: there is none of this number.
        """
        if _NUMBER.fullmatch(number):
            with suppress(FileNotFoundError):
                return self._path(number).read_bytes()[: 2 * _SIZE].decode("utf-8", "replace")
        raise ConfigError(f"there is no case {number!r} here; `fledge site cases` lists those that are kept")

    def _path(self, number: str) -> Path:
        return self._directory / f"{number}.txt"

    def _by_age(self) -> list[Path]:
        try:
            found = [each for each in os.scandir(self._directory) if _NUMBER.fullmatch(each.name.removesuffix(".txt"))]
            return [Path(entry.path) for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns)]
        except FileNotFoundError:
            return []

    def _drop_oldest(self) -> None:
        for path in self._by_age()[: -(_MOST - 1)]:
            path.unlink(missing_ok=True)


def _cut(text: str) -> bytes:
    """At most `_SIZE` bytes: a traceback's beginning says where, its end says what."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= _SIZE:
        return raw
    half = _SIZE // 2 - 32
    return raw[:half] + b"\n[... cut ...]\n" + raw[-half:]
