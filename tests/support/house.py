"""What is in the repository, and how its packages are divided into rooms."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


ROOMS = {
    "broker": [{"transport", "blobs"}, {"net"}, {"runtime"}],
    "aggregator": [
        *({"service"}, {"operators"}, {"intake", "audit"}, {"pipeline"}),
        *({"rules", "journal"}, {"domain", "config"}, {"strategy"}),
    ],
    "worker": [
        {"service", "bundles", "rehearsal"},
        {"trainers", "inspection", "pipeline"},
        {"monai", "statistics", "rules", "journal", "storage", "config", "intake"},
        *({"mmar", "data", "domain", "policy", "trainer", "weights", "filters", "fingerprint"}, {"api"}),
    ],
    "deploy": [{"provision", "docker"}, {"servers", "keyfiles"}],
    "fledge": [
        *({"__main__"}, {"cli", "demo_task"}, {"demo", "trial"}, {"inference", "history", "__init__"}),
        *({"bootstrap", "shell"}, {"ctl", "doctor"}, {"operator", "runs", "health", "receipts"}),
        {"process", "connections", "federation", "trainers"},
    ],
}
"""Rooms from the top; a room imports its own files and rooms of later rows, nothing beside or above it."""


@cache
def repository_files() -> tuple[str, ...]:
    """Every file under version control; all files where there is no repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:
        hidden = {".venv", ".git", "__pycache__"}
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if not hidden & set(p.relative_to(ROOT).parts)]
    return tuple(name for name in names if (ROOT / name).is_file())
