"""The pipeline benchmark: what it reads from logs, and one tiny run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks import pipeline, pipeline_events
from benchmarks.pipeline_model import NoiseModel, cpu_s, peak_kib
from benchmarks.pipeline_places import Result


def line(second: float, event: str, **fields: object) -> str:
    """A log line at a second of one minute."""
    return json.dumps({**fields, "event": event, "level": "info", "timestamp": f"2026-01-01T00:00:{second:09.6f}Z"})


LOG = [
    line(1, "step.began", site="a", version=0),
    line(2, "step.done", site="a", version=0, load=0.25, train=0.5),
    line(2.5, "training.done", site="a", update="u1"),
    line(3, "upload.started", update="u1"),
    line(4, "upload.done", update="u1"),
    line(4.5, "admission.started", update="u1"),
    line(6.5, "update.validated", update="u1"),
    line(7, "merge.started", version=1),
    line(9, "version.committed", version=1),
    line(9.5, "version.received", site="a", version=1),
    line(10, "head.stale", level="error"),
]


def entries(tmp_path: Path, *lines: str) -> list[pipeline_events.Entry]:
    """What a log of these lines says."""
    path = tmp_path / "log"
    path.write_text("a line of something else\n" + "\n".join(lines) + '\n{"half a l')
    return pipeline_events.read([path, tmp_path / "missing"])


def test_stages_are_read_from_the_logs(tmp_path: Path) -> None:
    assert pipeline_events.stages(entries(tmp_path, *LOG)).medians() == {
        "load": 0.25,
        "train": 0.5,
        "form": 0.5,
        "upload": 1.0,
        "notice": 0.5,
        "admission": 2.0,
        "merge": 2.0,
        "announce": 0.5,
    }


def test_overhead_leaves_the_warm_up_out(tmp_path: Path) -> None:
    lines = [line(0.5 * v if v <= 2 else v - 1, "version.committed", version=v) for v in range(1, 21)]
    lines += [line(v - 1.5, "update.merged") for v in range(3, 21) for _ in range(2)]
    found = entries(tmp_path, line(0.25, "step.began", site="a"), *lines, line(0.75, "step.began", site="b"))
    start = found[0].at - 1
    # One CPU second a second until the end of the warm-up, a tenth of one from there.
    busy = [(start, 0.0), (start + 2.75, 2.75), (start + 12.75, 3.75), (start + 22.75, 4.75)]
    numbers = pipeline.overhead(Result(found, began=start, busy=busy))
    assert numbers["ms a version"] == pytest.approx(1000)
    assert numbers["CPU ms an update"] == pytest.approx(50)
    assert (numbers["first local step s"], numbers["first step of the last site s"]) == (1.0, 1.5)


def test_the_trained_model_is_as_large_as_asked_for_and_changes_everywhere() -> None:
    model = NoiseModel(80)
    assert sum(weight.nbytes for weight in model.weights.values()) == 80_000_000
    model.train()
    assert all((weight != 0.01).mean() > 0.99 for weight in model.weights.values())


def test_memory_is_read_from_the_system() -> None:
    assert peak_kib() >= peak_kib(field="VmRSS") - 64 > 0


def test_cpu_seconds_are_read_from_the_system() -> None:
    before = cpu_s(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert cpu_s(os.getpid()) - before == pytest.approx(0.1, abs=0.08)


def test_one_tiny_federation_is_measured_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "pipeline.json"
    pipeline.main(["--size-mb", "1", "--sites", "2", "--versions", "1", "--json", str(out)])
    shown = capsys.readouterr().out
    assert "1 MB, 2 sites, 1 versions, broker memory, store file, aegis256" in shown
    assert "merge and commit s" in shown
    written = json.loads(out.read_text())
    assert written["task"] | {"size_mb": 1, "sites": 2} == written["task"]
    row = written["rounds"][0]
    assert row["versions"] == 1
    assert row["stored models MB"] > 2
    assert row["merge s"] > 0
    assert min(row["user s"], row["sys s"], row["page faults"], row["waits"], row["kernel's share %"]) > 0
    assert row["a version CPU s"] == pytest.approx(row["a version x floor CPU"] * row["floor of a version CPU s"])
    assert row["a version s"] == pytest.approx(row["a version x floor"] * row["floor of a version s"])


def test_overhead_of_a_tiny_federation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pipeline.json"
    pipeline.main(["--overhead", "--sites", "2", "--versions", "6", "--json", str(out)])
    row = json.loads(out.read_text())["rounds"][0]
    assert row["versions measured"] == 5
    assert row["merged a version"] == 2
    assert row["CPU ms an update"] > 0
    assert "ms a version" in capsys.readouterr().out
