"""Starting points: complete MONAI bundles with random weights that come with fledge, and a bundle made of one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from protocol.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LICENCE = "LICENSE"
_METADATA = PurePosixPath("configs/metadata.json")
_README = PurePosixPath("docs/README.md")


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """One of the bundles of the zoo."""

    name: str
    description: str
    """A sentence."""


def starting_points() -> tuple[StartingPoint, ...]:
    """All of them, by name."""
    return tuple(
        StartingPoint(folder.name, json.loads((folder / str(_METADATA)).read_text(encoding="utf-8"))["description"])
        for folder in sorted(_zoo().iterdir(), key=lambda entry: entry.name)
        if folder.is_dir()
    )


def new_bundle(folder: Path, start: str) -> None:
    """Make a bundle of the starting point `start` in a new folder, whose name becomes the bundle's.

    Raises:
        ConfigError: there is no such starting point, the folder is in use, or its name is none for a bundle.
    """
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a bundle; use letters, digits and . _ -, at most 64 of them")
    known = [each.name for each in starting_points()]
    if start not in known:
        raise ConfigError(f"there is no starting point {start!r}; there are: {', '.join(known)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; name a new folder")
    contents = {path: file.read_text(encoding="utf-8") for path, file in _walk(_zoo() / start)}
    contents[PurePosixPath(_LICENCE)] = (_zoo() / _LICENCE).read_text(encoding="utf-8")
    for path, text in named(contents, start, name).items():
        place = folder / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror}; name a folder that can be made") from error


def named(contents: dict[PurePosixPath, str], start: str, name: str) -> dict[PurePosixPath, str]:
    """A bundle's files with `name` in the place of the starting point's, where a bundle says what it is called."""
    return {
        **contents,
        _METADATA: contents[_METADATA].replace(f'"name": "{start}"', f'"name": "{name}"', 1),
        _README: contents[_README].replace(f"# {start}\n", f"# {name}\n", 1),
    }


def _zoo() -> Traversable:
    return files("fledge") / "zoo"


def _walk(folder: Traversable, above: str = "") -> Iterator[tuple[PurePosixPath, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{above}{entry.name}/")
        else:
            yield PurePosixPath(above + entry.name), entry
