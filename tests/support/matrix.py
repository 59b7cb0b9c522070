"""Suites on several servers or Pythons: a run of pytest for each pair, and one table at the end.

Whatever failed is told as it happens, and the whole output lies in the folder given by `--logs`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.support.house import ROOT

NEWER_DEBIANS = ("trixie", "forky")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A server or a Python that was found: what it is, and how pytest meets it."""

    name: str
    title: str
    python: Sequence[str]
    """The command that is the Python to run pytest with."""
    environment: Mapping[str, str] = field(default_factory=dict)


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


def compare(
    module: str,
    kind: str,
    known: Sequence[str],
    find: Callable[[str], Found | None],
    suites: Mapping[str, Sequence[str]],
    usual: Sequence[str] = (),
) -> int:
    """Run what the command line asks for, by default all that is `known` with the `usual` suites; the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=sys.modules["__main__"].__doc__)
    parser.add_argument(f"--{kind}s", dest="asked", nargs="+", choices=known, default=known)
    parser.add_argument("--suites", nargs="+", choices=suites, default=usual or list(suites))
    parser.add_argument("--logs", type=Path, default=ROOT / "out" / f"{kind}s")
    given = parser.parse_args()
    rows, failed = [(kind, *given.suites)], False
    for name in given.asked:
        if (found := find(name)) is None:
            rows.append((f"{name}: absent", *("-" for _ in given.suites)))
            continue
        counts = [run(found, suite, suites[suite], given.logs) for suite in given.suites]
        failed = failed or any(each.failed for each in counts)
        rows.append((found.title, *map(str, counts)))
    out("\npassed/failed/skipped")
    out("\n".join(table(rows)))
    return int(failed)


def run(found: Found, suite: str, arguments: Sequence[str], logs: Path) -> Counts:
    """Run pytest once; a run that leaves no report counts as one failure."""
    logs.mkdir(parents=True, exist_ok=True)
    name = f"{found.name}-{suite.replace(' ', '-')}"
    log, report = logs / f"{name}.log", logs / f"{name}.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("w") as written:
        subprocess.run(
            [*found.python, "-m", "pytest", "--tb=short", f"--junitxml={report}", *arguments],
            cwd=ROOT,
            env={**os.environ, **found.environment},
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
