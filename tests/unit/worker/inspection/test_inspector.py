"""What of a site's own files can be looked at from afar, and what cannot."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from broker.runtime.health import write_health
from protocol import limits
from protocol.codec import encode
from protocol.commands import COMMANDS
from protocol.errors import ConfigError, Unauthorized, WireError
from protocol.messages import Reply
from worker.config import WorkerConfig
from worker.inspection.inspector import Inspector
from worker.inspection.settings import write_settings

SECRET = "Doe-Jane"
CODE = 'import torch\n\n\n\tbatch = 8\nROOT = "/data/Doe-Jane"\n'


def said(event: str = "version.received", **fields: Any) -> str:
    """A line of the log."""
    return json.dumps({"timestamp": "2026-11-26T10:00:00.5Z", "level": "info", "event": event, **fields})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A worker's state directory with everything that lies in one, and more."""
    state = tmp_path / "state"
    for folder in ("spool", "cache", "own", "cases", "tls", "runs/digits/code", f"runs/digits/{SECRET}"):
        (state / folder).mkdir(parents=True)
    for name in ("worker.db", "worker.lock", "site.keys", "credentials.toml", "spool/x.txt", "cases/bcdfghj.txt"):
        (state / name).write_text(SECRET)
    (state / "worker.log").write_text("".join(f"{said(run='digits', version=n, line=n)}\n" for n in range(1, 31)))
    (state / "worker.1.log").write_text(said("worker.started") + "\n")
    write_health(state / "health.json", 1234.5, 1200.0)
    run = state / "runs" / "digits"
    (run / "code" / "train.py").write_text(CODE)
    (run / "code" / "changed.py").write_text("anything")
    (run / f"{SECRET}.txt").write_text(SECRET)
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    (run / "manifest.json").write_text(json.dumps({"files": {"code/train.py": digest, "code/changed.py": digest}}))
    return state


@pytest.fixture
def looking(state: Path) -> Inspector:
    return Inspector(state, log_file=state / "worker.log", environment={})


def lines(looking: Inspector, order: str, **arguments: Any) -> tuple[str, ...]:
    """The lines of an answer."""
    _, values = looking.answer(order, arguments)
    assert SECRET not in str(values)
    found: tuple[str, ...] = values["lines"]
    return found


def test_it_answers_exactly_the_orders_that_look(looking: Inspector) -> None:
    looks = {name for name in COMMANDS if name.startswith("file.")} | {"logs", "stats", "sys.info"}
    assert looking.commands == looks
    with pytest.raises(ConfigError, match="not among what can be looked at"):
        looking.answer("site.restart", {})


def test_a_listing_has_what_may_be_read_and_nothing_else(looking: Inspector) -> None:
    assert lines(looking, "file.ls") == ("health.json", "runs", "worker.1.log", "worker.log")
    assert lines(looking, "file.ls", path="./") == lines(looking, "file.ls")
    assert lines(looking, "file.ls", path="runs/digits") == ("<folder>", "<file>", "code", "<file>")
    assert lines(looking, "file.ls", path="runs/digits/code") == ("changed.py", "train.py")


def test_a_listing_knows_the_options_of_the_command_of_that_name(looking: Inspector, state: Path) -> None:
    os.utime(state / "worker.1.log", (1.0, 2e9))
    os.utime(state / "worker.log", (2.1e9, 1.0))
    assert lines(looking, "file.ls", options="-t")[0] == "worker.1.log"
    assert lines(looking, "file.ls", options="-u")[0] == "worker.log"
    assert lines(looking, "file.ls", options="-a")[:2] == (".", "..")
    sizes = [int(row.split()[1]) for row in lines(looking, "file.ls", options="-l -S")]
    assert sizes == sorted(sizes, reverse=True)
    deep = lines(looking, "file.ls", options="-R")
    assert deep[0] == ".:"
    assert "./runs/digits/code:" in deep
    assert "train.py" in deep
    assert lines(looking, "file.ls", path="worker.log", options="-lu")[0].endswith(" 2036-07-18 13:20:00 worker.log")
    with pytest.raises(ConfigError, match="takes the options -a -l -t -S -R -u"):
        looking.answer("file.ls", {"options": "-z"})


@pytest.mark.parametrize(
    "path",
    [
        *("site.keys", "credentials.toml", "worker.db", "worker.lock", "spool", "spool/x.txt", "cases/bcdfghj.txt"),
        *("tls", "own", "cache", "nothing", f"runs/digits/{SECRET}.txt", f"runs/digits/{SECRET}", "runs/other"),
        *(
            "../state/worker.log",
            "runs/../worker.db",
            "/etc/passwd",
            "~/.bashrc",
            "worker.log;id",
            "worker.log\n",
            "a b",
        ),
        *("runs/digits/manifest.json", "<file>", "worker.log/x"),
    ],
)
@pytest.mark.parametrize("order", ["file.cat", "file.ls"])
def test_what_is_not_in_the_view_is_refused_whether_it_is_there_or_not(
    looking: Inspector, order: str, path: str, state: Path
) -> None:
    with pytest.raises(Unauthorized) as refused:
        looking.answer(order, {"path": path})
    assert refused.value.reason == "not_authorized"
    assert str(state) not in str(refused.value)


def test_what_is_there_and_what_is_not_are_refused_in_the_same_words(looking: Inspector) -> None:
    texts = []
    for path in ("site.keys", "site.kezs"):
        with pytest.raises(Unauthorized) as refused:
            looking.answer("file.cat", {"path": path})
        texts.append(str(refused.value).replace(path, "?"))
    assert texts[0] == texts[1]


def test_no_link_leads_out(looking: Inspector, state: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.py").write_text(CODE)
    code = state / "runs" / "digits" / "code"
    (code / "train.py").unlink()
    (code / "train.py").symlink_to(outside / "train.py")
    with pytest.raises(Unauthorized):
        looking.answer("file.cat", {"path": "runs/digits/code/train.py"})
    for path in code.iterdir():
        path.unlink()
    code.rmdir()
    code.symlink_to(outside)
    with pytest.raises(Unauthorized):
        looking.answer("file.cat", {"path": "runs/digits/code/train.py"})
    (state / "health.json").unlink()
    (state / "health.json").symlink_to(state / "site.keys")
    assert "health.json" not in lines(looking, "file.ls")


def test_a_pipe_in_a_files_place_stops_nobody(looking: Inspector, state: Path) -> None:
    (state / "worker.log").unlink()
    os.mkfifo(state / "worker.log")
    assert "worker.log" not in lines(looking, "file.ls")
    assert lines(looking, "logs", grep="received") == ()


def test_a_file_that_came_with_a_run_is_told_as_long_as_it_is_what_came(looking: Inspector) -> None:
    shown = lines(looking, "file.cat", path="runs/digits/code/train.py")
    assert shown == ("import torch", "", "", "\tbatch = 8", 'ROOT = "<path>')
    numbered = lines(looking, "file.cat", path="runs/digits/code/train.py", options="-b -s -T")
    assert numbered == ("     1\timport torch", "", "     2\t^Ibatch = 8", '     3\tROOT = "<path>')
    with pytest.raises(Unauthorized, match="not what came with the run"):
        looking.answer("file.cat", {"path": "runs/digits/code/changed.py"})
    with pytest.raises(Unauthorized, match="not a file that may be read"):
        looking.answer("file.cat", {"path": "runs/digits"})


def test_records_are_told_field_by_field(looking: Inspector, state: Path) -> None:
    write_settings(
        state,
        WorkerConfig.model_validate(
            {
                "federation": "clinics",
                "broker": f"amqps://{SECRET}:x@hub.example/clinics",
                "store": "s3s://store.example/clinics",
                "root": "00" * 32,
                "trainer": "mytask:trainer",
                "options": {"root": f"/data/{SECRET}"},
                "filters": [{"name": "clip", "norm": 1.0}, {"name": "noise"}],
            }
        ),
    )
    shown = lines(looking, "file.cat", path="settings.json")
    assert "federation=clinics" in shown
    assert "filters=clip,noise" in shown
    health = lines(looking, "file.cat", path="health.json")
    assert health[:3] == ("accepted=1234.5", f"pid={os.getpid()}", "started=1200.0")


def test_head_and_tail_give_ten_lines_or_as_many_lines_or_bytes_as_asked(looking: Inspector) -> None:
    everything = lines(looking, "file.cat", path="worker.log")
    assert len(everything) == 30
    assert everything[0] == "2026-11-26T10:00:00.5Z info version.received run=digits version=1"
    assert lines(looking, "file.head", path="worker.log") == everything[:10]
    assert lines(looking, "file.tail", path="worker.log") == everything[-10:]
    assert lines(looking, "file.head", path="worker.log", lines=1) == everything[:1]
    assert lines(looking, "file.tail", path="worker.log", lines=2) == everything[-2:]
    assert lines(looking, "file.head", path="worker.log", bytes=4) == ("2026",)
    size = len(everything[-1]) + 1
    assert lines(looking, "file.tail", path="worker.log", bytes=size + 2) == (everything[-2][-2:], everything[-1])


def test_grep_finds_a_text_and_not_a_pattern(looking: Inspector) -> None:
    assert len(lines(looking, "file.grep", path="worker.log", pattern="version=1")) == 11
    assert lines(looking, "file.grep", path="worker.log", pattern="version=.") == ()
    assert lines(looking, "file.grep", path="worker.log", pattern="(a+)+$" * 40) == ()
    found = lines(looking, "file.grep", path="worker.log", pattern="VERSION=30", options="-n -i -b")
    assert found[0].startswith("30:")
    first = lines(looking, "file.head", path="worker.log", lines=1)[0]
    second = lines(looking, "file.grep", path="worker.log", pattern="version=2", options="-b")[0]
    assert second.startswith(f"{len(first) + 1}:")


def test_grep_does_not_tell_what_is_not_shown(looking: Inspector, state: Path) -> None:
    (state / "worker.log").write_text(said(error=f"cannot read {SECRET}.nii.gz") + "\n")
    assert lines(looking, "file.grep", path="worker.log", pattern=SECRET) == ()
    assert lines(looking, "logs", grep=SECRET) == ()
    assert len(lines(looking, "logs")) == 1


@pytest.mark.parametrize(
    ("order", "arguments", "words"),
    [
        ("file.cat", {}, "needs path"),
        ("file.cat", {"path": 7}, "path has to be a text"),
        ("file.cat", {"path": "worker.log", "paths": "x"}, "takes path, options and nothing else"),
        ("file.head", {"path": "worker.log", "lines": True}, "lines has to be a whole number"),
        ("file.head", {"path": "worker.log", "lines": 5000}, "from 1 to 1024"),
        ("file.tail", {"path": "worker.log", "bytes": 0}, "bytes has to be a whole number"),
        ("file.grep", {"path": "worker.log", "pattern": "x" * 300}, "at most 256 characters"),
        ("file.pwd", {"path": "x"}, "takes no arguments"),
        ("logs", {"since": -1}, "since has to be a whole number"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_would_be_right(
    looking: Inspector, order: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        looking.answer(order, arguments)


def test_the_folder_has_a_description_instead_of_a_path(looking: Inspector, state: Path) -> None:
    text, values = looking.answer("file.pwd", {})
    assert "own folder" in text
    assert str(state.parent) not in text
    assert values == {}


def test_the_environment_is_told_by_name(state: Path) -> None:
    environment = {"FLEDGE_BROKER": f"amqps://{SECRET}@h", "FLEDGE_VERBOSE": "1", "PATH": "/bin", "fledge_x": "1"}
    looking = Inspector(state, log_file=state / "worker.log", environment=environment)
    assert looking.answer("file.env", {})[1] == {"name": ("FLEDGE_BROKER", "FLEDGE_VERBOSE"), "value": ("***", "1")}


def test_any_answer_fits_into_a_message(state: Path) -> None:
    busy = said(**{f"waited_s{n}": 0 for n in range(9)}, run="r" * 60, **dict.fromkeys(("seconds", "bytes"), 1e300))
    (state / "worker.log").write_text(f"{busy}\n" * 9000)
    names = {f"FLEDGE_{'X' * 50}_{n}": "x" for n in range(3000)}
    code = "é" * 1500 + "\n"
    (state / "runs" / "digits" / "code" / "train.py").write_text(code * 300)
    digest = hashlib.sha256((code * 300).encode()).hexdigest()
    (state / "runs" / "digits" / "manifest.json").write_text(json.dumps({"files": {"code/train.py": digest}}))
    looking = Inspector(state, log_file=state / "worker.log", environment=names)
    for order, arguments in (
        ("logs", {"lines": 1024}),
        ("file.cat", {"path": "worker.log", "options": "-n"}),
        ("file.cat", {"path": "runs/digits/code/train.py"}),
        ("file.tail", {"path": "runs/digits/code/train.py", "bytes": 160 * 1024}),
        ("file.env", {}),
    ):
        text, values = looking.answer(order, arguments)
        body = encode(Reply(message=b"\0" * 16, ok=True, reason="ok", text=text, values=values))
        assert 40_000 < len(body) <= limits.BODY
        for column in values.values():
            assert isinstance(column, int) or (len(column) <= 1024 and all(len(each) <= 1024 for each in column))


def test_no_answer_fails_on_an_empty_folder(tmp_path: Path) -> None:
    looking = Inspector(tmp_path / "none", log_file=tmp_path / "none" / "worker.log", environment={})
    assert lines(looking, "file.ls") == ()
    assert looking.answer("logs", {}) == ("0 lines", {"lines": (), "next": 0})
    with pytest.raises(WireError):
        looking.answer("file.cat", {"path": "worker.log"})
