"""The systemd units of kits: what they say, and the calls of the kernel that their filters let through."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.provision.kit_files import texts
from deploy.provision.project import check_project
from protocol.keys import Role

SITE = "north"
UNITS = {Role.SITE: "fledge-worker.service", Role.AGGREGATOR: "fledge-aggregator.service"}


def unit(role: Role) -> str:
    """The unit in the kit of a site or of the aggregator."""
    project = check_project(
        {
            "name": "clinics",
            "aggregator": {"org": "centre", "address": "hub.example"},
            "sites": [{"name": SITE, "org": "nh"}],
            "operators": [{"name": "lead", "email": "lead@hub.example", "org": "nh", "roles": ["super"]}],
        }
    )
    name = SITE if role is Role.SITE else "aggregator"
    return texts(project, role, name, b"r" * 32)[UNITS[role]].decode()


def settings(text: str) -> dict[str, list[str]]:
    """What each setting of a unit is given, in order: some are lists that grow line by line."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze` says; skips where there is none."""
    if (program := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    command = [program, "--no-pager", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def allowed(filters: Sequence[str]) -> frozenset[str]:
    """The calls that lines of `SystemCallFilter=` let through, the first of which is the list of what is allowed."""
    let: set[str] = set()
    for line in filters:
        named = {call for word in line.removeprefix("~").split() for call in _calls(word)}
        let = let - named if line.startswith("~") else let | named
    return frozenset(let)


def _calls(word: str) -> frozenset[str]:
    if not word.startswith("@"):
        return frozenset({word})
    return frozenset(each for name in _groups()[word] for each in _calls(name))


@functools.cache
def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for line in analyze("syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            group = groups.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            group.append(line.strip())
    return groups
