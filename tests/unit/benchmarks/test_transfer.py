"""The transfer benchmark keeps running, splits hospitals as it says, and tells who was faster."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.hippocampus_bundle import split
from benchmarks.transfer import Curve, Effort, main, show
from tests.support.monai_marks import MONAI

pytestmark = MONAI


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Twenty tiny volumes, the darker of them stored as bytes."""
    dice = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in range(20):
        label = np.zeros((12, 12, 12), np.uint8)
        label[2:6, 2:6, 2:6], label[6:10, 6:10, 6:10] = 1, 2
        image = (dice.integers(0, 10, label.shape) + 40 * label) * (1 + index)
        kind = np.uint8 if index < 2 else np.float32
        name = f"hippocampus_{index:03}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.astype(kind), np.eye(4)), tmp_path / "data" / "imagesTr" / name)
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), tmp_path / "data" / "labelsTr" / name)
    return tmp_path / "data"


def test_hospitals_differ_in_type_and_brightness(volumes: Path) -> None:
    hospitals = split(volumes, 4)
    numbers = [sorted(int(volume.image.name[12:15]) for volume in hospital) for hospital in hospitals]
    assert numbers == [list(range(5 * index, 5 * index + 5)) for index in range(4)]
    assert hospitals == split(volumes, 4)


def test_it_trains_both_ways_and_writes_the_curves(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.hippocampus_bundle.SIZE", (12, 12, 12))
    small = ["--volumes", "1", "--steps", "1", "--pretraining", "1", "--horizon", "2", "--goal", "1.1"]
    assert main(["--data", str(volumes), *small, "--json", str(tmp_path / "out.json")]) == 1
    given, scratch = json.loads((tmp_path / "out.json").read_text())["curves"]
    assert min(len(given["dice"]), len(scratch["dice"])) >= 2
    assert given["dice"][0] != scratch["dice"][0]
    assert all(0 <= dice <= 1 for curve in (given, scratch) for dice in curve["dice"])
    assert "not within" in capsys.readouterr().out


def test_a_folder_without_the_volumes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path)])
    assert "holds no hippocampus volumes, or too few; point --data at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "scratch", "good"),
    [
        ([0.5, 0.8], [0.1, 0.5, 0.8], True),
        ([0.5, 0.8], [0.1, 0.5], True),
        ([0.5, 0.6, 0.8], [0.1, 0.8], False),
        ([0.5, 0.6], [0.1, 0.2], False),
    ],
)
def test_who_reached_the_goal_with_fewer_versions(given: list[float], scratch: list[float], good: bool) -> None:
    curves = (Curve(start="given", dice=given), Curve(start="scratch", dice=scratch))
    assert show(*curves, Effort(goal=0.75)) is good
