"""Runs all suites that meet RabbitMQ on each RabbitMQ there is: `python -m tests.integration`.

Debian's own, and those of newer Debians, which `scripts/newer-debian.sh` unpacks first where it can.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.matrix import NEWER_DEBIANS, Found, compare, unpacked
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


def find(server: str) -> Found | None:
    """RabbitMQ's programs, unpacked if they have to be."""
    programs = SERVERS[server]
    if not (programs / "rabbitmq-server").exists() and not unpacked(server):
        return None
    return Found(
        name=f"RabbitMQ-{release(programs)}",
        title=f"{release(programs)} ({server})",
        python=[sys.executable],
        environment={"RABBITMQ_BIN": str(programs)},
    )


if __name__ == "__main__":
    sys.exit(compare("tests.integration", "server", list(SERVERS), find, SUITES))
