from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fledge.cli.app import app as fledge_app
from fledge.cli.app import ctl as app
from fledge.cli.app import exit_code
from fledge.ctl import session as sessions
from fledge.operator.console import Answer
from protocol.commands import COMMANDS
from protocol.errors import FledgeError
from protocol.limits import BODY
from tests.support.operator_hub import STATUS, Hub, kit, refused, silent

BY_THEMSELVES = {"registry", "upload.urls", "download.urls"}
"""Orders that a console gives by itself."""
WITH_FILES = {"registry.put", "run.create", "run.deploy", "model.export", "update.receipt"}
"""Commands that read a file or check what came, which have a test of their own."""
ORDERED: Sequence[tuple[str, str, Mapping[str, Any], tuple[str, ...]]] = [
    ("status", "status", {}, ()),
    ("site list", "site.list", {}, ()),
    ("site show", "site.show", {"limit": 20}, ()),
    ("site show north", "site.show", {"site": "north", "limit": 20}, ()),
    ("site show north --limit 3", "site.show", {"site": "north", "limit": 3}, ()),
    ("site quarantine north --yes", "site.quarantine", {"site": "north"}, ()),
    ("site readmit north", "site.readmit", {"site": "north"}, ()),
    ("site revoke north --yes", "site.revoke", {"site": "north"}, ()),
    ("site drain north south north", "site.drain", {}, ("north", "south")),
    ("site undrain --site north --site south", "site.undrain", {}, ("north", "south")),
    ("site restart --all --yes", "site.restart", {}, ("north", "south")),
    ("site shutdown north --yes", "site.shutdown", {}, ("north",)),
    ("site doctor --all", "site.doctor", {}, ("north", "south")),
    ("run offer chest", "run.offer", {"run": "chest"}, ()),
    ("run start chest", "run.start", {"run": "chest"}, ()),
    ("run start chest --until 300", "run.start", {"run": "chest", "until": 300}, ()),
    ("run start chest north south", "run.join", {"run": "chest"}, ("north", "south")),
    ("run join chest --all", "run.join", {"run": "chest"}, ("north", "south")),
    ("run leave chest north --yes", "run.leave", {"run": "chest"}, ("north",)),
    ("run abort chest --site north --yes", "run.leave", {"run": "chest"}, ("north",)),
    ("run withdraw chest --all --yes", "run.withdraw", {"run": "chest"}, ("north", "south")),
    ("run clone chest chest-2", "run.clone", {"run": "chest", "as": "chest-2"}, ()),
    ("run delete chest --yes", "run.delete", {"run": "chest"}, ()),
    ("run list", "run.list", {}, ()),
    ("run show", "run.show", {}, ()),
    ("run show chest", "run.show", {"run": "chest"}, ()),
    ("run pause", "run.pause", {}, ()),
    ("run resume chest", "run.resume", {"run": "chest"}, ()),
    ("run stop chest --yes", "run.stop", {"run": "chest"}, ()),
    ("run abort --yes", "run.abort", {}, ()),
    ("model list", "model.list", {}, ()),
    ("model list chest", "model.list", {"run": "chest"}, ()),
    ("model show", "model.show", {}, ()),
    ("model show chest", "model.show", {"run": "chest"}, ()),
    ("model show chest 12", "model.show", {"version": 12, "run": "chest"}, ()),
    ("model show 12 --run chest", "model.show", {"version": 12, "run": "chest"}, ()),
    ("status chest", "status", {"run": "chest"}, ()),
    ("update list chest", "update.list", {"run": "chest", "limit": 50}, ()),
    ("update list --run chest", "update.list", {"run": "chest", "limit": 50}, ()),
    (
        "model publish chest 3 --name lung --label ct --label lung --application lungs --raw",
        "model.publish",
        {
            "run": "chest",
            "version": 3,
            "raw": True,
            "name": "lung",
            "labels": ("ct", "lung"),
            "application": "lungs",
            "description": "",
            "framework": "",
            "precision": "float32",
            "licence": "",
        },
        (),
    ),
    ("model promote lung production", "model.promote", {"name": "lung", "channel": "production"}, ()),
    ("model rollback production --yes", "model.rollback", {"channel": "production"}, ()),
    ("model search lungs --label ct", "model.search", {"text": "lungs", "label": "ct"}, ()),
    ("model search --channel production", "model.search", {"channel": "production"}, ()),
    ("update list", "update.list", {"limit": 50}, ()),
    (
        "update list --site north --state merged --limit 5",
        "update.list",
        {"site": "north", "state": "merged", "limit": 5},
        (),
    ),
    ("update show ab12", "update.show", {"update": "ab12"}, ()),
    ("metrics", "metrics", {}, ()),
    ("dead list", "dead.list", {}, ()),
    ("dead show 4", "dead.show", {"id": 4}, ()),
    ("dead replay", "dead.replay", {}, ()),
    ("dead replay 4 5", "dead.replay", {"id": (4, 5)}, ()),
    ("dead purge 4 --yes", "dead.purge", {"id": 4}, ()),
    ("dead purge --yes", "dead.purge", {}, ()),
    ("queue list", "queue.list", {}, ()),
    ("audit log --limit 9 --since 3", "audit.log", {"limit": 9, "since": 3}, ()),
    ("audit log --kind command", "audit.log", {"limit": 50, "kind": "command"}, ()),
    ("logs north -n 9 --grep error", "logs", {"lines": 9, "grep": "error"}, ("north",)),
    ("stats north", "stats", {}, ("north",)),
    ("sys info north", "sys.info", {}, ("north",)),
    ("file pwd north", "file.pwd", {}, ("north",)),
    ("file env north", "file.env", {}, ("north",)),
    ("file ls north", "file.ls", {"path": ".", "options": ""}, ("north",)),
    ("file ls north -lt runs", "file.ls", {"path": "runs", "options": "lt"}, ("north",)),
    ("file cat north -n worker.log", "file.cat", {"path": "worker.log", "options": "n"}, ("north",)),
    ("file head north worker.log", "file.head", {"path": "worker.log", "lines": 10}, ("north",)),
    ("file tail north worker.log -n 3", "file.tail", {"path": "worker.log", "lines": 3}, ("north",)),
    ("file head north worker.log -c 9", "file.head", {"path": "worker.log", "lines": 10, "bytes": 9}, ("north",)),
    (
        "file grep north -i error worker.log",
        "file.grep",
        {"pattern": "error", "path": "worker.log", "options": "i"},
        ("north",),
    ),
]


def ctl(hub: Hub, line: str, typed: str | None = None) -> tuple[int, str]:
    """Exit code and standard output of a line, as the program itself would end."""
    done = CliRunner().invoke(app, line.split(), obj=hub.open, input=typed)
    if isinstance(done.exception, FledgeError):
        return exit_code(done.exception), str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


@pytest.mark.parametrize(("line", "command", "arguments", "targets"), ORDERED, ids=[row[0] for row in ORDERED])
def test_a_command_gives_its_order(
    line: str, command: str, arguments: Mapping[str, Any], targets: tuple[str, ...]
) -> None:
    hub = Hub()
    code, shown = ctl(hub, line)
    assert code == 0, shown
    assert (hub.last.command, dict(hub.last.arguments), hub.last.targets) == (command, dict(arguments), targets)
    assert hub.opened == hub.closed == 1


@pytest.mark.parametrize(("line", "command"), [row[:2] for row in ORDERED], ids=[row[0] for row in ORDERED])
def test_every_command_answers_in_json(line: str, command: str) -> None:
    code, shown = ctl(Hub(), f"{line} --json")
    assert code == 0
    (text,) = shown.splitlines()
    answers = json.loads(text)["answers"]
    assert answers
    for answer in answers:
        assert answer.keys() == {"sender", "ok", "reason", "text", "values"}


def test_every_order_has_a_command_of_its_name() -> None:
    assert {row[1] for row in ORDERED} == COMMANDS.keys() - BY_THEMSELVES - WITH_FILES - {"model.card"}
    top: Any = get_command(app)
    for name in COMMANDS.keys() - BY_THEMSELVES:
        found = top
        for word in name.split("."):
            found = found.commands[word]
        assert found.help
        takes = {option for each in found.params for option in each.opts}
        assert "--json" in takes
        assert ("--yes" in takes) == (COMMANDS[name].dangerous or name == "run.deploy"), name


def test_a_run_is_named_by_its_place_in_every_command() -> None:
    def commands(node: Any, *above: str) -> Iterator[tuple[str, Any]]:
        for name, each in getattr(node, "commands", {}).items():
            yield from commands(each, *above, name)
        if not hasattr(node, "commands"):
            yield " ".join(above), node

    named = []
    for name, found in commands(get_command(fledge_app)):
        places = [each.metavar or each.name.upper() for each in found.params if each.param_type_name == "argument"]
        options = {option for each in found.params if not getattr(each, "hidden", False) for option in each.opts}
        assert "--run" not in options, name
        assert "RUN" not in places[1:], name
        named += [name] if "RUN" in places else []
    assert {"ctl status", "ctl model show", "ctl model list", "ctl update list", "infer", "replay", "export"} <= {
        *named
    }


def test_a_version_without_its_run_is_told_where_it_belongs() -> None:
    hub = Hub({"model.show": refused("not_possible", "there is no such run")})
    code, shown = ctl(hub, "model show 12")
    assert (code, "`model show RUN 12`" in shown) == (1, True)
    assert ctl(Hub(), "model show chest --run lung")[0] == 2


def test_a_registry_travels_in_lines_that_fit_into_an_order(tmp_path: Path) -> None:
    record, hub = bytes(range(256)) * 16, Hub()
    (tmp_path / "registry.bin").write_bytes(record)
    assert ctl(hub, f"registry put {tmp_path / 'registry.bin'}")[0] == 0
    lines = hub.last.arguments["record"]
    assert max(map(len, lines)) <= 1024
    assert base64.b64decode("".join(lines)) == record
    (tmp_path / "registry.bin").write_bytes(bytes(BODY))
    assert ctl(hub, f"registry put {tmp_path / 'registry.bin'}")[0] == 2
    assert ctl(hub, f"registry put {tmp_path / 'nowhere'}")[0] == 2
    assert len(hub.asked) == 1


def test_no_measurements_are_explained() -> None:
    hub = Hub({"metrics": {"version": (), "site": (), "metric": (), "value": (), "examples": ()}})
    assert "evaluate = false" in ctl(hub, "metrics")[1]


def test_the_status_fits_a_narrow_screen_and_json_holds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"certificate": (300.5, -1.0, -1.0), "trouble": ("", "no_disk 4", "")}
    hub = Hub({"status": {**STATUS, **wide}})
    assert "certificate" in ctl(hub, "status")[1]
    monkeypatch.setattr(sessions, "WIDE", 80)
    _, shown = ctl(hub, "status")
    assert max(map(len, shown.splitlines())) <= 80
    assert "staleness" not in shown
    assert all(word in shown for word in ("site", "doing", "held", "no_disk 4"))
    assert "staleness" in json.loads(ctl(hub, "status --json")[1])["answers"][0]["values"]


def test_a_refusal_ends_with_1_and_says_who_refused_what() -> None:
    code, shown = ctl(Hub({"run.pause": refused()}), "run pause")
    assert code == 1
    assert shown == "aggregator: Authorization Error: alice is not authorized (not_authorized)\n"


def test_a_site_that_is_away_ends_with_4_and_says_that_the_command_is_queued() -> None:
    hub = Hub({"sys.info@south": silent("south")})
    code, shown = ctl(hub, "sys info south")
    assert code == 4
    assert "has not been seen for 3 hours; the command is queued and will run when it returns" in shown
    both, shown = ctl(hub, "sys info --all")
    assert both == 4
    assert "gpu_count" in shown


def test_a_refusal_weighs_more_than_a_silence() -> None:
    hub = Hub({"sys.info@south": silent("south"), "sys.info@north": refused()})
    assert ctl(hub, "sys info --all")[0] == 1


def test_the_wrong_words_end_with_2() -> None:
    for line in ("site nonsense", "model show chest twelve", "logs --lines 0 north", "status --nonsense"):
        assert ctl(Hub(), line)[0] == 2, line


def test_without_a_kit_the_way_to_name_one_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--kit", str(tmp_path), "status"])
    assert isinstance(done.exception, FledgeError)
    assert exit_code(done.exception) == 2
    assert "--kit" in str(done.exception)


def test_what_is_said_beside_a_file_is_not_among_its_lines() -> None:
    hub = Hub({"file.cat": Answer(sender="north", ok=True, reason="ok", text="1 line", values={"lines": ("one",)})})
    done = CliRunner().invoke(app, ["file", "cat", "north", "worker.log"], obj=hub.open)
    assert (done.stdout, done.stderr) == ("one\n", "(1 line)\n")


@pytest.mark.parametrize("line", ["site drain", "logs", "site drain north --all"])
def test_sites_are_named_or_all_of_them_meant(line: str) -> None:
    hub = Hub()
    code, shown = ctl(hub, line)
    assert code == 2
    assert "--all" in shown
    assert hub.asked == []


def test_all_sites_cannot_be_meant_when_nobody_says_who_they_are() -> None:
    code, shown = ctl(Hub({"site.list": refused()}), "site drain --all")
    assert code == 2
    assert "name them one by one" in shown


DANGEROUS = [
    ("site restart north", "north"),
    ("site restart north south", "2 sites"),
    ("site restart --all", "2 sites"),
    ("site shutdown south", "south"),
    ("site revoke north", "north"),
    ("site quarantine north", "north"),
    ("run abort chest", "chest"),
    ("run leave chest north south", "2 sites"),
    ("run withdraw chest north", "north"),
    ("model rollback production", "production"),
    ("run stop", "aggregator"),
    ("dead purge 4", "4"),
    ("dead purge", "aggregator"),
]


@pytest.mark.parametrize(("line", "word"), DANGEROUS, ids=[row[0] for row in DANGEROUS])
def test_a_dangerous_order_is_sent_once_its_target_was_typed_again(line: str, word: str) -> None:
    order = ".".join(line.split()[:2])
    for typed in (word, f" {word} "):
        hub = Hub()
        assert ctl(hub, line, f"{typed}\n")[0] == 0
        assert hub.last.command == order
    for typed in ("", "\n", "yes\n", f"{word}x\n"):
        hub = Hub()
        code, shown = ctl(hub, line, typed)
        assert code == 2
        assert f"{order} was not sent" in shown
        assert order not in [asked.command for asked in hub.asked]


def test_the_question_does_not_spoil_what_a_program_reads() -> None:
    code, shown = ctl(Hub(), "site restart north --json", "north\n")
    assert code == 0
    assert json.loads(shown)["answers"][0]["sender"] == "north"


def test_answers_are_waited_for_as_long_as_asked() -> None:
    hub = Hub()
    ctl(hub, "status")
    ctl(hub, "--timeout 2.5 status")
    assert [asked.timeout for asked in hub.asked] == [10.0, 2.5]


class Times:
    """Answers with one thing after the other; then Ctrl-C is pressed."""

    def __init__(self, *answers: Any) -> None:
        self._answers = iter(answers)

    def __call__(self, arguments: Mapping[str, Any], sender: str) -> Any:
        try:
            return next(self._answers)
        except StopIteration:
            raise KeyboardInterrupt from None


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Following asks again without delay."""
    monkeypatch.setattr(sessions, "FOLLOW_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_following_a_log_asks_for_what_came_since_and_outlives_a_silence() -> None:
    says = Times(
        {"lines": ("one",), "next": 5}, {"lines": (), "next": 5}, silent("north"), {"lines": ("two",), "next": 6}
    )
    hub = Hub({"logs": says})
    code, shown = ctl(hub, "logs north --follow")
    assert code == 0
    lines = shown.splitlines()
    assert [line for line in lines if not line.startswith("north: ")] == ["one", "two"]
    assert len(lines) == 3
    assert [asked.arguments.get("since") for asked in hub.asked] == [None, 5, 5, 5, 6]


@pytest.mark.usefixtures("at_once")
def test_following_ends_when_it_is_refused() -> None:
    for line in ("logs north -f", "metrics -f"):
        hub = Hub({"logs": refused(), "metrics": refused()})
        assert ctl(hub, line)[0] == 1
        assert len(hub.asked) == 1
    assert ctl(Hub(), "logs --all --follow")[0] == 2


@pytest.mark.usefixtures("at_once")
def test_following_metrics_shows_every_row_once() -> None:
    def table(*rows: tuple[Any, ...]) -> Mapping[str, Any]:
        columns = zip(*rows, strict=True)
        return dict(zip(("version", "site", "metric", "value", "examples"), columns, strict=True))

    first, second, third = ((version, "north", "accuracy", version / 8, 9) for version in (1, 2, 3))
    hub = Hub({"metrics": Times(table(first), table(first), table(first, second), table(second, third))})
    code, shown = ctl(hub, "metrics --follow --json")
    assert code == 0
    told = [json.loads(line)["answers"][0]["values"]["version"] for line in shown.splitlines()]
    assert told == [[1], [2], [3]]
    assert [asked.arguments.get("since") for asked in hub.asked] == [None, 1, 1, 2, 3]


def test_help_tells_what_there_is_and_the_exit_codes() -> None:
    done = CliRunner().invoke(fledge_app, ["ctl", "--help"])
    assert done.exit_code == 0
    for name in ("status", "site", "run", "model", "shell", "Exit codes"):
        assert name in done.stdout


def test_nothing_is_loaded_before_a_command_runs() -> None:
    code = "import sys, fledge.ctl.app; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not loaded & {
        "rich",
        "prompt_toolkit",
        "pydantic",
        "sqlalchemy",
        "structlog",
        "nacl",
        "broker",
        "aggregator",
    }


def test_completion_is_offered_and_knows_the_sites_of_the_kit(tmp_path: Path) -> None:
    shown = CliRunner().invoke(fledge_app, ["--help"]).stdout
    assert "--install-completion" in shown
    folder = kit(tmp_path / "kit")
    environment = {
        "_FLEDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"fledge ctl --kit {folder} site show n",
        "COMP_CWORD": "6",
    }
    done = CliRunner().invoke(fledge_app, [], prog_name="fledge", env=environment)
    assert done.stdout.split() == ["north"]


def test_figures_that_are_none_are_not_shown() -> None:
    hub = Hub({"stats@south": {"figure": ("min_cell", "Doe Jane"), "value": (10, 3)}})
    assert "205" in ctl(hub, "stats north")[1]
    code, shown = ctl(hub, "stats --all")
    assert code == 2
    assert "Doe" not in shown
