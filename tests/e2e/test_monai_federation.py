"""MONAI from beginning to end, by the command line alone: a starting point, a hospital's data, a run, a result.

Two hospitals behind kits, certificates and least privilege train a bundle that an operator brings, on images that each
has prepared, and one of them infers with what was learned, after everybody else is gone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.e2e.walk import Walk, join

pytestmark = pytest.mark.servers

RUN = "hippo"
CANARY = "MEIER-HANS-1957"
"""A patient's name in names of files at one site, which nobody else may ever see."""
LAST = 2
SIDE = 24


def archive(folder: Path, seed: int) -> Path:
    """Images as a hospital keeps them, of six patients, with a mask of two values beside each."""
    dice = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(6):
        mask = np.zeros((SIDE, SIDE, SIDE), np.uint8)
        mask[4:12, 4:12, 6:18], mask[12:20, 4:12, 6:18] = 1, 2
        image = dice.normal(100, 20, mask.shape).astype(np.float32) + 200 * mask
        for place, values in (("images", image), ("masks", mask)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / place / f"{CANARY}-{index}.nii.gz")
    return folder


def prepare(walk: Walk, site: str, seed: int) -> None:
    """A hospital looks at its data and at the bundle, before it joins."""
    raw, data = archive(walk.folder / "archives" / site, seed), walk.folder / "data" / site
    walk.fledge(
        "data", "prepare", str(raw / "images"), str(data), "--labels", str(raw / "masks"), "--validation", "0.4"
    )
    listed = json.loads((data / "dataset.json").read_text())
    assert len(listed["training"]) + len(listed["validation"]) == 6
    assert CANARY not in (data / "dataset.json").read_text()
    said = walk.fledge("bundle", "check", "bundle", "--data", str(data), "--override", "image_size=[16,16,16]")
    assert "nothing to correct" in said
    overrides = '{ "image_size" = [16, 16, 16], "optimizer#lr" = 0.01 }'
    walk.change(site, options=f'dataset_dir = "{data}"\noverrides = {overrides}')
    join(walk, site)


def bring(walk: Walk) -> None:
    """A researcher brings the bundle as a run of two versions."""
    run = walk.folder / RUN
    walk.fledge("init-run", "--bundle", "bundle", "-o", str(run))
    settings = (run / "run.toml").read_text()
    for old, new in (
        ("^heartbeat = .*$", "heartbeat = 2.0"),
        ("^# max_wait = .*$", "max_wait = 30.0"),
        (r"^\[strategy\]$", "[strategy]\nbuffer = 2"),
        ("^# max_versions = .*$", f"max_versions = {LAST}"),
    ):
        settings, count = re.subn(old, new, settings, count=1, flags=re.MULTILINE)
        assert count == 1, (old, settings)
    (run / "run.toml").write_text(settings)
    for order in (("create", str(run)), ("deploy", RUN, "north", "south"), ("start", RUN)):
        assert all(answer["ok"] for answer in walk.ctl("run", *order)), order


def test_a_starting_point_becomes_a_result_at_the_hospital(walk: Walk) -> None:
    walk.fledge("bundle", "new", "bundle", "--from", "hippocampus-mr")
    walk.found()
    for seed, site in enumerate(("north", "south")):
        prepare(walk, site, seed)
    bring(walk)
    for site in ("north", "south"):
        program = walk.programs[site]
        walk.wait(lambda program=program: program.count("version.measured", version=LAST) > 0, f"{site} has it", 120)
    models = walk.fledge("site", "models", "--kit", str(walk.kit("north")))
    assert f"version {LAST}  val_mean_dice" in models
    assert "best" in models
    walk.close()

    # Nobody is there any more but the hospital's own folder.
    new = walk.folder / "archives" / "new"
    archive(new, 9)
    out = walk.folder / "results"
    said = walk.fledge("infer", RUN, "--kit", str(walk.kit("north")), "--in", str(new / "images"), "--out", str(out))
    assert "6 images" in said
    results = sorted(out.rglob("*.nii.gz"))
    assert len(results) == 6
    assert {nibabel.load(path).shape for path in results} == {(SIDE, SIDE, SIDE)}
    hub = (walk.folder / "aggregator.log").read_text()
    assert CANARY not in hub + "".join(walk.said)
