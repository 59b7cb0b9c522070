"""Histograms tell no more of a few patients than the figures do, and what is not told is not drawn."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protocol.errors import ConfigError
from worker.data.datalist import Task
from worker.statistics.figures import MIN_CELL, CaseFigures, Cohort, DataSummary, Value
from worker.statistics.histograms import Histogram, histogram, histograms
from worker.statistics.plot import BAR, draw

numbers = st.floats(-1e9, 1e9, allow_subnormal=False).map(lambda value: round(value, 6))


@given(st.lists(numbers, min_size=1, max_size=80))
def test_every_bar_is_of_enough_patients_between_round_bounds(values: list[float]) -> None:
    found = histogram("x", values, MIN_CELL)
    if found.step == 0:
        assert len(set(values)) == 1 or np.std(values) == 0
        return
    counts = [bar.count for bar in found.bars]
    assert sum(counts) == (len(values) if len(values) >= MIN_CELL else 0)
    assert not counts or min(counts) >= MIN_CELL
    bounds = [bar.low for bar in found.bars[1:]]
    assert bounds == [bar.high for bar in found.bars[:-1]]
    assert all(round(bound / found.step) * found.step == pytest.approx(bound) for bound in bounds if bound)
    # Neither the smallest nor the largest value bounds anything.
    assert [*found.bars[:1], *found.bars[-1:]] == [] or (found.bars[0].low, found.bars[-1].high) == (None, None)
    assert f"{found.step:.6e}"[:8] in ("1.000000", "2.000000", "5.000000")


@given(st.lists(numbers, min_size=1, max_size=80))
def test_for_eyes_at_the_hospital_every_value_has_its_bar(values: list[float]) -> None:
    found = histogram("x", values, 0)
    assert sum(bar.count for bar in found.bars) == len(values)
    assert len(found.bars) <= 42
    assert min(found.bars[0].count, found.bars[-1].count) > 0


def told(
    sizes: list[float], classes: list[str], task: Task, *, lacking: int = 0, suppressed: bool = True
) -> tuple[Mapping[str, Value], list[Histogram]]:
    """What is told and drawn of patients with these sizes and classes, some of whom lack a third axis."""
    cases = [
        CaseFigures(
            patient=str(n),
            figures={"shape.x": size} | ({"shape.z": size} if n >= lacking else {}),
            voxels={name: 5 + n},
        )
        for n, (size, name) in enumerate(zip(sizes, classes, strict=True))
    ]
    summary = DataSummary(task=task, classes=sorted(set(classes)), suppressed=suppressed)
    cohort = Cohort.of(cases, summary.classes, task)
    figures = summary.told_of(cohort)
    return figures, list(histograms(summary, cohort, figures))


SIZES = [float(n) for n in range(40)]


def test_a_figure_is_drawn_if_the_number_of_its_patients_is_told() -> None:
    _, found = told(SIZES, ["a"] * 40, Task.SEGMENTATION)
    assert [each.name for each in found] == ["shape.x", "shape.z", "voxels.a"]
    _, found = told(SIZES, ["a"] * 40, Task.SEGMENTATION, lacking=3)
    assert [each.name for each in found] == ["shape.x", "voxels.a"]
    _, found = told(SIZES, ["a"] * 15 + ["b"] * 25, Task.SEGMENTATION)
    assert [each.name for each in found] == ["shape.x", "shape.z", "voxels.b"]  # of 15 there is but one bar
    _, found = told(SIZES, ["a"] * 4 + ["b"] * 36, Task.SEGMENTATION)
    assert [each.name for each in found] == ["shape.x", "shape.z"]
    figures, found = told(SIZES, ["a"] * 4 + ["b"] * 36, Task.CLASSIFICATION)
    assert (figures["patients"], found) == ("withheld", [])  # bars would add up to what is withheld
    _, found = told(SIZES[:9], ["a"] * 9, Task.SEGMENTATION)
    assert found == []
    _, found = told(SIZES[:9], ["a"] * 9, Task.SEGMENTATION, suppressed=False)
    assert [each.name for each in found] == ["shape.x", "shape.z", "voxels.a"]


def test_a_few_far_off_do_not_make_one_bar_of_all_others() -> None:
    _, (found, *_) = told([*SIZES, 1e6, 2e6], ["a"] * 42, Task.SEGMENTATION)
    assert [(bar.low, bar.high) for bar in found.bars] == [(None, 10), (10, 20), (20, 30), (30, None)]
    assert [bar.count for bar in found.bars] == [10, 10, 10, 12]


def test_what_is_the_same_for_all_is_one_bar() -> None:
    _, (found, *_) = told([3.0] * 12, ["a"] * 12, Task.CLASSIFICATION)
    assert [(bar.low, bar.count) for bar in found.bars] == [(3.0, 12)]


def bars_in(path: Path) -> int:
    with Image.open(path) as picture:
        return int((np.asarray(picture) == BAR).all(-1).sum())


def test_a_suppressed_class_has_no_bar_in_the_picture(tmp_path: Path) -> None:
    draw([], {"min_cell": 10, "patients": "withheld", "patients.a": 12}, tmp_path / "one.png")
    draw([], {"min_cell": 10, "patients": "withheld", "patients.a": 12, "patients.b": "<10"}, tmp_path / "two.png")
    assert bars_in(tmp_path / "one.png") == bars_in(tmp_path / "two.png") > 0
    with pytest.raises(ConfigError, match=r"nothing is of 10 patients or more, so .* is not drawn"):
        draw([], {"min_cell": 10, "patients": "<10"}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_each_histogram_is_in_the_picture_and_nothing_is_overwritten(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).normal(0, 1, 60).tolist()
    figures, found = told(sizes, ["a"] * 60, Task.SEGMENTATION)
    seen = []
    for number in range(len(found) + 1):
        draw(found[:number], figures, tmp_path / f"{number}.png")
        seen.append(bars_in(tmp_path / f"{number}.png"))
    assert all(after > before for before, after in pairwise(seen))
    with pytest.raises(ConfigError, match="is there already; nothing is overwritten"):
        draw(found, figures, tmp_path / "0.png")
    with pytest.raises(ConfigError, match="cannot be written"):
        draw(found, figures, tmp_path / "nowhere" / "0.png")


@settings(max_examples=20)
@given(st.lists(st.text(max_size=40), max_size=50, unique=True))
def test_any_names_of_classes_can_be_drawn(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("names") / "x.png"
    draw([], {"min_cell": 10, "patients": 20, **{f"patients.{name}": 20 for name in names}}, path)
    assert path.stat().st_size > 100
