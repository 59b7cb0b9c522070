"""`fledge healthcheck`: red before acceptance, green after it, red again when it is long ago or the process is gone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.runtime.health import (
    HUB_LONGEST_S,
    SITE_LONGEST_S,
    Health,
    Holder,
    born,
    last_holder,
    trouble,
    write_health,
)
from fledge.federation import new_federation
from fledge.health import hub_health, site_health
from protocol.errors import StateError

NOW = time.time()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A federation's folder, with one site's kit and an aggregator that never ran."""
    new_federation(
        tmp_path / "f", name="clinics", sites=["alpha"], broker="memory:", store="memory:", trainer="mytask:trainer"
    )
    (tmp_path / "f" / "sites" / "alpha" / "state").mkdir()
    (tmp_path / "f" / "state" / "digits").mkdir(parents=True)
    return tmp_path / "f"


def test_a_site_is_red_until_the_hub_accepts_it(place: Path) -> None:
    kit = place / "sites" / "alpha"
    note = kit / "state" / "health.json"
    assert site_health(kit).text.startswith("health.json says nothing: the service has never started here")
    write_health(note, None, NOW)
    assert "has not been accepted since it started" in site_health(kit).text
    write_health(note, NOW + 1, NOW)
    assert site_health(kit).green
    assert site_health(kit).text == "accepted by the hub"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert [path.name for path in note.parent.iterdir()] == ["health.json"]


def test_the_command_says_it_with_its_exit_code(place: Path) -> None:
    kit = place / "sites" / "alpha"
    check = [sys.executable, "-m", "fledge.cli", "healthcheck"]

    def said(*arguments: str | Path) -> tuple[int, str]:
        done = subprocess.run([*check, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr

    code, text = said("--kit", kit)
    assert (code, len(text.splitlines())) == (1, 1)
    write_health(kit / "state" / "health.json", NOW + 1, NOW)
    assert said("--kit", kit) == (0, "accepted by the hub\n")
    write_health(place / "state" / "health.json", time.time(), NOW)
    assert said("--config", place / "aggregator.toml") == (0, "at work\n")
    assert said("--kit", kit, "--config", place / "aggregator.toml")[0] == 2


def test_a_hub_that_was_at_work_is_green_for_two_minutes(place: Path) -> None:
    note = place / "state" / "health.json"
    write_health(note, time.time() - HUB_LONGEST_S + 20, NOW - 1000)
    assert hub_health(place / "aggregator.toml").green
    write_health(note, time.time() - HUB_LONGEST_S - 20, NOW - 1000)
    health = hub_health(place / "aggregator.toml")
    assert not health.green
    assert "was last accepted 2 minutes ago" in health.text


def test_since_when_is_said(place: Path) -> None:
    note = place / "sites" / "alpha" / "state" / "health.json"
    write_health(note, None, 1_000_000_000.0)
    assert "since it started (2001-09-09 01:46 UTC)" in site_health(note.parents[1]).text
    write_health(note, 1_000_000_000.0, 999_999_999.0)
    assert "minutes ago (2001-09-09 01:46 UTC)" in site_health(note.parents[1]).text
    write_health(note, 1e300, 1.0)
    assert not site_health(note.parents[1]).green


def test_a_revoked_site_is_red_at_once_and_says_so(place: Path) -> None:
    kit = place / "sites" / "alpha"
    health = Health(kit / "state" / "health.json", SITE_LONGEST_S)
    health.begin()
    health.accepted()
    health.revoked(True)
    assert not site_health(kit).green
    assert site_health(kit).text.startswith("revoked: ")
    health.accepted()
    assert not site_health(kit).green
    health.revoked(False)
    assert site_health(kit).green


def test_a_store_that_fails_is_red_until_it_works_again(place: Path) -> None:
    kit = place / "sites" / "alpha"
    health = Health(kit / "state" / "health.json", SITE_LONGEST_S)
    health.begin()
    health.accepted()
    health.store(time.time() - 600)
    assert "the store has failed at everything asked of it for 10 minutes (" in site_health(kit).text
    assert not site_health(kit).green
    health.store(None)
    assert site_health(kit).green


def test_a_shell_sees_in_one_number_what_the_command_says(place: Path) -> None:
    kit = place / "sites" / "alpha"
    health = Health(kit / "state" / "health.json", SITE_LONGEST_S)

    def agreed() -> bool:
        shell = ["sh", "-c", '[ "$(cat state/healthy)" -gt "$(date +%s)" ]']
        green = subprocess.run(shell, cwd=kit, check=False).returncode == 0
        assert green == site_health(kit).green
        return green

    health.begin()
    assert not agreed()
    health.accepted()
    assert agreed()
    assert stat.S_IMODE((kit / "state" / "healthy").stat().st_mode) == 0o600
    health.stuck("nobody has offered a run")
    assert agreed()
    notes = (health.revoked, lambda on: health.let_in(not on), lambda on: health.store(time.time() if on else None))
    for note in notes:
        note(True)
        assert not agreed()
        note(False)
        assert agreed()
    health.ended()
    assert not agreed()
    health.accepted()  # by a thread that was late
    assert not agreed()


def test_the_number_runs_out_with_the_acceptance(tmp_path: Path) -> None:
    before = time.time()
    health = Health(tmp_path / "health.json", 120.0)
    health.accepted()
    assert before + 119 <= int((tmp_path / "healthy").read_text()) <= time.time() + 120


def test_whether_the_last_process_ended_in_order_is_known(tmp_path: Path) -> None:
    note = tmp_path / "health.json"
    assert last_holder(note) is None
    health = Health(note, HUB_LONGEST_S)
    health.begin()
    assert last_holder(note) == Holder(pid=os.getpid(), runs=True)
    health.ended()
    health.accepted()  # by a thread that was late
    assert last_holder(note) is None
    write_health(note, None, NOW)
    note.write_text(json.dumps({**json.loads(note.read_text()), "born": 1}))
    assert last_holder(note) == Holder(pid=os.getpid(), runs=False)


def test_what_cannot_be_read_is_red_with_a_reason(tmp_path: Path) -> None:
    assert "worker.toml" in site_health(tmp_path).text
    assert "aggregator.toml" in hub_health(tmp_path / "aggregator.toml").text


def test_a_process_that_has_ended_is_red(tmp_path: Path) -> None:
    note = tmp_path / "health.json"
    code = (
        "from broker.runtime.health import write_health; from pathlib import Path; "
        f"write_health(Path({str(note)!r}), 2.0, 1.0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert "has ended" in trouble(note, 3.0, 60.0)  # as long as nobody has waited for it, too
    process.wait()
    assert "has ended" in trouble(note, 3.0, 60.0)


def test_another_process_of_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    note = tmp_path / "health.json"
    write_health(note, 2.0, 1.0)
    table = json.loads(note.read_text())
    assert trouble(note, 3.0, 60.0) == ""
    note.write_text(json.dumps({**table, "born": table["born"] - 1}))
    assert "has ended" in trouble(note, 3.0, 60.0)
    del table["born"]
    note.write_text(json.dumps(table))
    assert trouble(note, 3.0, 60.0) == ""


def test_when_a_process_was_born_stays_the_same() -> None:
    assert born(os.getpid()) == born(os.getpid()) > 0
    assert born(2**31 - 1) == 0


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', '{"pid": -5, "started": 1}', "x" * 70_000]
)
def test_a_torn_note_is_red(tmp_path: Path, text: str) -> None:
    note = tmp_path / "health.json"
    note.write_text(text)
    assert "never started" in trouble(note, 3.0, 60.0)


def test_a_note_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="gone"):
        write_health(tmp_path / "gone" / "health.json", None, 1.0)
    (tmp_path / "health.json").mkdir()
    with pytest.raises(StateError):
        write_health(tmp_path / "health.json", None, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]
