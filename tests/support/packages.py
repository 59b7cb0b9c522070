"""Somebody else's package on `sys.path`, as an installer leaves it: modules, and a list of its entry points."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
) -> None:
    """Install a package below `folder` for the rest of the test: its modules' source, entry points by group."""
    place = folder / name
    about = place / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in entry_points.items()
        for line in (f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, source in modules.items():
        (place / f"{module}.py").write_text(source)
        # So that monkeypatch takes out again what the test imports.
        monkeypatch.setitem(sys.modules, module, sys)
        del sys.modules[module]
    monkeypatch.syspath_prepend(place)
