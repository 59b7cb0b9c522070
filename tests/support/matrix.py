"""Suites on several servers or Pythons: a run of pytest for each pair, logs and reports kept, one table at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
NEWER_DEBIANS = ("trixie", "forky")


@dataclass(frozen=True, slots=True)
class Counts:
    """How the tests of one suite ended."""

    passed: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.passed}/{self.failed}/{self.skipped}"


def out(text: str) -> None:
    """Say something at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def unpacked(suite: str) -> bool:
    """Unpack a newer Debian, if this machine can."""
    if suite not in NEWER_DEBIANS:
        return False
    return subprocess.run([str(ROOT / "scripts" / "newer-debian.sh"), suite], check=False).returncode == 0


def run(
    name: str, python: Sequence[str], arguments: Sequence[str], logs: Path, environment: Mapping[str, str] | None = None
) -> Counts:
    """Run pytest once, by the command that is this `python`; a run that leaves no report counts as one failure."""
    logs.mkdir(parents=True, exist_ok=True)
    log, report = logs / f"{name}.log", logs / f"{name}.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("w") as written:
        subprocess.run(
            [*python, "-m", "pytest", "--tb=short", f"--junitxml={report}", *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=written,
            stderr=subprocess.STDOUT,
            check=False,
        )
    counts = counted(report)
    out(f"{name}: {counts} in {time.monotonic() - started:.0f} s")
    if counts.failed:
        lines = log.read_text(errors="replace").splitlines()
        out("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))) or "\n".join(lines[-20:]))
        out(f"  all of it: {log}")
    return counts


def counted(report: Path) -> Counts:
    """What pytest's report says."""
    if not report.exists():
        return Counts(0, 1, 0)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    total, failures, errors, skipped = (
        int(suite.get(field, 0)) for field in ("tests", "failures", "errors", "skipped")
    )
    return Counts(total - failures - errors - skipped, failures + errors, skipped)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
