"""The stages benchmark keeps running over both stores, and its rows add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.floor import Design, Floor
from benchmarks.floor_calls import Cost
from benchmarks.stages import figures, version
from benchmarks.usage import Usage

STAGES = ("load", "form", "upload", "admission", "merge")


def measured(tmp_path: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What it prints and writes, of a model of two chunks in a process of its own, whose settings it changes."""
    out = tmp_path / "out" / "stages.json"
    small = ("--size-mb", "9", "--sites", "2", "--rounds", "1", "--sample-mib", "1", "--json", str(out))
    command = [sys.executable, "-m", "benchmarks.stages", *small, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


@pytest.mark.parametrize("filter", ["clip", "unsafe-none"])
def test_every_stage_over_a_directory(tmp_path: Path, filter: str) -> None:
    shown, written = measured(tmp_path, "--filter", filter)
    rows = written["stages"]
    assert list(rows) == [*STAGES, "version"]
    assert all(line in shown for line in ("9 MB, 2 sites, file store", "peak MiB", "x floor CPU", "admission"))
    for stage in ("load", "form", "admission", "merge"):
        row = rows[stage]
        assert min(row["s"], row["floor s"], row["floor CPU s"], row["x floor"], row["x floor CPU"]) > 0
        assert row["user s"] + row["sys s"] > 0
    assert "x floor" not in rows["upload"]
    whole = sum(2 * rows[stage]["s"] for stage in STAGES[:-1]) + rows["merge"]["s"]
    assert rows["version"]["s"] == pytest.approx(whole)
    assert set(written["prices"]) >= {"read", "write", "encrypt", "decrypt", "hash"}


def test_every_stage_over_s3_is_compared_with_the_stores_own_time(tmp_path: Path) -> None:
    shown, written = measured(tmp_path, "--store", "s3")
    assert "x raw" in shown
    assert all(written["stages"][stage]["x raw"] > 0 for stage in ("load", "upload", "admission", "merge", "version"))
    assert "x raw" not in written["stages"]["form"]
    assert set(written["prices"]) >= {"get", "put", "keep"}


def usage(seconds: float, peak: int = 0) -> Usage:
    """Half of the time computing, half of that in the kernel."""
    return Usage(
        wall=seconds, user=seconds / 4, sys=seconds / 4, faults=100, voluntary=10, involuntary=1, peak=peak * 1024
    )


def test_a_row_tells_the_mean_of_a_stage_and_its_highest_peak() -> None:
    names = ("read", "write", "encrypt", "decrypt", "hash", "norm", "subtract", "axpy", "average", "copy")
    prices = dict.fromkeys(names, Cost(seconds=0.0, cpu=1.0))
    found = {stage: [usage(8.0, peak=3), usage(16.0, peak=5)] for stage in STAGES[:-1]} | {"merge": [usage(100.0)]}
    rows = version(found, Design(), prices, 10**9)
    expected = {"s": 12.0, "user s": 3.0, "sys s": 3.0, "faults": 100, "peak MiB": 5.0}
    assert {name: rows["admission"][name] for name in expected} == expected
    assert rows["admission"]["floor CPU s"] == 5.0  # read, decrypt, two hashes, norm
    assert rows["admission"]["x floor CPU"] == 6.0 / 5.0
    assert (rows["version"]["s"], rows["version"]["waits"], rows["version"]["peak MiB"]) == (196.0, 90, 5.0)


def test_a_stage_that_needs_nothing_has_no_ratio() -> None:
    assert "x floor" not in figures([usage(1.0)], 1, Floor(wall=0.0, cpu=0.0, raw=0.0))
