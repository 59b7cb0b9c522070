"""The versions of each run that this site holds and can use by itself: one small file each, in the worker's state.

A file holds the version's signed record, which names the model's chunks and seals their key for this site, and what the
model came to on the site's own data. The chunks themselves lie, encrypted, in the cache in front of the store.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from broker.runtime.folders import private_folder
from protocol import limits
from protocol.codec import Count, Word, decode, encode
from protocol.errors import ConfigError, StateError, WireError

NEWEST = 16
"""So many of a run's versions are kept, and the best one besides."""
_LIMIT = limits.STORED_RECORD + limits.BODY
_DIGITS = 20
_VERSION, _NEW = ".version", ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVersion:
    """A version that the site has had in its hands."""

    run: Word
    version: Count
    record: bytes
    """Its signed record."""
    metrics: Annotated[Mapping[str, float], Field(max_length=limits.FIELDS)] = field(default_factory=dict)
    """What it came to on the site's own data; nothing if it was not evaluated."""
    key: str = ""
    """The metric by which its trainer compares versions; `-name`: smaller is better."""

    @property
    def score(self) -> float | None:
        """The metric that counts, larger being better; None if the version was not evaluated or came to no number."""
        value = self.metrics.get(self.key.removeprefix("-"))
        if value is None or not math.isfinite(value):
            return None
        return -value if self.key.startswith("-") else value


def best(versions: Sequence[KeptVersion]) -> KeptVersion | None:
    """The version that did best on the site's own data, of equal ones the newest; None if none was evaluated."""
    scored = [(each.score, each.version, each) for each in versions if each.score is not None]
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def chosen(run: str, versions: Sequence[KeptVersion], wanted: str) -> KeptVersion:
    """The version that `wanted` means: "best", "global" (the newest one here) or a number.

    Raises:
        ConfigError: there is no such version here.
    """
    if not versions:
        raise ConfigError(f"this site holds no version of run {run!r}; let its worker train the run first")
    held = ", ".join(str(each.version) for each in versions)
    if wanted == "global":
        return versions[-1]
    if wanted == "best":
        found = best(versions)
        if found is None:
            raise ConfigError(
                f"no version of run {run} was evaluated here, so none is known to be the best; "
                f"say --model global or a version ({held}). Sites measure unless run.toml says `evaluate = false`, if "
                "their trainer has data for it"
            )
        return found
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) <= _DIGITS):
        raise ConfigError(f"--model {wanted!r} is neither best nor global nor a version; here are {held}")
    for each in versions:
        if each.version == int(wanted):
            return each
    raise ConfigError(f"this site does not hold version {wanted} of run {run}; it holds {held}")


class KeptVersions:
    """A directory of versions by run, made when there is something to keep. Written by the training thread alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[KeptVersion, ...]] = {}
        """What this object has read or written."""

    def note(self, kept: KeptVersion) -> tuple[KeptVersion, ...]:
        """Add a version; returns those that are kept now, ascending. Measurements of a version are not lost by this.

        Raises:
            StateError: it cannot be written.
        """
        known = {each.version: each for each in self._known.get(kept.run) or self.of(kept.run)}
        before = known.get(kept.version)
        if before is not None and not kept.metrics:
            if before.record == kept.record:
                return self._known.setdefault(kept.run, tuple(known.values()))
            # The same version, sealed again for other members.
            kept = replace(kept, metrics=before.metrics, key=before.key)
        folder = self._folder(kept.run)
        path = folder / f"{kept.version:010d}{_VERSION}"
        try:
            if not folder.is_dir():
                for private in (self._directory, folder):
                    private_folder(private)
            new = path.with_suffix(_NEW)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(encode(kept))
            os.replace(new, path)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}; the version cannot be used at the site by itself") from error
        versions = tuple(each for _, each in sorted({**known, kept.version: kept}.items()))
        stay = {each.version for each in (*versions[-NEWEST:], best(versions)) if each is not None}
        for each in versions:
            if each.version not in stay:
                (folder / f"{each.version:010d}{_VERSION}").unlink(missing_ok=True)
        self._known[kept.run] = tuple(each for each in versions if each.version in stay)
        return self._known[kept.run]

    def of(self, run: str) -> tuple[KeptVersion, ...]:
        """The versions of a run that are kept, ascending; files that are damaged are passed over."""
        found = [each for each in _read(self._folder(run)) if each.run == run]
        return tuple(sorted(found, key=lambda each: each.version))

    def runs(self) -> tuple[str, ...]:
        """The runs that versions are kept of."""
        folders = sorted(self._directory.glob("*")) if self._directory.is_dir() else []
        return tuple(sorted({each.run for folder in folders for each in _read(folder)[:1]}))

    def forget(self, run: str) -> None:
        """Delete what is kept of a run."""
        self._known.pop(run, None)
        folder = self._folder(run)
        for path in folder.glob("*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # there was nothing
            folder.rmdir()

    def _folder(self, run: str) -> Path:
        return self._directory / hashlib.sha256(run.encode()).hexdigest()[:32]


def _read(folder: Path) -> list[KeptVersion]:
    found = []
    for path in sorted(folder.glob(f"*{_VERSION}")):
        with suppress(OSError, WireError), path.open("rb") as file:
            found.append(decode(KeptVersion, file.read(_LIMIT + 1), _LIMIT))
    return found
