"""`fledge try --bundle`: a bundle of the zoo, its data divided by their list."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import monai_bundles
from tests.support.command_line import fledge
from tests.support.zoo_data import prepared

pytest.importorskip("monai")


def test_a_bundle_is_tried_with_its_data_divided(tmp_path: Path) -> None:
    data = prepared("digits", tmp_path / "site")
    assert fledge("bundle", "new", "numbers", "--from", "digits", cwd=tmp_path).returncode == 0
    command = ("try", "--bundle", "numbers", "--data", data, "--sites", "2", "--versions", "1", "--report", "r.md")
    done = fledge(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "numbers at 2 sites" in done.stdout
    assert "all data pooled" in (tmp_path / "r.md").read_text()
    without = fledge("try", "--bundle", "numbers", cwd=tmp_path)
    assert (without.returncode, "dataset_dir" in without.stderr) == (2, True)


def test_a_bundle_that_finds_its_images_by_a_pattern_is_refused(tmp_path: Path) -> None:
    bundle, data = monai_bundles.spleen(tmp_path / "spleen"), monai_bundles.volumes(tmp_path / "data", 6)
    done = fledge("try", "--bundle", bundle, "--data", data, "--sites", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not follow the lists of dataset.json" in done.stderr
