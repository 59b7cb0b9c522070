"""Runs all suites that meet RabbitMQ on each RabbitMQ there is: `python -m tests.integration`.

Debian's own, and those of newer Debians, which `scripts/newer-debian.sh` unpacks first where it can. One table at the
end; whatever failed is told as it happens, and the whole output lies in the folder given by `--logs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.matrix import NEWER_DEBIANS, ROOT, out, run, table, unpacked
from tests.support.rabbit import NEWER, SYSTEM, release

SERVERS: Mapping[str, Path] = {
    "Debian's": SYSTEM,
    **{suite: NEWER / suite / "bin" for suite in NEWER_DEBIANS},
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
        "tests/integration/test_private_node.py",
        "-m",
        "servers",
    ),
    "kills": KILLS,
    "e2e": ("tests/e2e", "-m", "servers and not long", *(f"--ignore={path}" for path in KILLS)),
}


def main() -> int:
    """Run what was asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration", description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--logs", type=Path, default=ROOT / "out" / "rabbitmq")
    asked = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    failed = False
    for server in asked.servers:
        programs = SERVERS[server]
        if not (programs / "rabbitmq-server").exists() and not unpacked(server):
            rows.append((f"{server}: absent", *("-" for _ in asked.suites)))
            continue
        found = [
            run(
                f"RabbitMQ-{release(programs)}-{suite.replace(' ', '-')}",
                [sys.executable],
                SUITES[suite],
                asked.logs,
                {"RABBITMQ_BIN": str(programs)},
            )
            for suite in asked.suites
        ]
        failed = failed or any(counts.failed for counts in found)
        rows.append((f"{release(programs)} ({server})", *map(str, found)))
    out("\npassed/failed/skipped")
    out("\n".join(table([("RabbitMQ", *asked.suites), *rows])))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
