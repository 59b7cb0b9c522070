"""`fledge data`: a folder of images becomes what MONAI reads, or one sentence says why not."""

from __future__ import annotations

import csv
import json
import shutil
import stat
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fledge.bootstrap import open_worker
from fledge.cli.data import app
from fledge.federation import new_federation
from protocol.errors import ConfigError, StateError, Unauthorized
from tests.support.dicom import write_series
from worker.data.discovery import find
from worker.data.nifti import save_nifti
from worker.data.sources import Admission
from worker.inspection.inspector import Inspector

HIPPOCAMPUS = Path(__file__).parents[5] / "shared" / "data" / "hippocampus"
SPLITS = ("training", "validation", "test")
TOML = 'federation = "heart"\nbroker = "memory:"\nstore = "memory:"\ntrainer = "mytask:trainer"\n'


def said(*arguments: object) -> str:
    """What a command prints; an error of ours is raised."""
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def listed(out: Path) -> dict[str, Any]:
    """The datalist of a folder."""
    found: dict[str, Any] = json.loads((out / "dataset.json").read_text())
    return found


def entries(out: Path) -> list[dict[str, Any]]:
    """All images of a datalist."""
    return [entry for split in SPLITS for entry in listed(out)[split]]


def who(folder: Path) -> list[dict[str, str]]:
    """Which case is which image."""
    return list(csv.DictReader((folder / "who.csv").read_text().splitlines()))


def volumes(folder: Path, count: int = 12, *, suffix: str = ".nii.gz") -> Path:
    """Patients a and b and so on with two visits each, and a label beside every image."""
    dice = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        name = f"pat{index // 2}_visit{index % 2}{suffix}"
        values = dice.normal(0, 1, (6, 5, 4)).astype(np.float32)
        affine = np.diag([0.5, 0.5, 2.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / "images" / name)
        nibabel.save(nibabel.Nifti1Image((values > 0.5).astype(np.uint8), affine), folder / "labels" / name)
    return folder


def prepared(folder: Path, out: Path, *more: object) -> str:
    return said("prepare", folder / "images", out, "--labels", folder / "labels", "--patients", r"pat(\d+)_", *more)


# ---- NIfTI


def test_a_folder_of_volumes_is_split_by_patient_and_read_by_monai(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImage

    folder = volumes(tmp_path / "in")
    text = prepared(
        folder, tmp_path / "liver", "--test", 0.2, "--seed", 5, "--label-name", "1=liver", "--modality", "MRI"
    )
    found = listed(tmp_path / "liver")
    assert "training: " in text
    assert (found["name"], found["labels"], found["modality"]) == (
        "liver",
        {"0": "background", "1": "liver"},
        {"0": "MRI"},
    )
    assert found["numTraining"] == len(found["training"])
    where = {entry["image"]: split for split in SPLITS for entry in found[split]}
    assert len(where) == len(entries(tmp_path / "liver")) == 12
    assert len(found["patients"]) == 6
    assert all(len({where[image] for image in images}) == 1 for images in found["patients"].values())
    read = load_decathlon_datalist(str(tmp_path / "liver" / "dataset.json"), True, "training")
    load = LoadImage(image_only=True)
    for entry in read:
        image, label = load(entry["image"]), load(entry["label"])
        assert (image > 0.5).to(int).equal(label.to(int))


def test_nothing_in_the_folder_says_who_the_patients_are(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    prepared(folder, tmp_path / "out", "--mapping", tmp_path / "who.csv")
    names = "".join(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    assert "pat" not in names.replace(".patients.key", "")
    assert "visit" not in names + (tmp_path / "out" / "dataset.json").read_text()
    for private in (tmp_path / "out" / ".patients.key", tmp_path / "who.csv"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    rows = who(tmp_path)
    assert {(row["patient"], row["image"]) for row in rows} == {
        (str(n // 2), f"pat{n // 2}_visit{n % 2}.nii.gz") for n in range(12)
    }
    assert {f"imagesTr/{row['case']}.nii.gz" for row in rows} == {each["image"] for each in entries(tmp_path / "out")}


def test_the_same_key_gives_the_same_names_and_new_patients_move_nobody(tmp_path: Path) -> None:
    prepared(volumes(tmp_path / "in"), tmp_path / "one")
    prepared(volumes(tmp_path / "more", 20), tmp_path / "two", "--key", tmp_path / "one" / ".patients.key")
    one, two = (listed(tmp_path / name) for name in ("one", "two"))
    for split in SPLITS:
        old = {entry["image"] for entry in one[split]}
        assert old <= {entry["image"] for entry in two[split]}
    prepared(tmp_path / "in", tmp_path / "three")
    assert not {e["image"] for e in entries(tmp_path / "one")} & {e["image"] for e in entries(tmp_path / "three")}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_are_copied_byte_by_byte_or_linked(tmp_path: Path, suffix: str) -> None:
    folder = volumes(tmp_path / "in", suffix=suffix)
    prepared(folder, tmp_path / "copy", "--mapping", tmp_path / "who.csv")
    for row in who(tmp_path):
        for there, here in (("imagesTr", "images"), ("labelsTr", "labels")):
            copy = tmp_path / "copy" / there / f"{row['case']}{suffix}"
            assert copy.read_bytes() == (folder / here / row["image"]).read_bytes()
            assert copy.stat().st_nlink == 1
    prepared(folder, tmp_path / "link", "--link")
    assert all((tmp_path / "link" / each["image"]).stat().st_nlink == 2 for each in entries(tmp_path / "link"))


def test_a_label_saved_the_other_way_round_is_turned_and_the_hospitals_file_is_not(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    name = "pat0_visit0.nii.gz"
    label = nibabel.load(folder / "labels" / name)
    values = np.asarray(label.dataobj)
    turned = nibabel.as_closest_canonical(label).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nibabel.save(turned, folder / "labels" / name)
    before = (folder / "labels" / name).read_bytes()
    prepared(folder, tmp_path / "out", "--link", "--mapping", tmp_path / "who.csv")
    case = next(r["case"] for r in who(tmp_path) if r["image"] == name)
    found = nibabel.load(tmp_path / "out" / "labelsTr" / f"{case}.nii.gz")
    assert (np.asarray(found.dataobj) == values).all()
    assert np.allclose(found.affine, label.affine)
    assert (folder / "labels" / name).read_bytes() == before


def test_the_decathlons_own_folders_need_no_labels_to_be_named(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    assert "taken for a patient of its own" in said("prepare", folder, tmp_path / "out", "--seed", 1)
    assert len(listed(tmp_path / "out")["patients"]) == 12


# ---- DICOM


def test_dicom_series_with_labels_become_volumes_in_their_place(tmp_path: Path) -> None:
    for name, patient, seed in (("a/ct1", "4711", 1), ("a/ct2", "4711", 2), ("b/ct", "4712", 3), ("c/ct", "4713", 4)):
        write_series(tmp_path / "in" / name, patient, seed=seed)
    from worker.data.dicom import series  # not there wherever the other tests run
    from worker.data.dicom_files import read_series

    found = series(find(tmp_path / "in")).sources
    for source in found:
        volume = read_series(source)
        label = type(volume)((volume.values > 500).astype(np.uint8), volume.affine)
        if source.name != "a/ct2":
            (tmp_path / "labels").mkdir(exist_ok=True)
            name = source.identity if source.patient == "4712" else source.name.replace("/", "-")
            (tmp_path / "labels" / source.name).parent.mkdir(exist_ok=True)
            target = tmp_path / "labels" / (f"{name}.nii.gz" if source.patient == "4712" else f"{source.name}.nii.gz")
            save_nifti(label, target)
    arguments = ("prepare", tmp_path / "in", tmp_path / "out", "--labels", tmp_path / "labels", "--seed", 2)
    with pytest.raises(ConfigError, match="a/ct2: no label"):
        said(*arguments)
    assert not list(tmp_path.glob("out*"))
    text = said(*arguments, "--skip-unlabelled")
    assert "left out without a label: 1 images" in text
    assert "patient of its own" not in text
    assert len(entries(tmp_path / "out")) == 3
    assert listed(tmp_path / "out")["modality"] == {"0": "CT"}
    for entry in entries(tmp_path / "out"):
        image, label_read = (nibabel.load(tmp_path / "out" / entry[key]) for key in ("image", "label"))
        assert ((np.asarray(image.dataobj) > 500) == np.asarray(label_read.dataobj)).all()
    raw = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"Doe" not in raw
    assert b"4711" not in raw


def test_without_the_libraries_that_read_dicom_their_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in" / "a")
    monkeypatch.delitem(sys.modules, "worker.data.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"need pydicom; install it with: pip install 'fledge-fl\[dicom\]'"):
        said("prepare", tmp_path / "in", tmp_path / "out", "--task", "classification")


# ---- classification


def films(folder: Path) -> Path:
    dice = np.random.default_rng(0)
    for number in range(10):
        path = folder / ("ill" if number % 3 == 0 else "well") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (8, 9)).astype(np.uint8)).save(path)
    return folder


def test_classes_are_folders(tmp_path: Path) -> None:
    said("prepare", films(tmp_path / "in"), tmp_path / "out", "--task", "classification", "--seed", 2)
    found = listed(tmp_path / "out")
    assert found["labels"] == {"0": "ill", "1": "well"}
    assert sorted(entry["label"] for entry in entries(tmp_path / "out")) == [0] * 4 + [1] * 6
    assert list((tmp_path / "out" / "labelsTr").iterdir()) == []


def picture(path: Path, values: np.ndarray, mode: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)


@pytest.mark.parametrize("link", ["--copy", "--link"])
def test_pictures_of_any_mode_are_what_a_person_sees_whatever_reads_them(tmp_path: Path, link: str) -> None:
    dice = np.random.default_rng(0)
    seen = {}
    for number, mode in enumerate(("", "P", "RGB", "RGBA", "LA", "")):
        seen[f"a/{number}.png"] = dice.integers(0, 256, (8, 9)).astype(np.uint8)
        picture(tmp_path / "in" / f"a/{number}.png", seen[f"a/{number}.png"], mode)
    more = ("--task", "classification", "--validation", 0, "--mapping")
    said("prepare", tmp_path / "in", tmp_path / "grey", *more, tmp_path / "who.csv", link)
    for row in who(tmp_path):
        with Image.open(tmp_path / "grey" / "imagesTr" / f"{row['case']}.png") as found:
            assert found.mode == "L"
            assert (np.asarray(found) == seen[row["image"]]).all()
    picture(tmp_path / "in" / "a" / "red.png", np.full((8, 9, 3), (200, 0, 0), np.uint8))
    said("prepare", tmp_path / "in", tmp_path / "colour", *more, tmp_path / "two.csv", link)
    for path in (tmp_path / "colour" / "imagesTr").iterdir():
        with Image.open(path) as found:
            assert found.mode == "RGB"
    figures = json.loads(said("stats", tmp_path / "colour", "--json", "--unsuppressed"))["figures"]
    assert figures["intensity.c2.all.mean.min"] == 0


def test_the_federations_classes_have_their_numbers_and_those_that_are_missing_are_said(tmp_path: Path) -> None:
    more = ("--task", "classification", "--seed", 2)
    text = said("prepare", films(tmp_path / "in"), tmp_path / "out", *more, "--classes", "covid,well,ill")
    assert listed(tmp_path / "out")["labels"] == {"0": "covid", "1": "well", "2": "ill"}
    assert sorted(entry["label"] for entry in entries(tmp_path / "out")) == [1] * 6 + [2] * 4
    assert "classes that no image here has: covid\n" in text
    assert "numbered by what is here" not in text
    assert "numbered by what is here" in said("prepare", tmp_path / "in", tmp_path / "two", *more)
    for wrong, sentence in (
        (("--classes", "covid,well"), "the classes ill are not among"),
        (("--label-name", "1=ill"), "class 1 here is well, and another name would not give it another number"),
        (("--label-name", "2=covid"), "no image here has class 2"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            said("prepare", tmp_path / "in", tmp_path / "three", *more, *wrong)
        assert not list(tmp_path.glob("three*"))


@pytest.mark.parametrize("names", [("--classes", "background,liver,spleen"), ("--label-name", "2=spleen")])
def test_a_segmentation_carries_classes_that_no_label_here_has(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = volumes(tmp_path / "in")
    assert "classes that no image here has: spleen\n" in prepared(folder, tmp_path / "out", *names)
    assert listed(tmp_path / "out")["labels"]["2"] == "spleen"
    overwrite(label(folder), np.full((6, 5, 4), 3, np.uint8))
    if names[0] == "--classes":
        with pytest.raises(ConfigError, match=r"visit0.nii.gz holds 3, and --classes names 0 to 2"):
            prepared(folder, tmp_path / "two", *names)


def test_classes_stand_in_a_list(tmp_path: Path) -> None:
    films(tmp_path / "in")
    rows = [f"{path.relative_to(tmp_path / 'in')},{path.parent.name}" for path in (tmp_path / "in").rglob("*.png")]
    (tmp_path / "classes.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    more = ("--task", "classification", "--seed", 2)
    said("prepare", tmp_path / "in", tmp_path / "one", *more)
    said(
        "prepare",
        tmp_path / "in",
        tmp_path / "two",
        *more,
        "--labels",
        tmp_path / "classes.csv",
        "--key",
        tmp_path / "one" / ".patients.key",
    )
    assert listed(tmp_path / "one") | {"name": ""} == listed(tmp_path / "two") | {"name": ""}


def test_parts_of_a_split_are_not_taken_for_classes(tmp_path: Path) -> None:
    for part in ("train", "val", "Test"):
        films(tmp_path / "in" / part)
    with pytest.raises(ConfigError, match="the folders Test, train, val are parts of a split and no classes"):
        said("prepare", tmp_path / "in", tmp_path / "out", "--task", "classification")


@pytest.mark.parametrize("written", ["./{}", "{}", "/archive/films/{}"])
@pytest.mark.parametrize("between", ["/", "\\"])
def test_a_list_may_write_paths_as_another_system_does(tmp_path: Path, written: str, between: str) -> None:
    folder = films(tmp_path / "in")
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in folder.rglob("*.png")]
    lines = [written.format(row).replace("/", between) for row in rows]
    (tmp_path / "classes.csv").write_text("\n".join(["image,label", *lines]))
    listing = ("--labels", tmp_path / "classes.csv", "--validation", 0)
    said("prepare", folder, tmp_path / "out", "--task", "classification", *listing)
    assert sorted(entry["label"] for entry in entries(tmp_path / "out")) == [0] * 4 + [1] * 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image\n1.png\n", "the first line has to be image,label"),
        ("image,label\nill/0.png,\n", "line 2: write an image and its class"),
        ("image,label\nill/0.png,ill\nill/0.png,well\n", "has two classes, ill, well"),
        ("image,label\n77.png,ill\n", "label 77.png belongs to no image"),
        ("image,label\nill/0.png,ill\n", "no label"),
    ],
)
def test_a_list_of_classes_that_does_not_fit_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        said("prepare", films(tmp_path / "in"), tmp_path / "out", "--task", "classification", "--labels",
             tmp_path / "classes.csv")  # fmt: skip


# ---- JPEG


def jpeg(path: Path, mode: str, turned: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turned
    ramp = np.add.outer(np.arange(16) * 9, np.arange(24) * 4).astype(np.uint8)
    Image.fromarray(ramp).convert(mode).save(path, "jpeg", quality=95, exif=exif)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("turned", [1, 3, 6, 8])
def test_jpeg_becomes_png_as_a_person_sees_it(tmp_path: Path, mode: str, turned: int) -> None:
    for name in "ab":
        jpeg(tmp_path / "in" / name / f"{name}.wrong-ending", mode, turned)
    more = ("--task", "classification", "--validation", 0, "--drop-duplicates", "--patients", "wrong")
    said("prepare", tmp_path / "in", tmp_path / "out", *more)
    (entry,) = entries(tmp_path / "out")
    assert entry["image"].endswith(".png")
    with Image.open(tmp_path / "out" / entry["image"]) as found, Image.open(tmp_path / "in/a/a.wrong-ending") as source:
        assert (found.format, found.mode, found.size) == ("PNG", "L", (24, 16) if turned < 5 else (16, 24))
        values = np.asarray(source.convert("L"))
        assert (np.asarray(found) == np.rot90(values, {1: 0, 3: 2, 6: 3, 8: 1}[turned])).all()


def test_jpeg_for_print_cut_or_as_a_label_is_refused(tmp_path: Path) -> None:
    arguments = ("prepare", tmp_path / "in", tmp_path / "out", "--task", "classification", "--validation", 0)
    jpeg(tmp_path / "in" / "a" / "x.jpg", "CMYK")
    with pytest.raises(ConfigError, match=r"a/x.jpg has colours for print \(CMYK\)"):
        said(*arguments)
    jpeg(tmp_path / "in" / "a" / "x.jpg", "L")
    (tmp_path / "in" / "a" / "x.jpg").write_bytes((tmp_path / "in" / "a" / "x.jpg").read_bytes()[:-60])
    with pytest.raises(ConfigError, match=r"a/x.jpg cannot be read"):
        said(*arguments)
    jpeg(tmp_path / "in" / "a" / "x.jpg", "L")
    jpeg(tmp_path / "labels" / "x.jpg", "L")
    with pytest.raises(ConfigError, match=r"label x.jpg is JPEG, which does not keep numbers of classes"):
        said("prepare", tmp_path / "in" / "a", tmp_path / "out", "--labels", tmp_path / "labels", "--validation", 0)


def test_jpeg_beside_dicom_is_a_preview_and_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a" / "ct")
    jpeg(tmp_path / "in" / "a" / "x.jpg", "L")
    text = said("prepare", tmp_path / "in", tmp_path / "out", "--task", "classification", "--validation", 0)
    assert "left out, JPEG pictures beside DICOM: 1 (a/x.jpg)" in text


# ---- what is left out


def spoil(folder: Path) -> None:
    """Make three of the images of `volumes` such that they cannot be used."""
    values = np.full((6, 5, 4), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), image(folder, "pat0_visit1.nii.gz"))
    raw = image(folder, "pat3_visit0.nii.gz").read_bytes()
    image(folder, "pat3_visit0.nii.gz").write_bytes(raw[: len(raw) // 2 + 200])
    nibabel.save(nibabel.Nifti1Image(values + 1j, np.eye(4)), image(folder, "pat5_visit0.nii.gz"))


@pytest.mark.parametrize("how", ["--copy", "--link"])
def test_images_that_cannot_be_used_are_left_out_with_their_labels_if_that_is_wanted(tmp_path: Path, how: str) -> None:
    folder, out = volumes(tmp_path / "in"), tmp_path / "out"
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"or go on without such images, with --skip-refused$"):
        prepared(folder, out, how)
    assert not list(tmp_path.glob("out*"))
    text = prepared(folder, out, how, "--skip-refused", "--mapping", tmp_path / "who.csv")
    assert "left out, images that cannot be used: 3\n" in text
    for name in ("pat0_visit1", "pat3_visit0", "pat5_visit0"):
        assert f"  {name}.nii.gz " in text
    kept = {name for entry in entries(out) for name in (entry["image"], entry["label"])}
    assert len(kept) == 18
    assert kept == {f"{path.parent.name}/{path.name}" for path in out.glob("*Tr/*")}
    assert len(who(tmp_path)) == 9
    assert sum(len(images) for images in listed(out)["patients"].values()) == 9
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_many_refusals_are_told_by_the_first_ten_and_their_number(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in", 14)
    for number in range(12):
        image(folder, f"pat{number // 2}_visit{number % 2}.nii.gz").write_bytes(b"n+1".rjust(347) + b"\0" * 20)
    text = prepared(folder, tmp_path / "out", "--skip-refused", "--validation", 0)
    assert "left out, images that cannot be used: 12\n" in text
    assert text.count(" cannot be read (") == 10
    assert "\n  and 2 more\n" in text


def test_pictures_that_cannot_be_used_are_left_out_and_no_class_gets_another_number(tmp_path: Path) -> None:
    folder = films(tmp_path / "in")
    for name in ("a/clear", "ill/clear", "well/clear"):
        picture(folder / f"{name}.png", np.full((8, 9, 4), (9, 9, 9, 0), np.uint8))
    arguments = ("prepare", folder, tmp_path / "out", "--task", "classification")
    with pytest.raises(ConfigError, match=r"a/clear.png is transparent .* with --skip-refused"):
        said(*arguments)
    text = said(*arguments, "--skip-refused")
    assert "left out, images that cannot be used: 3\n" in text
    assert "classes that no image here has: a\n" in text
    assert listed(tmp_path / "out")["labels"] == {"0": "a", "1": "ill", "2": "well"}


def test_where_every_image_is_left_out_nothing_is_made(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in", 2)
    for path in (folder / "images").iterdir():
        nibabel.save(nibabel.Nifti1Image(np.full((6, 5, 4), np.nan), np.eye(4)), path)
    with pytest.raises(ConfigError, match=r"holds no image that can be used: 2 images .*NaN.* · .*NaN"):
        prepared(folder, tmp_path / "out", "--skip-refused", "--validation", 0)
    for number in range(2):
        write_series(tmp_path / "dicom" / f"p{number}", str(number), skip=[2])
    with pytest.raises(ConfigError, match=r"holds no image that can be used: 2 images .*p0: slices are missing"):
        said("prepare", tmp_path / "dicom", tmp_path / "out", "--labels", folder / "labels", "--skip-refused")
    assert not list(tmp_path.glob("out*"))


def test_no_list_that_was_asked_for_is_empty_because_its_images_are_left_out(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    prepared(folder, tmp_path / "all", "--mapping", tmp_path / "who.csv")
    held = {Path(entry["image"]).name.partition(".")[0] for entry in listed(tmp_path / "all")["validation"]}
    for row in who(tmp_path):
        if row["case"].rpartition("-")[0] in {name.rpartition("-")[0] for name in held}:
            nothing = np.full((6, 5, 4), np.nan, np.float32)
            nibabel.save(nibabel.Nifti1Image(nothing, np.eye(4)), image(folder, row["image"]))
    with pytest.raises(ConfigError, match=r"none of the . patients falls into validation"):
        prepared(folder, tmp_path / "out", "--skip-refused")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_label_of_a_series_that_is_left_out_is_no_other_series(tmp_path: Path, task: str) -> None:
    from worker.data.dicom import series
    from worker.data.dicom_files import read_series

    write_series(tmp_path / "in" / "a" / "ct", "1", seed=1, skip=[2])
    write_series(tmp_path / "in" / "b" / "ct", "2", seed=2)
    write_series(tmp_path / "in" / "c" / "ct", "3", seed=3)
    labels = tmp_path / "labels"
    if task == "classification":
        labels = tmp_path / "labels.csv"
        labels.write_text("image,label\n1,alone\nb/ct,well\n3,ill\n")
    else:
        for source in series(find(tmp_path / "in"), Admission(skip_refused=True)).sources:
            volume = read_series(source)
            (labels / source.name).parent.mkdir(parents=True)
            save_nifti(
                type(volume)((volume.values > 500).astype(np.uint8), volume.affine), labels / f"{source.name}.nii.gz"
            )
        (labels / "a").mkdir()
        shutil.copy(labels / "b" / "ct.nii.gz", labels / "a")
    arguments = ("prepare", tmp_path / "in", tmp_path / "out", "--labels", labels, "--task", task)
    text = said(*arguments, "--skip-refused", "--validation", 0)
    assert "left out, images that cannot be used: 1\n  a/ct: slices are missing" in text
    assert len(entries(tmp_path / "out")) == 2
    if task == "classification":
        assert listed(tmp_path / "out")["labels"] == {"0": "alone", "1": "ill", "2": "well"}


# ---- what is wrong


def image(folder: Path, name: str = "pat0_visit0.nii.gz") -> Path:
    return folder / "images" / name


def label(folder: Path, name: str = "pat0_visit0.nii.gz") -> Path:
    return folder / "labels" / name


def overwrite(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.5, 0.5, 2, 1]) if affine is None else affine), path)


def link_out(folder: Path) -> None:
    (folder.parent / "elsewhere.nii.gz").write_bytes(image(folder).read_bytes())
    image(folder).unlink()
    image(folder).symlink_to(folder.parent / "elsewhere.nii.gz")


def bent(folder: Path) -> None:
    affine = np.diag([0.5, 0.5, 2, 1])
    affine[0, 3] = 1.5
    overwrite(label(folder), np.zeros((6, 5, 4), np.uint8), affine)


def huge(folder: Path) -> None:
    raw = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    raw[40:56] = np.array([4, 32767, 32767, 32767, 32767, 1, 1, 1], "<i2").tobytes()
    image(folder).unlink()
    image(folder, "pat0_visit0.nii").write_bytes(raw)


def torn(folder: Path) -> None:
    image(folder).write_bytes(image(folder).read_bytes()[:-200])


def under_another_name(folder: Path) -> None:
    for part in ("images", "labels"):
        shutil.copy(folder / part / "pat0_visit0.nii.gz", folder / part / "pat5_visit1.nii.gz")


def mixed(folder: Path) -> None:
    write_series(folder / "images" / "ct")


WRONG: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "empty": (
        lambda f: [path.unlink() for path in (f / "images").iterdir()],
        "belongs to no image|holds no image",
    ),
    "no label": (lambda f: label(f).unlink(), r"pat0_visit0.nii.gz: no label; add one"),
    "no image": (lambda f: image(f).unlink(), "label pat0_visit0.nii.gz belongs to no image"),
    "two labels": (lambda f: shutil.copy(label(f), label(f, "pat0_visit0.nii")), "has several labels"),
    "shape": (lambda f: overwrite(label(f), np.zeros((6, 5, 3), np.uint8)), "6 × 5 × 3 voxels and its image 6 × 5 × 4"),
    "affine": (bent, r"lies up to 1.5 mm beside its image"),
    "label values": (lambda f: overwrite(label(f), np.full((6, 5, 4), 0.5, np.float32)), "other values than the whole"),
    "nan": (lambda f: overwrite(image(f), np.full((6, 5, 4), np.nan, np.float32)), "no numbers"),
    "link": (link_out, "is a link that leads out of"),
    "huge": (huge, "32767 × 32767 × 32767 × 32767 voxels"),
    "torn": (torn, r"pat0_visit0.nii.gz cannot be read"),
    "other patient": (
        under_another_name,
        "pat0_visit0.nii.gz, pat5_visit1.nii.gz have the same voxels but two patients",
    ),
    "mixed": (mixed, "holds DICOM and other images"),
    "no patient": (lambda f: image(f).rename(image(f, "x.nii.gz")), "finds no patient in this path"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_images_and_labels_is_one_sentence_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    spoil, sentence = WRONG[what]
    folder = volumes(tmp_path / "in")
    spoil(folder)
    with pytest.raises(ConfigError, match=sentence) as refused:
        prepared(folder, tmp_path / "out", "--mapping", tmp_path / "who.csv")
    assert len(str(refused.value)) < 600
    assert not list(tmp_path.glob("out*"))
    assert not (tmp_path / "who.csv").exists()


def test_white_on_black_is_class_one_if_there_is_nothing_between(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    for path in (folder / "labels").iterdir():
        overwrite(path, np.asarray(nibabel.load(path).dataobj) * np.uint8(255))
    assert "255 became class 1" in prepared(folder, tmp_path / "white", "--classes", "background,vessel")
    for entry in entries(tmp_path / "white"):
        image, drawn = (np.asarray(nibabel.load(tmp_path / "white" / entry[key]).dataobj) for key in ("image", "label"))
        assert ((image > 0.5) == drawn).all()
    overwrite(label(folder), np.arange(120, dtype=np.uint8).reshape(6, 5, 4) % 3)
    assert "became" not in prepared(folder, tmp_path / "three")
    assert listed(tmp_path / "three")["labels"] == {"0": "background", "1": "1", "2": "2", "255": "255"}


def test_names_as_nnu_net_and_macs_write_them_find_their_labels(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        apart, together = (unicodedata.normalize(form, f"pat{number}_Süd.nii.gz") for form in ("NFD", "NFC"))
        (folder / "labels" / path.name).rename(folder / "labels" / together)
        path.rename(folder / "images" / apart.replace(".nii", "_0000.nii"))
    prepared(folder, tmp_path / "out")
    assert len(entries(tmp_path / "out")) == 12
    overwrite(folder / "images" / apart.replace(".nii", "_0001.nii"), np.ones((6, 5, 4), np.float32))
    with pytest.raises(ConfigError, match=r"_0001.nii.gz: further channels of an image, as nnU-Net names them; join"):
        prepared(folder, tmp_path / "two")


def test_one_patients_image_twice_is_refused_or_dropped(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    for part in ("images", "labels"):
        shutil.copy(folder / part / "pat0_visit0.nii.gz", folder / part / "pat0_visit1.nii.gz")
    with pytest.raises(ConfigError, match="say --drop-duplicates"):
        prepared(folder, tmp_path / "out")
    assert "left out as duplicates: pat0_visit" in prepared(folder, tmp_path / "out", "--drop-duplicates")
    assert len(entries(tmp_path / "out")) == 11
    assert (
        len(list((tmp_path / "out" / "imagesTr").iterdir()))
        == len(list((tmp_path / "out" / "labelsTr").iterdir()))
        == 11
    )


def test_names_with_odd_characters_are_no_trouble(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    for part in ("images", "labels"):
        (folder / part / "pat0_visit0.nii.gz").rename(folder / part / "pat0_ a\n'ü;$(x).nii.gz")
    (folder / "images" / "notes.txt").write_text("nothing")
    assert "left out, files that are no images: 1 (notes.txt)" in prepared(folder, tmp_path / "out")
    assert len(entries(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--task", "detection"), "say segmentation or classification"),
        (("--patients", "("), "is no regular expression"),
        (("--label-name", "liver"), "write NUMBER=NAME"),
        (("--label-name", "1=liver", "--label-name", "1=spleen"), "each belongs to one class"),
        (("--label-name", "1=liver", "--label-name", "2=liver"), "each belongs to one class"),
        (("--label-name", "1=liver", "--classes", "background,liver"), "say one of them"),
        (("--validation", "1.5"), "shares of the patients"),
        (("--validation", "0.000001"), "falls into validation; choose another seed"),
        (("--key", "none"), "cannot be read"),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path: Path, more: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepared(volumes(tmp_path / "in"), tmp_path / "out", *more)


def test_nothing_is_overwritten_and_nothing_lands_among_the_images(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "in")
    for name in ("out", "out.unfinished"):
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match="is there already"):
            prepared(folder, tmp_path / "out")
        (tmp_path / name).rmdir()
    with pytest.raises(ConfigError, match="would lie inside"):
        prepared(folder, folder / "images" / "out")
    with pytest.raises(ConfigError, match="is no folder"):
        said("prepare", tmp_path / "nowhere", tmp_path / "out", "--labels", folder / "labels")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StateError, match="cannot be written"):
        prepared(folder, file / "out")


# ---- figures


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    (folder / "state").mkdir(parents=True)
    (folder / "worker.toml").write_text(f"root = '{'ab' * 32}'\n{TOML}")
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    prepared(volumes(tmp_path / "in", 48), tmp_path / "out", "--label-name", "1=liver")
    return tmp_path / "out"


def test_figures_are_over_patients_and_suppressed_unless_somebody_here_says_so(dataset: Path) -> None:
    found = json.loads(said("stats", dataset, "--json"))["figures"]
    assert (found["patients"], found["patients.liver"], found["min_cell"]) == (24, 24, 10)
    assert found["spacing.z.median"] == 2
    assert found["shape.x.mean"] == 6
    assert found["intensity.c0.foreground.mean.mean"] > 0.5
    assert "spacing.z.p25" not in found  # 24 patients have not ten on either side
    assert not [name for name in found if name.endswith((".min", ".max"))]
    everything = json.loads(said("stats", dataset, "--json", "--unsuppressed"))["figures"]
    assert everything["intensity.c0.all.p1.min"] < found["intensity.c0.all.p1.median"]
    values = [np.asarray(nibabel.load(dataset / each["image"]).dataobj) for each in entries(dataset)]
    assert everything["intensity.c0.all.mean.mean"] == pytest.approx(np.mean([v.mean() for v in values]), rel=1e-3)
    assert json.loads(said("stats", dataset, "--json", "--min-cell", 25))["figures"]["patients"] == "<25"


def test_figures_are_drawn_as_they_are_told(dataset: Path, tmp_path: Path) -> None:
    text = said("stats", dataset, "--plot", tmp_path / "x.png")
    assert f"{tmp_path / 'x.png'}: 8 histograms" in text
    with Image.open(tmp_path / "x.png") as drawn:
        assert drawn.format == "PNG"
    with pytest.raises(ConfigError, match="is there already; nothing is overwritten"):
        said("stats", dataset, "--plot", tmp_path / "x.png")
    with pytest.raises(ConfigError, match="nothing is of 25 patients or more"):
        said("stats", dataset, "--min-cell", 25, "--plot", tmp_path / "y.png")


def test_figures_leave_only_where_the_policy_says_so(dataset: Path, kit: Path) -> None:
    share = ("stats", dataset, "--json", "--share", "--kit", kit)
    with pytest.raises(ConfigError, match=r"write `statistics = true` into policy.toml"):
        said(*share)
    assert list((kit / "state").iterdir()) == []
    (kit / "policy.toml").write_text("statistics = true\n")
    said(*share)
    document = kit / "state" / "statistics.json"
    assert stat.S_IMODE(document.stat().st_mode) == 0o600
    log = kit / "state" / "worker.log"
    with pytest.raises(Unauthorized, match="lets no figures"):
        Inspector(kit / "state", log_file=log, environment={}).answer("stats", {})
    looking = Inspector(kit / "state", log_file=log, environment={}, statistics=True)
    _, values = looking.answer("stats", {})
    assert (
        dict(zip(values["figure"], values["value"], strict=True))
        == json.loads(said("stats", dataset, "--json"))["figures"]
    )
    with pytest.raises(ConfigError, match="takes no arguments"):
        looking.answer("stats", {"path": "x"})
    document.write_text(document.read_text().replace("24", "3"))
    with pytest.raises(ConfigError, match="write them again"):
        looking.answer("stats", {})
    document.unlink()
    with pytest.raises(StateError, match="no figures are shared here"):
        looking.answer("stats", {})


@pytest.mark.parametrize("allowed", [True, False])
def test_a_worker_answers_by_the_policy_it_was_started_with(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    new_federation(
        tmp_path / "clinics",
        name="clinics",
        sites=["alpha"],
        broker="memory:",
        store=(tmp_path / "store").as_uri(),
    )
    site = tmp_path / "clinics" / "sites" / "alpha"
    config = [line for line in (site / "worker.toml").read_text().splitlines() if not line.startswith("trainer")]
    (site / "worker.toml").write_text("\n".join(config))
    (site / "policy.toml").write_text("statistics = true\n")
    (site / "state").mkdir(exist_ok=True)
    said("stats", dataset, "--share", "--kit", site)
    (site / "policy.toml").write_text(f"statistics = {str(allowed).lower()}\n")
    opened: list[Inspector] = []

    class Seen(Inspector):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            opened.append(self)

    monkeypatch.setattr("fledge.bootstrap.Inspector", Seen)
    with open_worker(site / "worker.toml"):
        if allowed:
            assert 24 in opened[0].answer("stats", {})[1]["value"]
        else:
            with pytest.raises(Unauthorized, match="lets no figures"):
                opened[0].answer("stats", {})


def test_a_few_patients_more_are_not_told_by_the_difference(tmp_path: Path, dataset: Path, kit: Path) -> None:
    (kit / "policy.toml").write_text("statistics = true\n")
    said("stats", dataset, "--share", "--kit", kit)
    prepared(volumes(tmp_path / "more", 52), tmp_path / "two", "--label-name", "1=liver")
    with pytest.raises(ConfigError, match="26 patients now and 24 when figures were last shared"):
        said("stats", tmp_path / "two", "--share", "--kit", kit)
    prepared(volumes(tmp_path / "most", 70), tmp_path / "three", "--label-name", "1=liver")
    said("stats", tmp_path / "three", "--share", "--kit", kit)


@pytest.mark.parametrize("name", ["Doe Jane", "case.nii.gz", "1.2.840.10008.1", "a/b"])
def test_a_class_is_not_shared_under_a_name_that_looks_private(dataset: Path, kit: Path, name: str) -> None:
    (kit / "policy.toml").write_text("statistics = true\n")
    document = listed(dataset) | {"labels": {"0": "background", "1": name}}
    (dataset / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="names of classes leave the site"):
        said("stats", dataset, "--share", "--kit", kit)
    assert not (kit / "state" / "statistics.json").exists()


def test_nothing_is_shared_of_images_that_may_all_be_of_one_patient(dataset: Path, kit: Path) -> None:
    (kit / "policy.toml").write_text("statistics = true\n")
    document = listed(dataset)
    del document["patients"]
    (dataset / "dataset.json").write_text(json.dumps(document))
    assert "every image counted as one" in said("stats", dataset)
    with pytest.raises(ConfigError, match="does not say whose images"):
        said("stats", dataset, "--share", "--kit", kit)
    assert not (kit / "state" / "statistics.json").exists()


def test_sharing_needs_a_site_and_is_never_unsuppressed(dataset: Path, tmp_path: Path, kit: Path) -> None:
    with pytest.raises(ConfigError, match="name the folder of"):
        said("stats", dataset, "--share")
    with pytest.raises(ConfigError, match="do not go together"):
        said("stats", dataset, "--share", "--unsuppressed", "--kit", kit)
    (kit / "state").rmdir()
    with pytest.raises(StateError, match="has the worker been started here"):
        said("stats", dataset, "--share", "--kit", kit)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("[]", "is no datalist"),
        ("{}", "lists no image"),
        ('{"training": [{"image": 3}]}', "is no datalist"),
        ('{"training": [{"image": []}]}', "is no datalist"),
        ('{"training": [{"image": "../x.nii"}]}', "which lies elsewhere"),
        ('{"training": [{"image": "/x.nii"}]}', "which lies elsewhere"),
        ('{"training": [{"image": "no.nii"}]}', "no.nii"),
        ('{"training": ["dataset.json"]}', "is no NIfTI, PNG or JPEG file"),
        ('{"training": [{"image": "a.png", "label": 3}]}', "which `labels` of the datalist does not name"),
        ('{"training": [{"image": "a.png"}], "labels": {"0": "x", "1": "x"}}', "have the same name"),
    ],
)
def test_a_datalist_that_is_wrong_is_refused(tmp_path: Path, document: str, sentence: str) -> None:
    (tmp_path / "dataset.json").write_text(document)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=sentence):
        said("stats", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        said("stats", tmp_path, "--list", "other.json")


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the hippocampus volumes of the Decathlon are not here")
def test_the_hippocampus_of_the_decathlon_is_what_it_is_known_to_be(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for path in sorted((HIPPOCAMPUS / folder).glob("*.nii.gz"))[:45]:
            shutil.copy(path, tmp_path / "in" / folder)
    names = ("--label-name", "1=anterior", "--label-name", "2=posterior", "--modality", "MRI")
    said("prepare", tmp_path / "in", tmp_path / "out", *names)
    found = json.loads(said("stats", tmp_path / "out", "--json"))["figures"]
    assert (found["patients"], found["patients.anterior"], found["spacing.x.median"]) == (45, 45, 1)
    assert 31 <= found["shape.x.p25"] <= found["shape.x.p75"] <= 43
    assert found["voxels.anterior.mean"] > found["voxels.posterior.mean"] > 1000
