from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from typer.testing import CliRunner

from fledge.cli.app import ctl as app
from fledge.ctl.session import Session
from fledge.shell.clara import CLARA
from fledge.shell.completion import ShellCompleter
from fledge.shell.lines import HISTORY, CommandLine, Typed, split
from fledge.shell.loop import Shell
from protocol.commands import COMMANDS
from protocol.errors import ConfigError, TransportError
from tests.support.operator_hub import Hub, kit
from tests.support.sittings import answer, cells, shell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator's kit."""
    return kit(tmp_path_factory.mktemp("operator") / "kit")


def test_help_lists_scope_command_and_description(folder: Path) -> None:
    shown = answer(folder, Hub(), "help")
    assert [line for line in shown if not line.startswith(("+", "|"))] == [
        "Client commands",
        "Server commands",
        "fledge's own commands, as in `fledge ctl`",
    ]
    rows = [cells(line) for line in shown if line.startswith("|")]
    assert rows.count(["SCOPE", "COMMAND", "DESCRIPTION"]) == 3
    listed = {row[1] for row in rows}
    assert {command.name for command in CLARA} <= listed
    assert {name.replace(".", " ") for name in COMMANDS.keys() - {"registry", "upload.urls", "download.urls"}} <= listed
    assert answer(folder, Hub(), "?") == shown


def test_help_with_a_command_shows_how_it_is_used(folder: Path) -> None:
    usage, about, here = answer(folder, Hub(), "? abort")
    assert usage == "usage: abort server|client [SITE ...]"
    assert about.startswith("End training")
    assert "`run abort`" in here
    assert any("Usage: site drain" in line for line in answer(folder, Hub(), "help site drain"))


def test_a_pipe_is_read_like_a_transcript(folder: Path) -> None:
    hub = Hub()
    piped = "check_status server\n\nrestart client north\nnorth\nabort server\nno\nbye\nsys_info client\n"
    code, shown = shell(folder, hub, piped=piped)
    assert code == 2
    assert [asked.command for asked in hub.asked] == ["status", "site.restart"]
    assert (
        "site.restart: End the worker in order; its supervisor starts it again. Type north to confirm: north" in shown
    )
    assert any(line.startswith("Error: run.abort was not sent") for line in shown)


def test_lines_of_the_command_line_are_confirmed_by_yes_alone(folder: Path) -> None:
    hub = Hub()
    code, shown = shell(folder, hub, "restart client north", "site restart north")
    assert code == 2
    assert hub.asked == []
    assert sum("give --yes" in line for line in shown) == 2
    assert shell(folder, hub, "restart client north", options=["--yes"])[0] == 0


def test_yes_to_one_command_is_not_yes_to_the_next(folder: Path) -> None:
    hub = Hub()
    assert shell(folder, hub, "site restart north --yes", "site restart south")[0] == 2
    assert [asked.targets for asked in hub.asked] == [("north",)]


def test_json_for_one_command_is_not_json_for_the_next(folder: Path) -> None:
    _, shown = shell(folder, Hub(), "site list --json", "site list")
    assert shown[1].startswith('{"answers"')
    assert shown[4].startswith("site ")


def test_output_goes_to_a_file_too_or_alone(folder: Path, tmp_path: Path) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    _, shown = shell(
        folder, Hub(), f"cat north worker.log >{both}", f"taskname >>{alone}", f"site list --json >>{alone}", "taskname"
    )
    assert both.read_text(encoding="utf-8") == "one\ntwo\tthree\n"
    assert "two\tthree" in shown
    first, second = alone.read_text(encoding="utf-8").splitlines()
    assert first == "clinics"
    assert second.startswith('{"answers"')
    assert shown.count("clinics") == 1
    assert shell(folder, Hub(), f"taskname >{tmp_path / 'no' / 'where'}")[0] == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("ls north", CommandLine(("ls", "north"))),
        ("ls north >file", CommandLine(("ls", "north"), "file")),
        ("ls north > file", CommandLine(("ls", "north"), "file")),
        ("ls north >>file", CommandLine(("ls", "north"), "file", alone=True)),
        ("grep north 'a > b' log", CommandLine(("grep", "north", "a > b", "log"))),
        ("grep north log 'a > b'", CommandLine(("grep", "north", "log", "a > b"))),
        ("grep north '>x' log", CommandLine(("grep", "north", ">x", "log"))),
        ("x>y", CommandLine(("x>y",))),
    ],
)
def test_a_line_is_taken_apart_as_in_a_shell(text: str, line: CommandLine) -> None:
    assert split(text) == line


def test_what_goes_wrong_ends_the_line_and_not_the_sitting(folder: Path) -> None:
    def away(arguments: Mapping[str, Any], sender: str) -> Any:
        raise TransportError("the broker is away; try again")

    code, shown = shell(folder, Hub({"status": away}), "status", "check_status server", "taskname")
    assert code == 1
    assert shown.count("Error: the broker is away; try again") == 2
    assert "clinics" in shown


def test_ctrl_c_stops_a_line_and_not_the_sitting(folder: Path) -> None:
    def pressed(arguments: Mapping[str, Any], sender: str) -> Any:
        raise KeyboardInterrupt

    code, shown = shell(folder, Hub({"status": pressed, "run.list": pressed}), "check_status server", "run list", "bye")
    assert code == 130
    assert "stopped" in shown


def test_a_timeout_counts_for_what_follows(folder: Path) -> None:
    hub = Hub()
    _, shown = shell(folder, hub, "status", "set_timeout 2.5", "status", "info")
    assert [asked.timeout for asked in hub.asked] == [10.0, 2.5]
    assert "Timeout: 2.5 s" in shown
    assert hub.opened == hub.closed == 1


def test_a_person_types_confirms_and_is_remembered_privately(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, hub = kit(tmp_path / "kit"), Hub()
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        session = Session(folder, opener=hub.open)
        sitting = Shell(session)
        keys.send_text("site restart north\rnorth\rcheck_status server\rhalf a li\x03\rtaskname\r\x04")
        sitting.serve(Typed(folder, ShellCompleter(sitting)))
        session.close()
    assert [asked.command for asked in hub.asked] == ["site.restart", "status"]
    assert "clinics" in capsys.readouterr().out
    history = folder / HISTORY
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+site restart north" in history.read_text(encoding="utf-8")
    assert "+north\n" not in history.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("check_s", ["check_status"]),
        ("check_status ", ["server", "client"]),
        ("check_status client n", ["north"]),
        ("site d", ["doctor", "drain"]),
        ("site drain ", ["north", "south"]),
        ("ls ", ["north", "south"]),
        ("run pa", ["pause"]),
        ("run pause ", ["chest", "run-7"]),
        ("abort_job c", ["chest"]),
        ("help site q", ["quarantine"]),
        ("? set_t", ["set_timeout"]),
        ("upd", ["update"]),
    ],
)
def test_completion_knows_commands_sites_and_runs(folder: Path, text: str, expected: list[str]) -> None:
    hub = Hub()
    sitting = Shell(Session(folder, opener=hub.open))
    sitting.obey("list_jobs")
    asked = len(hub.asked)
    found = [each.text for each in ShellCompleter(sitting).get_completions(Document(text), CompleteEvent())]
    assert found == expected
    assert len(hub.asked) == asked


def test_a_kit_without_a_folder_for_the_history_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="history"):
        Typed(tmp_path / "nowhere", ShellCompleter(Shell(Session(tmp_path))))


def test_a_stranger_is_told_that_the_registry_does_not_know_them(folder: Path) -> None:
    hub = Hub(name="mallory")
    done = CliRunner().invoke(app, ["--kit", str(folder), "shell", "-c", "show_info"], obj=hub.open)
    assert "organisation: not a member (any more)" in done.stdout
