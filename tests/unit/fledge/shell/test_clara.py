from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fledge.ctl.session import Session
from fledge.shell.clara import CLARA, find
from fledge.shell.loop import Shell
from tests.support.operator_hub import Hub, kit, refused, silent
from tests.support.sittings import answer, cells, shell

COMMANDS = [
    *("bye", "help", "lpwd", "info", "upload_folder", "download_folder", "download_text", "download_binary"),
    *("check_status", "set_run_number", "delete_run_number", "deploy", "start", "start_mgpu", "abort", "abort_task"),
    *("restart", "shutdown", "remove_client", "set_timeout", "sys_info", "pwd", "env", "ls", "cat", "head", "tail"),
    *("grep", "validate", "taskname", "show_info", "show_users", "show_sites", "show_rules", "show_rights"),
    *("show_config", "eval_right", "eval_rule", "show_stats", "show_errors", "reset_errors", "submit_job"),
    *("list_jobs", "abort_job", "clone_job", "download_job", "delete_job"),
]
"""Every command of Clara's console, and of the versions that followed it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator's kit."""
    return kit(tmp_path_factory.mktemp("operator") / "kit")


# ---- Clara's commands


def test_every_command_of_claras_console_is_there_under_its_name() -> None:
    names = [command.name for command in CLARA]
    assert sorted([*names, "help"]) == sorted(COMMANDS)
    assert all(command.summary.endswith(".") and command.ours for command in CLARA)


ORDERED: Sequence[tuple[str, str, Mapping[str, Any], tuple[str, ...]]] = [
    ("check_status server", "status", {}, ()),
    ("check_status client", "status", {}, ()),
    ("abort server", "run.abort", {}, ()),
    ("abort client north", "run.leave", {"run": "run-7"}, ("north",)),
    ("abort client", "run.leave", {"run": "run-7"}, ("north", "south")),
    ("abort_task north", "run.leave", {"run": "run-7"}, ("north",)),
    ("abort_task client north", "run.leave", {"run": "run-7"}, ("north",)),
    ("start server", "run.start", {}, ()),
    ("start client", "run.join", {"run": "run-7"}, ("north", "south")),
    ("start client south", "run.join", {"run": "run-7"}, ("south",)),
    ("clone_job chest", "run.clone", {"run": "chest", "as": "chest-2"}, ()),
    ("clone_job chest other", "run.clone", {"run": "chest", "as": "other"}, ()),
    ("delete_job chest", "run.delete", {"run": "chest"}, ()),
    ("restart client south", "site.restart", {}, ("south",)),
    ("shutdown client north south", "site.shutdown", {}, ("north", "south")),
    ("shutdown server", "run.stop", {}, ()),
    ("shutdown all", "run.stop", {}, ()),
    ("remove_client north", "site.quarantine", {"site": "north"}, ()),
    ("sys_info client", "sys.info", {}, ("north", "south")),
    ("pwd north", "file.pwd", {}, ("north",)),
    ("env client north", "file.env", {}, ("north",)),
    ("ls north", "file.ls", {"path": ".", "options": ""}, ("north",)),
    ("ls north -l -t runs", "file.ls", {"path": "runs", "options": "lt"}, ("north",)),
    ("cat north -nT worker.log", "file.cat", {"path": "worker.log", "options": "nT"}, ("north",)),
    ("head north worker.log", "file.head", {"path": "worker.log", "lines": 10}, ("north",)),
    ("tail north -n 3 worker.log", "file.tail", {"path": "worker.log", "lines": 3}, ("north",)),
    ("tail north -c 99 worker.log", "file.tail", {"path": "worker.log", "lines": 10, "bytes": 99}, ("north",)),
    ("tail north -n3 worker.log", "file.tail", {"path": "worker.log", "lines": 3}, ("north",)),
    (
        "grep north -i -n 'no such' worker.log",
        "file.grep",
        {"pattern": "no such", "path": "worker.log", "options": "in"},
        ("north",),
    ),
    ("grep north -- -x worker.log", "file.grep", {"pattern": "-x", "path": "worker.log", "options": ""}, ("north",)),
    ("validate all", "metrics", {}, ()),
    ("show_stats server", "metrics", {}, ()),
    ("show_stats client north", "status", {}, ()),
    ("show_errors server", "dead.list", {}, ()),
    ("show_errors client north", "logs", {"lines": 50, "grep": "error"}, ("north",)),
    ("reset_errors server", "dead.purge", {}, ()),
    ("list_jobs -n run -d", "run.list", {}, ()),
    ("abort_job chest", "run.abort", {"run": "chest"}, ()),
    ("set_run_number 7", "run.list", {}, ()),
    ("shell.ls north", "file.ls", {"path": ".", "options": ""}, ("north",)),
    ("run pause", "run.pause", {}, ()),
    ("site show north", "site.show", {"site": "north", "limit": 20}, ()),
]


@pytest.mark.parametrize(("line", "command", "arguments", "targets"), ORDERED, ids=[row[0] for row in ORDERED])
def test_a_line_becomes_an_order(
    folder: Path, line: str, command: str, arguments: Mapping[str, Any], targets: tuple[str, ...]
) -> None:
    hub = Hub()
    assert answer(folder, hub, line)
    assert (hub.last.command, dict(hub.last.arguments), hub.last.targets) == (command, dict(arguments), targets)


def test_commands_that_the_table_points_to_exist(folder: Path) -> None:
    text = " ".join(command.ours for command in CLARA)
    known = Shell(Session(folder)).commands
    for quoted in re.findall(r"`([^`]+)`", text):
        first, *rest = quoted.split()
        own = first in known and (not rest or rest[0] in known[first] or "" in known[first])
        assert own or find(first) or first in ("fledge", "run-N", "--timeout"), quoted


@pytest.mark.parametrize(
    "line",
    [
        "check_status",
        "check_status nonsense",
        "check_status server north",
        "abort all",
        "ls",
        "ls north -x",
        "cat north",
        "cat north one two",
        "head north -n worker.log",
        "head north -c x worker.log",
        "grep north pattern",
        "set_timeout",
        "set_timeout soon",
        "set_timeout 0",
        "set_timeout nan",
        "set_run_number 0",
        "set_run_number seven",
        "remove_client",
        "validate",
        "validate north south",
        "show_users now",
        "eval_right bob",
        "eval_right nobody view_self north",
        "eval_right bob fly north",
        "eval_right bob view_self nowhere",
        "eval_rule nowhere allow_byoc",
        "eval_rule north fly",
        "check_status client nowhere",
        "list_jobs -n",
        "sys.ls north",
        "upload_folder",
        "upload_folder nowhere",
        "deploy folder",
        "deploy folder client",
        "delete_run_number x",
        "start",
        "start server now",
        "start_mgpu client",
        "download_binary ../model",
        "download_text a/b",
        "download_folder .",
        "submit_job nowhere",
        "nonsense",
        "shell",
        "? nonsense",
        "ls 'north",
    ],
)
def test_a_line_that_is_wrong_says_how_it_is_used(folder: Path, line: str) -> None:
    shown = answer(folder, Hub(), line, code=2)
    assert len(shown) == 1
    assert shown[0].startswith("Error: ")


def test_the_status_of_the_server_has_claras_shape(folder: Path) -> None:
    run, state, version, clients, rule, header, _, north, south, west, _ = answer(folder, Hub(), "check_status server")
    assert (run, state) == ("FL run number: 7", "FL server status: training running")
    assert (version, clients) == ("Current version: 12", "Registered clients: 3")
    assert set(rule) == set("+-")
    assert cells(header)[:4] == ["CLIENT NAME", "RUN", "STATUS", "LAST SEEN"]
    assert cells(north)[:4] == ["north", "run-7", "training", "3 s ago"]
    assert cells(south)[-1] == "quarantined"
    assert cells(west)[2:4] == ["No Reply", "never"]


def test_a_run_without_a_number_is_shown_by_its_name(folder: Path) -> None:
    assert answer(folder, Hub({"status": {"run": "chest", "site": ()}}), "check_status server")[0] == "FL run: chest"
    nothing = answer(folder, Hub({"status": {"site": ()}}), "check_status server")
    assert nothing[0] == "FL run: has not been set"


def test_the_status_of_clients_is_that_of_the_ones_named(folder: Path) -> None:
    *_, south, _ = answer(folder, Hub(), "check_status client south")
    assert cells(south)[0] == "south"


def test_machines_are_shown_in_claras_table(folder: Path) -> None:
    shown = answer(folder, Hub({"sys.info@south": silent("south")}), "sys_info client north south", code=4)
    assert shown[0] == "instance:north"
    assert cells(shown[2]) == ["METRICS", "VALUE"]
    assert cells(shown[4]) == ["memory_total", "16 GiB"]
    assert shown[-1].startswith("instance:south : Error: site south has not been seen for 3 hours")


def test_files_are_shown_as_they_are(folder: Path, tmp_path: Path) -> None:
    assert answer(folder, Hub(), "cat north worker.log") == ["one", "two\tthree"]
    long = Hub({"file.cat": {"lines": ("x" * 1000,)}})
    assert answer(folder, long, "cat north worker.log") == ["x" * 1000]


def test_a_number_chooses_the_run_of_what_follows(folder: Path) -> None:
    hub = Hub({"run.list": {"run": ("run-7", "run-8"), "state": ("running",) * 2}})
    lines = ("set_run_number 8", "abort server", "set_run_number 9", "start server")
    code, shown = shell(folder, hub, *lines, options=["--yes"])
    assert code == 0
    assert [dict(asked.arguments) for asked in hub.asked] == [{}, {"run": "run-8"}, {}, {"run": "run-9"}]
    assert "run number already exist. Set the FL run number to 8." in shown
    assert any(line.startswith("Create a new run number: 9.") for line in shown)


def test_which_run_is_meant_has_to_be_said_where_several_go_on(folder: Path) -> None:
    hub = Hub({"run.list": {"run": ("run-7", "run-8"), "state": ("running",) * 2}})
    (line,) = answer(folder, hub, "start client", code=2)
    assert line == "Error: which run? run-7, run-8; name one"


def test_a_run_that_goes_on_is_not_deleted(folder: Path) -> None:
    for line in ("delete_run_number 7", "delete_job run-7"):
        hub = Hub()
        (shown,) = answer(folder, hub, line, code=1)
        assert shown == "Error: run-7 is running; `run abort run-7` ends it, then it can be deleted."
        assert [asked.command for asked in hub.asked] == ["run.list"]


def test_a_run_is_deleted_at_clients_and_server_once_its_name_was_typed(folder: Path) -> None:
    hub = Hub({"run.list": {"run": ("run-3",), "state": ("aborted",)}})
    code, shown = shell(folder, hub, piped="delete_run_number 3\nrun-3\n")
    assert code == 0
    assert [asked.command for asked in hub.asked] == ["run.list", "site.list", "run.withdraw", "run.delete"]
    assert "The run number 3 is deleted." in shown


def test_shutting_the_server_down_twice_is_no_failure(folder: Path) -> None:
    hub = Hub({"run.stop": refused("run_aborted", "the run has been aborted")})
    first, second = answer(folder, hub, "shutdown server")
    assert first == "the run has been aborted"
    assert "goes on answering" in second
    assert answer(folder, Hub({"run.stop": refused()}), "shutdown server", code=1)[0].startswith(
        "Error: Authorization Error: alice"
    )


@pytest.mark.parametrize(
    "line", ["restart server", "sys_info server", "ls server", "reset_errors client", "start_mgpu client 2 north"]
)
def test_what_cannot_be_done_from_afar_says_where_it_can(folder: Path, line: str) -> None:
    hub = Hub()
    (shown,) = answer(folder, hub, line, code=1)
    assert shown.startswith("Error: ")
    assert "`" in shown
    assert hub.asked == []


def test_results_are_shown_as_json_for_all_sites_or_one(folder: Path) -> None:
    import json

    everything = json.loads("\n".join(answer(folder, Hub(), "validate all")))
    assert everything == {
        "north": {"12": {"accuracy": 0.75}, "11": {"accuracy": 0.25}},
        "south": {"12": {"accuracy": 0.5}},
    }
    assert json.loads("\n".join(answer(folder, Hub(), "validate north 11"))) == {"north": {"11": {"accuracy": 0.25}}}


def test_policy_is_answered_from_the_signed_registry_alone(folder: Path) -> None:
    hub = Hub()
    users = [cells(row) for row in answer(folder, hub, "show_users")[3:-1]]
    assert users == [["alice", "hub", "lead_it"], ["bob", "hospital", "site_researcher, site_it"]]
    sites = [cells(row) for row in answer(folder, hub, "show_sites")[3:-1]]
    assert sites == [["server", "hub"], ["north", "hospital"], ["south", "clinic"]]
    rights = [cells(row)[1] for row in answer(folder, hub, "eval_right bob view_self north south server")[3:-1]]
    assert rights == ["yes", "no", "no"]
    assert cells(answer(folder, hub, "eval_right alice operate_all south")[3])[1] == "yes"
    assert cells(answer(folder, hub, "eval_rule north allow_byoc")[3])[1] == "yes"
    assert cells(answer(folder, hub, "eval_rule server allow_byoc")[3])[1] == "no"
    info = answer(folder, hub, "show_info")
    assert info[:3] == ["user: alice", "organisation: hub", "roles: lead_it"]
    assert info[3].endswith(", encrypted with xchacha20")
    assert ["general", "site_it", "operate_self", "yes"] in map(cells, answer(folder, hub, "show_config"))
    assert ["upload", "yes", "-"] in map(cells, answer(folder, hub, "show_rights"))
    assert ["allow_byoc", "no"] in map(cells, answer(folder, hub, "show_rules"))
    assert answer(folder, hub, "taskname") == ["clinics"]
    assert hub.asked == []


def test_a_registry_that_nobody_signed_decides_nothing(tmp_path: Path) -> None:
    folder = kit(tmp_path / "kit")
    raw = bytearray((folder / "registry.bin").read_bytes())
    raw[-1] ^= 1
    (folder / "registry.bin").write_bytes(raw)
    (line,) = answer(folder, Hub(), "show_users", code=1)
    assert line.startswith("Error: ")
