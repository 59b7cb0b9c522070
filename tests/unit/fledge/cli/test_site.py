"""`fledge site`, beside a worker's state directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fledge.cli.app import app
from fledge.cli.site import app as site
from protocol.errors import ConfigError, StateError
from protocol.messages import RunState
from worker.domain import writes
from worker.domain.state import RunRow
from worker.domain.writes import NoteAnswer
from worker.journal.approvals import Approvals
from worker.journal.journal import Journal
from worker.storage.incidents import Incidents

TOML = """\
federation = "heart"
broker = "memory:"
store = "memory:"
root = "%s"
trainer = "mytask:trainer"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site whose worker knows a run that nobody was asked about, one that was approved, and one that has ended."""
    path = tmp_path / "worker.toml"
    path.write_text(TOML % ("ab" * 32))
    (tmp_path / "policy.toml").write_text("ask_first = true")
    journal = Journal(tmp_path / "state" / "worker.db", "alpha")
    rows = [
        RunRow(run="liver", version=3, digest=b"1" * 32),
        RunRow(run="heart", version=7, digest=b"2" * 32),
        RunRow(run="lung", version=9, digest=b"3" * 32, state=RunState.STOPPED),
    ]
    journal.commit([writes.NoteVersion(row=row, record=b"record") for row in rows])
    journal.commit([NoteAnswer(run="heart", approved=True)])
    journal.close()
    return path


def said(config: Path, *arguments: str) -> str:
    """What a command prints; an error of ours is raised."""
    done = CliRunner().invoke(site, [*arguments, "--config", str(config)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_runs_wait_until_they_are_approved_or_refused(config: Path) -> None:
    answers = Approvals(config.parent / "state" / "approvals")
    assert "liver: version 3" in said(config, "waiting")
    assert "liver: version 3" in CliRunner().invoke(site, ["waiting", "--kit", str(config.parent)]).output
    assert json.loads(said(config, "waiting", "--json")) == [{"run": "liver", "version": 3}]
    assert "liver: approved" in said(config, "approve", "liver")
    assert "no run is waiting" in said(config, "waiting")
    assert answers.take() == {"liver": True}
    assert "no run is waiting" in said(config, "waiting")
    said(config, "refuse", "heart")
    assert answers.take() == {"liver": True, "heart": False}


@pytest.mark.parametrize("run", ["livre", "lung", "../liver"])
def test_a_run_that_is_not_under_way_is_not_approved_by_a_slip(config: Path, run: str) -> None:
    with pytest.raises(ConfigError, match=r"it knows: heart, liver"):
        said(config, "approve", run)
    assert not (config.parent / "state" / "approvals").exists()


def test_a_site_that_does_not_ask_has_nothing_waiting(config: Path) -> None:
    (config.parent / "policy.toml").unlink()
    assert "does not ask first" in said(config, "waiting")


def test_cases_are_listed_and_shown(config: Path) -> None:
    assert "no case" in said(config, "cases")
    number = Incidents(config.parent / "state" / "cases").keep("training failed", "scan of Mueller")
    assert f"{number}  " in said(config, "cases")
    assert json.loads(said(config, "cases", "--json"))[0]["case"] == number
    assert "scan of Mueller" in said(config, "case", number)
    with pytest.raises(ConfigError, match="no case"):
        said(config, "case", "bcdfghj")


def test_where_no_worker_has_run_there_is_nothing_to_approve(config: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "worker.toml").write_text(config.read_text())
    with pytest.raises(StateError, match="has the worker been started here"):
        said(elsewhere / "worker.toml", "approve", "liver")


def test_the_commands_are_part_of_fledge() -> None:
    assert "approve" in CliRunner().invoke(app, ["site", "--help"]).output
