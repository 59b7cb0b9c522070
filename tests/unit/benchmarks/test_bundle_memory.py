"""The benchmark of what a bundle costs keeps running, its networks have the size it says, and it can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.bundle_memory import Row, main, show
from benchmarks.bundle_process import alone, fledge
from benchmarks.wide_bundle import hidden, write_bundle, write_images
from tests.support.monai_marks import MONAI
from worker.trainers.monai_bundle import bundle_network

pytestmark = MONAI


@pytest.mark.parametrize("size", [2_000_000, 9_000_000, 418_000_000, 840_000_000])
def test_layers_add_up_to_the_wanted_size(size: int) -> None:
    widths = hidden(size)
    weights = sum(before * after for before, after in zip([512, *widths], widths, strict=False))
    assert abs(4 * weights / size - 1) < 0.1


def test_a_network_has_the_size_that_the_bundle_was_made_for(tmp_path: Path) -> None:
    network = bundle_network(write_bundle(tmp_path / "bundle", 9_000_000))
    assert abs(sum(4 * each.numel() for each in network.parameters()) / 9_000_000 - 1) < 0.1


def test_both_ways_train_a_model_of_this_size(tmp_path: Path) -> None:
    bundle, data = write_bundle(tmp_path / "bundle", 4_000_000), write_images(tmp_path / "data")
    found = alone(bundle, data, 1), fledge(bundle, data, 2, tmp_path)
    assert [each["model"] for each in found] == pytest.approx([4_000_000] * 2, rel=0.1)
    assert len([update for update in (tmp_path / "spool").rglob("*") if update.is_file()]) == 2


def test_both_processes_train_and_tell_their_peaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size-mb", "4", "--epochs", "1", "--optimizer", "sgd", "--json", str(tmp_path / "out.json")]) == 0
    assert "nothing to judge" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["model"] == pytest.approx(4_000_000, rel=0.1)
    assert min(row["alone"], row["fledge"]) > 100 * 2**20
    assert row["difference"] == row["fledge"] - row["alone"]


@pytest.mark.parametrize(("copies", "good"), [(0.9, True), (1.1, False)])
def test_the_bar_is_one_copy(copies: float, good: bool) -> None:
    row = Row(optimizer="sgd", model=10**9, alone=10**9, fledge=10**9 + int(copies * 10**9))
    assert show(Console(quiet=True), [row]) is good
