"""Strategies and other plug-ins of the project in the present folder, as if it were installed."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import ConfigError

PYPROJECT = "pyproject.toml"
_GROUPS = "fledge."
_LIMIT = 1024 * 1024


def read_project(folder: Path) -> Mapping[str, object]:
    """A folder's pyproject.toml; empty where there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    path = folder / PYPROJECT
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
        return tomllib.loads(raw.decode("utf-8")) if len(raw) <= _LIMIT else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def table(document: object, *keys: str) -> Mapping[str, object]:
    """A table inside a table; empty where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


@contextmanager
def offered_by_project(folder: Path, place: Path) -> Iterator[None]:
    """Let the entry points of a folder's pyproject.toml be found meanwhile, as an installer would.

    Raises:
        ConfigError: pyproject.toml cannot be read.
    """
    document = read_project(folder)
    groups = {
        group: entries
        for group, entries in table(document, "project", "entry-points").items()
        if group.startswith(_GROUPS) and isinstance(entries, Mapping)
    }
    if not groups:
        yield
        return
    name = str(table(document, "project").get("name", folder.name))
    about = place / "project" / f"{name.replace('-', '_')}-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", encoding="utf-8")
    lines = [line for group, of in groups.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in of.items()))]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    added = [str(about.parent), str(folder.resolve())]
    sys.path[:0] = added
    try:
        yield
    finally:
        for entry in added:
            sys.path.remove(entry)
