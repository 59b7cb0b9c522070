"""The console against a running aggregator: a sitting as Clara's users know it, over signed orders and real answers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fledge import log
from fledge.ctl.app import app
from fledge.operator import Console
from tests.unit.aggregator.test_desk_service import Hub

SITES = ("site-0", "site-1", "site-2")
LATER = r"Error: {} arrives with run deployment; until then .*`.*"
TABLE = [r"\+[-+]+\+", r"\| CLIENT NAME .*", r"\+[-+]+\+", *(rf"\| {site} .*" for site in SITES), r"\+[-+]+\+"]
OBEYED = [rf"instance:{site} : {site} obeys" for site in SITES]
SAID = r"\S.*"
TRANSCRIPT = [
    (
        "check_status server",
        [
            "FL run: test-run",
            "FL server status: training running",
            "Current version: 0",
            "Registered clients: 3",
            *TABLE,
        ],
    ),
    ("set_run_number 1", [r"Error: there is no run-1; making one arrives with run deployment; .*"]),
    ("upload_folder segmentation", [LATER.format("upload_folder")]),
    ("deploy segmentation server", [LATER.format("deploy")]),
    ("deploy segmentation client", [LATER.format("deploy")]),
    ("start server", [LATER.format("start")]),
    ("start client", [LATER.format("start")]),
    ("check_status client", TABLE),
    ("sys_info client", OBEYED),
    ("abort client", OBEYED),
    ("abort server", ["The run is ended at once."]),
    ("shutdown client", OBEYED),
    ("shutdown server", [SAID, r"The aggregator goes on answering; .*"]),
    ("check_status server", ["FL run: test-run", "FL server status: training aborted", SAID, SAID, *TABLE]),
]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    log.configure(file=io.StringIO())  # the aggregator's own, which is not part of the sitting
    hub = Hub(tmp_path)
    hub.start()
    for site in SITES:
        hub.obey(site)
    yield hub
    for service in hub.services:
        service.stop()


def test_a_sitting_as_claras_users_know_it(hub: Hub, tmp_path: Path) -> None:
    @contextmanager
    def opened(kit: Path) -> Iterator[Console]:
        console = hub.console()
        yield console
        console.close()

    lines = "".join(f"{line}\n" for line, _ in TRANSCRIPT)
    done = CliRunner().invoke(app, ["--kit", str(tmp_path), "shell", "--yes"], obj=opened, input=lines)
    shown = done.stdout.splitlines()
    assert shown.pop(0).endswith(": help lists the commands, bye ends.")
    for line, answer in TRANSCRIPT:
        expected = [re.escape(f"> {line}"), *answer, r"Done \[[0-9]+ usecs\] [0-9-]+ [0-9:.]+"]
        said = [shown.pop(0) for _ in expected]
        assert all(map(re.fullmatch, expected, said)), "\n".join(said)
    assert shown == []
    assert done.exit_code == 1, "what waits for run deployment was not done"
