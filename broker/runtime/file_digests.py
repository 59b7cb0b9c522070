"""Files as they were when a process read them, so that it can say which of them it no longer runs with."""

from __future__ import annotations

import hashlib
from pathlib import Path

_LIMIT = 1024**2


class FileDigests:
    """The digests of some files; one that is not there counts as empty."""

    def __init__(self, *paths: Path) -> None:
        self._digests = {path: _digest(path) for path in paths}

    def add(self, *paths: Path) -> None:
        """Note further files as they are now."""
        self._digests |= {path: _digest(path) for path in paths}

    def changed(self) -> tuple[str, ...]:
        """The names of those that differ from what was read, also if one is gone or cannot be read."""
        return tuple(path.name for path, digest in self._digests.items() if _digest(path) != digest)


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_LIMIT)).digest()
    except OSError:
        return b""
