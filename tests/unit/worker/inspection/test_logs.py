"""The newest log lines: numbered, followed across rotations, and never more than the events and fields we know."""

from __future__ import annotations

import ast
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from worker.inspection import system
from worker.inspection.inspector import Inspector
from worker.inspection.scrub import log_line
from worker.inspection.vocabulary import EVENTS, NUMBERS, WORDS

ROOT = Path(__file__).resolve().parents[4]


def entry(number: int, event: str = "version.received", **fields: Any) -> str:
    """A numbered line as the local log file has it."""
    line = {"timestamp": "2026-11-26T10:00:00Z", "level": "info", "event": event, **fields, "line": number}
    return json.dumps(line) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "worker.log"
    path.write_text("".join(entry(n, version=n) for n in range(1, 11)))
    return path


def ask(file: Path, **arguments: Any) -> tuple[list[int], int, str]:
    """Versions of the lines that are answered, the cursor, and the text."""
    text, values = Inspector(file.parent, log_file=file, environment={}).answer("logs", arguments)
    versions = [int(version) for line in values["lines"] for version in re.findall(r"version=(\d+)", line)]
    return versions, values["next"], text


def test_the_newest_lines_come_with_a_number_to_go_on_from(file: Path) -> None:
    assert ask(file, lines=3) == ([8, 9, 10], 10, "3 lines")
    assert ask(file, since=10) == ([], 10, "0 lines")
    with file.open("a") as log:
        log.write(entry(11, version=11))
    assert ask(file, since=10) == ([11], 11, "1 line")


def test_a_follower_that_asks_for_few_lines_misses_none(file: Path) -> None:
    seen: list[int] = []
    since = 0
    while (answer := ask(file, lines=3, since=since))[0]:
        seen += answer[0]
        since = answer[1]
    assert seen == list(range(1, 11))


def test_a_follower_with_a_search_word_does_not_look_twice(file: Path) -> None:
    assert ask(file, since=0, grep="VERSION=1") == ([1, 10], 10, "2 lines")
    assert ask(file, since=0, grep="nowhere") == ([], 10, "0 lines")


def test_lines_are_followed_across_a_rotation(file: Path) -> None:
    os.rename(file, file.with_name("worker.1.log"))
    file.write_text(entry(11, version=11))
    assert ask(file, since=8)[0] == [9, 10, 11]
    assert ask(file)[0] == list(range(1, 12))


def test_what_is_out_of_reach_is_said(file: Path) -> None:
    file.write_text(entry(20, version=20))
    assert ask(file, since=10) == ([20], 20, "1 line; 9 before them are no longer at hand")


def test_a_log_begun_anew_is_shown_from_its_beginning(file: Path) -> None:
    assert ask(file, since=500, lines=2) == ([1, 2], 2, "2 lines")


def test_a_line_that_is_still_being_written_waits(file: Path) -> None:
    with file.open("a") as log:
        log.write(entry(11, version=11)[:20])
    assert ask(file, since=9) == ([10], 10, "1 line")


def test_a_huge_log_is_answered_quickly(file: Path) -> None:
    with file.open("a") as log:
        log.writelines(entry(n, version=n, error="x" * 300) for n in range(11, 30_000))
    began = time.monotonic()
    versions, cursor, _ = ask(file, lines=5)
    assert time.monotonic() - began < 5
    assert versions == [29995, 29996, 29997, 29998, 29999]
    assert cursor == 29999


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            entry(1, "training.failed", site="alpha", kind="TrainingError", error="Jane", reason="trainer"),
            "2026-11-26T10:00:00Z info training.failed site=alpha kind=TrainingError reason=trainer "
            "(more in the site's own log)",
        ),
        (
            entry(1, "training.failed", exception=[{"exc_type": "ValueError", "exc_value": "Jane", "frames": []}]),
            "2026-11-26T10:00:00Z info training.failed kind=ValueError (more in the site's own log)",
        ),
        (
            entry(1, "training.failed", exception=[{"exc_type": "JaneDoe"}]),
            "2026-11-26T10:00:00Z info training.failed (more in the site's own log)",
        ),
        (
            entry(1, "metric.left_out", metric="dice_jane", value="nan"),
            "2026-11-26T10:00:00Z info metric.left_out (more in the site's own log)",
        ),
        (entry(1, "patient.read", run="digits"), "2026-11-26T10:00:00Z info <event>"),
        (entry(1, "Jane Doe", run="digits"), "2026-11-26T10:00:00Z info <event>"),
        (
            entry(1, "registry.changed", version="Jane", run="a b"),
            "2026-11-26T10:00:00Z info registry.changed (more in the site's own log)",
        ),
        (entry(1, "update.settled", update="12345678", outcome="merged", version=7).strip(), None),
        ("Jane Doe", "<text>"),
        ("[1]", "<text>"),
        ('{"timestamp": "Jane", "level": "Doe", "event": "worker.started"}', "- - worker.started"),
        ("[" * 10_000, "<text>"),
    ],
)
def test_of_a_line_only_known_events_and_fields_are_told(line: str, told: str | None) -> None:
    expected = told or "2026-11-26T10:00:00Z info update.settled update=12345678 outcome=merged version=7"
    assert log_line(line) == expected


def logged(package: str) -> dict[str, set[str]]:
    """Every event that a package logs, and the fields it is logged with."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            says = re.search(r"log\w*\(?\)?\.(debug|info|warning|error|exception|critical)$|told\.\w+$|_alarm$", name)
            if says and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                found.setdefault(node.args[0].value, set()).update(word.arg or "" for word in node.keywords)
            if name.endswith("Alarm"):
                found |= {
                    str(ast.literal_eval(w.value)): set() for w in node.keywords if isinstance(w.value, ast.Constant)
                }
    return found


def test_every_event_of_ours_is_known_to_those_who_look() -> None:
    events = logged("worker") | logged("broker")
    assert {"training.failed", "broker.lost", "head.stale", "epoch.renewed"} <= events.keys()
    assert events.keys() - EVENTS == set(), "add them to worker/inspection/vocabulary.py"
    fields = set[str]().union(*events.values())
    assert fields & (NUMBERS | WORDS.keys())


SMI = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 81559, 1024, 37"
echo "Quadro RTX 6000/PASSIVE; /data/Jane, 1, 1, 1"
"""


def test_the_machine_is_told_in_figures(tmp_path: Path) -> None:
    _, values = Inspector(tmp_path, log_file=tmp_path / "worker.log", environment={"PATH": ""}).answer("sys.info", {})
    table = dict(zip(values["metric"], values["value"], strict=True))
    assert table["gpu_count"] == "0"
    assert re.fullmatch(r"[0-9]+\.[0-9]{2} GiB", table["memory_total"])
    assert {"memory_available", "memory_percent", "cpu_count", "cpu_load", "disk_free", "disk_percent"} <= table.keys()
    assert str(tmp_path) not in str(values)


def test_accelerators_are_asked_of_their_driver(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert system.accelerators({"PATH": str(tmp_path)}) == [
        ("gpu_count", "1"),
        ("gpu_device_0", "NVIDIA H100 80GB HBM3, 1024 of 81559 MiB used, 37 % busy"),
    ]


def test_a_driver_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n/bin/sleep 60 & wait\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    began = time.monotonic()
    rows = system.accelerators({"PATH": str(tmp_path)}, timeout=0.2)
    assert rows == [("gpu_count", "unknown: nvidia-smi does not answer")]
    assert time.monotonic() - began < 10
