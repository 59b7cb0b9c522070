"""Runs all suites that meet RabbitMQ on each RabbitMQ there is: `python -m tests.integration`.

Debian's own, and those of newer Debians, which `scripts/newer-debian.sh` unpacks first where it can. One table at the
end; whatever failed is told as it happens, and the whole output lies in the folder given by `--logs`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.support.rabbit import NEWER, SYSTEM, release

ROOT = Path(__file__).resolve().parents[2]
SERVERS: Mapping[str, Path] = {
    "Debian's": SYSTEM,
    **{suite: NEWER / suite / "bin" for suite in ("trixie", "forky")},
}
KILLS = ("tests/e2e/test_kills.py", "tests/e2e/test_broker_away.py")
SUITES: Mapping[str, tuple[str, ...]] = {
    "contract": ("tests/contract/test_transport.py",),
    "least privilege": ("tests/integration/test_least_privilege.py",),
    "doctor": ("tests/integration/test_doctor.py", "tests/integration/test_doctor_with_identities.py"),
    "TLS": ("tests/integration/test_rabbit_tls.py", "tests/integration/test_certificates.py"),
    "faults": (
        "tests/integration/test_rabbit_faults.py",
        "tests/integration/test_proxy.py",
        "tests/integration/test_broker_settings.py",
        "-m",
        "servers",
    ),
    "kills": KILLS,
    "e2e": ("tests/e2e", "-m", "servers and not long", *(f"--ignore={path}" for path in KILLS)),
}


@dataclass(frozen=True, slots=True)
class Counts:
    """How the tests of one suite ended on one server."""

    passed: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.passed}/{self.failed}/{self.skipped}"


def out(text: str) -> None:
    """Say something at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run what was asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration", description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--logs", type=Path, default=ROOT / "out" / "rabbitmq")
    asked = parser.parse_args()
    asked.logs.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    failed = False
    for server in asked.servers:
        programs = SERVERS[server]
        if not (programs / "rabbitmq-server").exists() and not unpacked(server):
            rows.append((f"{server}: absent", *("-" for _ in asked.suites)))
            continue
        found = [run(programs, suite, asked.logs) for suite in asked.suites]
        failed = failed or any(counts.failed for counts in found)
        rows.append((f"{release(programs)} ({server})", *map(str, found)))
    out("\npassed/failed/skipped")
    out("\n".join(table([("RabbitMQ", *asked.suites), *rows])))
    return int(failed)


def unpacked(server: str) -> bool:
    """Unpack a newer Debian's RabbitMQ, if this machine can."""
    if server not in ("trixie", "forky"):
        return False
    return subprocess.run([str(ROOT / "scripts" / "newer-debian.sh"), server], check=False).returncode == 0


def run(programs: Path, suite: str, logs: Path) -> Counts:
    """Run one suite on one server; a run that ended without a report counts as one failure."""
    name = f"{release(programs)}-{suite.replace(' ', '-')}"
    log, report = logs / f"{name}.log", logs / f"{name}.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("w") as written:
        subprocess.run(
            [sys.executable, "-m", "pytest", "--tb=short", f"--junitxml={report}", *SUITES[suite]],
            cwd=ROOT,
            env={**os.environ, "RABBITMQ_BIN": str(programs)},
            stdout=written,
            stderr=subprocess.STDOUT,
            check=False,
        )
    counts = counted(report)
    out(f"RabbitMQ {name}: {counts} in {time.monotonic() - started:.0f} s")
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


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
