"""Files from somebody else's disk: whatever is in them, they are refused by name, and before they fill the memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.uid import DeflatedExplicitVRLittleEndian

from protocol.errors import ConfigError
from tests.support import dicom
from worker.bundles.check_data import Expected, duplicates, item_findings
from worker.data.datalist import Task
from worker.data.datalist_parser import parse
from worker.data.dicom import series
from worker.data.dicom_files import read_series
from worker.data.discovery import find, kind_of
from worker.data.images import on_grid, read_image
from worker.data.nifti import save_nifti
from worker.data.sources import ImageKind
from worker.data.volumes import Volume, check_values
from worker.statistics.document import check_change, check_names, load
from worker.statistics.figures import CaseFigures, DataSummary
from worker.statistics.measure import measure


def nifti() -> bytes:
    values = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    return nibabel.Nifti1Image(values, np.eye(4)).to_bytes()


def picture(kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "ending"),
    [(ImageKind.NIFTI, "nii"), (ImageKind.NIFTI, "nii.gz"), (ImageKind.PNG, "png"), (ImageKind.JPEG, "jpeg")],
)
def test_whatever_bytes_an_image_has_it_is_read_or_refused(tmp_path: Path, kind: ImageKind, ending: str) -> None:
    dice, path = random.Random(7), tmp_path / f"x.{ending}"
    good = nifti() if kind is ImageKind.NIFTI else picture(ending)
    refused = 0
    for _ in range(400):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            raw[dice.randrange(min(len(raw), 352))] = dice.choice((0, 1, 127, 128, 255))
        path.write_bytes(gzip.compress(raw, 1) if ending.endswith("gz") else raw)
        if kind_of(path) is not kind:
            continue
        try:
            volume = read_image(path, kind, "x")
            check_values("x", volume.values)
            on_grid(volume, Volume(np.zeros((4, 5, 6)), np.eye(4)), "x")
        except ConfigError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("axes", [np.zeros(3), np.array([1.0, 1.0, 0.0]), np.array([1.0, np.nan, 1.0])])
def test_an_image_without_a_place_in_space_is_refused(tmp_path: Path, axes: np.ndarray[Any, Any]) -> None:
    raw, place = bytearray(nifti()), np.hstack([np.diag(axes), np.zeros((3, 1))])
    raw[252:256], raw[280:328] = struct.pack("<hh", 0, 1), place.astype("<f4").tobytes()
    (tmp_path / "x.nii").write_bytes(raw)
    with pytest.raises(ConfigError, match="x lies nowhere: the axes"):
        read_image(tmp_path / "x.nii", ImageKind.NIFTI, "x")


def test_what_stands_between_header_and_voxels_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    raw, length = bytearray(nifti()), 2**30
    raw[108:112], raw[348] = struct.pack("<f", 352 + length), 1
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw[:352]) + struct.pack("<ii", length, 0)))
    with pytest.raises(ConfigError, match="voxels begin behind"):
        read_image(path, ImageKind.NIFTI, "x")
    (found,) = item_findings([{"image": str(path)}], Expected(loaded=("image",)))
    assert "voxels begin behind" in str(found)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        *((nibabel.Nifti1Image, ending) for ending in ("nii", "nii.gz")),
        *((nibabel.Nifti2Image, ending) for ending in ("nii", "nii.gz")),
        (nibabel.Nifti1Pair, "hdr"),
    ],
)
def test_no_memory_is_taken_for_voxels_that_no_file_holds(
    tmp_path: Path, kind: type[nibabel.Nifti1Pair], ending: str
) -> None:
    path, second = tmp_path / f"x.{ending}", kind is nibabel.Nifti2Image
    nibabel.save(kind(np.ones((4, 5, 6)), np.eye(4)), path)
    whole = path.read_bytes()
    raw = bytearray(gzip.decompress(whole) if ending.endswith("gz") else whole)
    sizes = (3, 32_000, 32_000, 2, 1, 1, 1, 1)
    raw[16 if second else 40 : 80 if second else 56] = struct.pack("<8q" if second else "<8h", *sizes)
    path.write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
    with pytest.raises(ConfigError, match=r"it has 16,384,000,000 bytes of voxels, and its file has [0-9,]+;"):
        read_image(path, ImageKind.NIFTI, "x")


def test_frames_are_not_made_because_a_header_counts_them(tmp_path: Path) -> None:
    def change(image: Dataset, index: int) -> None:
        image.NumberOfFrames = 2**31 - 1

    dicom.write_series(tmp_path / "series", slices=1, change=change)
    with pytest.raises(ConfigError, match=r"IM0000 says that it has 2,147,483,647 frames; .*or leave it out"):
        series(find(tmp_path))


def test_a_deflated_dicom_file_is_refused_unread(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / "series")
    for path in (files := sorted(path for path in tmp_path.rglob("*") if path.is_file())):
        slice_of = dcmread(path)
        slice_of.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        slice_of.save_as(path)
    with pytest.raises(ConfigError, match=r"compressed as a whole .*export it uncompressed"):
        series(find(tmp_path))
    bare = files[0].read_bytes()[132:]  # as files of old are, which begin with their first group
    for path in files:
        path.write_bytes(bare)
    with pytest.raises(ConfigError, match="compressed as a whole"):
        series(find(tmp_path))


def test_dicom_in_a_bundles_list_is_judged_as_for_training(tmp_path: Path) -> None:
    """MONAI reads all slices of a folder as one volume, whosever they are and whatever is missing."""
    for name, skip in (("whole", ()), ("gap", (2,)), ("two", ())):
        dicom.write_series(tmp_path / name, skip=skip)
    dicom.write_series(tmp_path / "two" / "second")
    found = list(
        item_findings([{"image": str(tmp_path / n)} for n in ("whole", "gap", "two")], Expected(loaded=("image",)))
    )
    told = [str(each) for each in found]
    assert len(told) == 2
    assert "gap: would be read wrongly" in told[0]
    assert "slices are missing" in told[0]
    assert "two: is read as one image, and holds 2" in told[1]
    assert all("fledge data prepare" in each for each in told)


def test_figures_of_dicom_are_not_made_of_one_slice(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / "a", slices=1)
    (file,) = (tmp_path / "a").iterdir()
    datalist = parse(json.dumps({"training": [{"image": f"a/{file.name}", "label": 0}], "labels": {"0": "x"}}), "d")
    with pytest.raises(ConfigError, match="prepare the data with `fledge data prepare`"):
        list(measure(datalist, tmp_path, lambda done, total: None))


ODD: Mapping[str, tuple[bytes, ...]] = {
    "Rows": (b"", b"\1\0\2\0"),
    "Columns": (b"", b"\1\0\2\0"),
    "PixelSpacing": (b"", b"1 ", b"a\\b ", b"0\\0 "),
    "ImagePositionPatient": (b"", b"1\\2 ", b"nan\\1\\1 "),
    "ImageOrientationPatient": (b"", b"1 ", b"1\\2\\3\\4\\5\\x ", b"0\\0\\0\\0\\0\\0 "),
    "RescaleSlope": (b"", b"x ", b"1e999 "),
    "BitsAllocated": (b"\7\0",),
    "PixelData": (b"", b"\0\0"),
}


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize(("tag", "raw"), [(tag, raw) for tag, values in ODD.items() for raw in values])
def test_whatever_a_dicom_header_says_it_is_read_or_refused(
    tmp_path: Path, tag: str, raw: bytes, every: bool, slices: int
) -> None:
    def change(image: Dataset, index: int) -> None:
        if every or index == 0:
            place = image[tag].tag
            odd = RawDataElement(place, image[tag].VR, len(raw), raw, 0, False, True)
            dict.__setitem__(image._dict, place, odd)

    dicom.write_series(tmp_path / "series", slices=slices, change=change)
    try:
        for source in series(find(tmp_path)).sources:
            volume = read_series(source)
            check_values(source.name, volume.values)
            save_nifti(volume, tmp_path / "x.nii")
    except ConfigError as error:
        told = str(error)
        assert "IM00" in told or "series" in told


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not any(find(tmp_path).files.values())


@pytest.mark.parametrize("name", ["x" * 5000 + ".nii", "a\0b.nii", "circle.nii", "pipe.png"])
def test_a_name_in_a_list_that_no_file_can_have_is_a_finding(tmp_path: Path, name: str) -> None:
    (tmp_path / "circle.nii").symlink_to(tmp_path / "circle.nii")
    os.mkfifo(tmp_path / "pipe.png")
    items: list[Mapping[str, Any]] = [{"image": str(tmp_path / name)}]
    (found,) = item_findings(items, Expected(loaded=("image",)))
    assert "is not there" in str(found) or "is no file" in str(found)
    assert not list(duplicates(items, items, ("image",)))


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", ".", "x" * 5000, "pipe"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_figures_are_not_made_of_what_is_no_file(tmp_path: Path, name: str, key: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good.nii").write_bytes(nifti())
    item = {"image": "good.nii", "label": "good.nii", key: name}
    text = json.dumps({"training": [item], "labels": {}})
    with pytest.raises(
        ConfigError, match=r"is not there, or is no file; put it there|is no path and none of the class"
    ):
        list(measure(parse(text, "dataset.json"), tmp_path, lambda done, total: None))


@pytest.mark.parametrize("total", [8, 40])
def test_names_of_classes_that_are_patients_are_not_shared(total: int) -> None:
    patients = [f"smith_{number}" for number in range(total)]
    cases = [CaseFigures(patient=name, figures={"shape.x": 5.0}, voxels={name: 1}) for name in patients]
    figures = DataSummary(task=Task.CLASSIFICATION, classes=patients).of(cases)
    if any("smith" in name for name in figures):
        with pytest.raises(ConfigError, match="whose folders were taken for classes"):
            check_names(figures)
    assert total < 10 or any("smith" in name for name in figures)


BEFORE = {"min_cell": 10, "patients": 50, "patients.lung": 20, "spacing.x.mean": 1.5}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"patients": 51}),
        ({"patients": "withheld"}, {"patients": "withheld", "patients.lung": 21}),
        ({}, {"patients": 60, "patients.lung": 21}),
        ({}, {"spacing.x.mean": 1.6}),
        ({"patients": "withheld"}, {"patients": "withheld", "spacing.x.mean": 1.6}),
    ],
)
def test_no_two_sets_of_figures_tell_of_a_few_patients(before: dict[str, Any], now: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="figures were last shared"):
        check_change({**BEFORE, **before}, {**BEFORE, **now})


@pytest.mark.parametrize(
    "now", [{}, {"patients": 60, "patients.lung": 30, "spacing.x.mean": 1.6}, {"spacing.x.median": 1.5}]
)
def test_other_figures_may_be_shared(now: dict[str, Any]) -> None:
    check_change(BEFORE, {**BEFORE, **now})


@pytest.mark.parametrize("figure", [10**400, float("nan"), float("-inf"), True, [1]])
def test_figures_that_are_no_numbers_are_not_told(figure: object) -> None:
    with pytest.raises(ConfigError, match="a figure is not what may leave a site"):
        load(json.dumps({"version": 1, "figures": {"min_cell": 10, "shape.x": figure}}).encode())
