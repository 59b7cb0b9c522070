"""One federation for all tests, and a table of what was measured at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import Stack, docker, stack

_ROW = "row"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that the engine's command line sees, too; FLEDGE_CONTAINERS_FOLDER says where."""
    made = Path(tempfile.mkdtemp(prefix="fledge-containers-", dir=os.environ.get("FLEDGE_CONTAINERS_FOLDER")))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def federation(folder: Path) -> Iterator[Stack]:
    """The federation of the compose file, running."""
    docker("version")
    with stack(folder) as made:
        yield made


@pytest.fixture
def row(record_property: pytest.RecordProperty) -> pytest.RecordProperty:
    """Call it with what was done and what was measured: a row of the table."""
    return record_property


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    rows = []
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, pytest.TestReport) or outcome not in ("passed", "failed", "skipped", "error"):
                continue
            name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
            said = "; ".join(f"{what}: {value}" for what, value in report.user_properties)
            if report.skipped and isinstance(report.longrepr, tuple):
                said = report.longrepr[2].removeprefix("Skipped: ")
            rows.append((report.nodeid, outcome, name, said))
    if rows:
        terminalreporter.section("containers")
    for _, outcome, name, said in rows:
        terminalreporter.line(f"{outcome:8} {name}" + (f"  [{said}]" if said else ""))
