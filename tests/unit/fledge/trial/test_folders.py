"""A dataset.json divided among sites: by patient, with the images where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.trial.division import Terms
from fledge.trial.folders import divide_list, is_listed
from protocol.errors import ConfigError

TERMS = Terms(sites=2, seed=3)


def made(folder: Path, *, training: object, validation: object = (), **more: object) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.txt").write_text("a")
    document = {"training": training, "validation": validation, "labels": {"1": "tumour"}, **more}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8-sig")
    return folder


def images(folder: Path, split: str) -> set[str]:
    return {item["image"] for item in json.loads((folder / "dataset.json").read_text())[split]}


def test_patients_stay_together_and_nothing_else_changes(tmp_path: Path) -> None:
    items = [{"image": f"images/{patient}-{scan}", "label": 1} for patient in "abcdef" for scan in range(3)]
    patients = {patient: [f"images/{patient}-{scan}" for scan in range(3)] for patient in "abcdef"}
    folder = made(tmp_path / "data", training=items, validation=[{"image": "images/v"}], patients=patients)
    assert is_listed(folder)
    dealt = divide_list(folder, TERMS, tmp_path / "out")
    shares = [images(share.folder, "training") for share in dealt.shares]
    assert set.union(*shares) == {item["image"] for item in items} == images(dealt.pooled.folder, "training")
    assert not shares[0] & shares[1]
    owners = [{name.split("/")[1][0] for name in share} for share in shares]
    assert not owners[0] & owners[1]
    assert [share.images for share in dealt.shares] == [9, 9]
    assert images(dealt.pooled.folder, "validation") == {"images/v"}
    assert dealt.held_out == 1
    for share in dealt.shares:
        assert (share.folder / "images" / "a.txt").read_text() == "a"
        assert json.loads((share.folder / "dataset.json").read_text())["labels"] == {"1": "tumour"}
        assert images(share.folder, "validation") == {"images/v"}


def test_without_validation_a_share_of_the_patients_is_held_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "data", training=[{"image": f"images/{index}"} for index in range(10)])
    dealt = divide_list(folder, TERMS, tmp_path / "out")
    held_out = images(dealt.pooled.folder, "validation")
    assert len(held_out) == 2 == dealt.held_out
    assert not any(held_out & images(share.folder, "training") for share in (*dealt.shares, dealt.pooled))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ([], "no list of images under 'training'"),
        ("images", "no list of images"),
        ([{"label": 1}], "no list of images"),
        ([{"image": "images/1"}], "too few for 2 sites"),
    ],
)
def test_a_list_that_cannot_be_divided_is_refused(tmp_path: Path, training: object, said: str) -> None:
    folder = made(tmp_path / "data", training=training)
    with pytest.raises(ConfigError, match=said):
        divide_list(folder, TERMS, tmp_path / "out")
