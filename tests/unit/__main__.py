"""Runs suites on each Python that fledge is for: `python -m tests.unit`.

A Python is found on the path, in pyenv, or in a newer Debian, which `scripts/newer-debian.sh` unpacks first where it
can. Each has a virtual environment of its own in `.venvs`, with the pinned packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.house import ROOT
from tests.support.matrix import Found, compare, out, unpacked
from tests.support.rabbit import NEWER

PYTHONS: Mapping[str, str | None] = {"3.11": None, "3.12": None, "3.13": "trixie", "3.14": "forky"}
"""Every Python, and the newer Debian that has it."""
SUITES: Mapping[str, tuple[str, ...]] = {
    # What reads the repository says the same on every Python, and needs git, which a newer Debian lacks.
    "unit": ("tests/unit", *(f"--ignore=tests/unit/test_{name}.py" for name in ("house", "suite_house", "docs"))),
    "contract": ("tests/contract",),
    "golden": ("tests/golden",),
    "property": ("tests/property",),
    "demo": ("tests/e2e/test_demo.py",),
}
USUAL = ("unit", "contract")
_MANIFESTS = (ROOT / "pyproject.toml", ROOT / "constraints.txt")


def find(version: str) -> Found | None:
    """This Python with the pinned packages."""
    if (python := prepared(version)) is None:
        return None
    title = subprocess.run([*python, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    return Found(name=f"python-{version}", title=title, python=python)


def prepared(version: str) -> list[str] | None:
    """The command that is this Python with the pinned packages; None where it is not to be had."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return [sys.executable]
    if (found := located(version)) is None:
        return None
    environment = ROOT / ".venvs" / version
    stamp = environment / ".fledge-setup"
    # What a newer Debian's Python needs to run is seen by the processes below `inside` alone.
    within = [str(found.with_name("inside"))] if found.is_relative_to(NEWER) else []
    python = [*within, str(environment / "bin" / "python")]
    if not stamp.exists() or any(stamp.stat().st_mtime < each.stat().st_mtime for each in _MANIFESTS):
        out(f"Python {version}: creating {environment.relative_to(ROOT)} (a few minutes the first time)")
        subprocess.run([str(found), "-m", "venv", str(environment)], check=True)
        install = ["install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt", "-e", ".[dev]"]
        subprocess.run([*python, "-m", "pip", *install], cwd=ROOT, check=True)
        stamp.touch()
    return python


def located(version: str) -> Path | None:
    """An interpreter of this version that works, wherever it lies."""
    name, suite = f"python{version}", PYTHONS[version]
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}"), reverse=True)
    for found in (shutil.which(name), *pyenv):
        # pyenv puts a command of each name on the path, which fails if that version is not the chosen one.
        if found is not None and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(found)
    return NEWER / suite / "bin" / name if suite is not None and unpacked(suite) else None


if __name__ == "__main__":
    sys.exit(compare("tests.unit", "python", list(PYTHONS), find, SUITES, USUAL))
