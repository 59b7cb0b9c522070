"""DICOM series become volumes with the right values in the right place, or are refused in one sentence."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, ComputedRadiographyImageStorage, UltrasoundImageStorage

from protocol.errors import ConfigError
from tests.support import dicom
from tests.support.dicom import write_series
from worker.data.dicom import series
from worker.data.dicom_files import read_series
from worker.data.discovery import find
from worker.data.nifti import save_nifti
from worker.data.sources import Admission
from worker.data.volumes import Volume


def only(folder: Path) -> Volume:
    """The one volume in a folder."""
    (source,) = series(find(folder)).sources
    return read_series(source)


def as_film(image: Dataset) -> None:
    """Make a slice an X-ray, which lies nowhere."""
    del image.ImagePositionPatient, image.ImageOrientationPatient
    image.Modality, image.SOPClassUID = "CR", ComputedRadiographyImageStorage


def as_written(volume: Volume, written: dicom.Series) -> np.ndarray:
    """The values at the places in the patient where the scanner saw them."""
    shape = written.values.shape[::-1]
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    world = written.affine @ np.vstack([voxels, np.ones(voxels.shape[1])])
    assert volume.affine is not None
    indices = (np.linalg.inv(volume.affine) @ world)[:3]
    assert np.abs(indices - indices.round()).max() < 1e-4
    found: np.ndarray = volume.values[tuple(indices.round().astype(int))].reshape(shape).transpose(2, 1, 0)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_every_voxel_of_an_oblique_series_is_where_the_scanner_says(tmp_path: Path, seed: int) -> None:
    written = write_series(tmp_path / "in", seed=seed, slices=4 + seed)
    save_nifti(only(tmp_path / "in"), tmp_path / "out.nii.gz")
    image = nibabel.load(tmp_path / "out.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert (as_written(Volume(np.asarray(image.dataobj), image.affine), written) == written.values).all()


def test_values_between_whole_numbers_survive_as_float32(tmp_path: Path) -> None:
    def half(image: Dataset, _: int) -> None:
        image.RescaleSlope = "0.5"

    written = write_series(tmp_path / "in", change=half)
    save_nifti(only(tmp_path / "in"), tmp_path / "out.nii")
    image = nibabel.load(tmp_path / "out.nii")
    assert image.get_data_dtype() == np.float32
    expected = (written.values - dicom.INTERCEPT) * 0.5 + dicom.INTERCEPT
    assert (as_written(Volume(np.asarray(image.dataobj), image.affine), written) == expected).all()


def test_windows_inverted_greys_and_units_of_a_vendors_own_do_not_change_what_was_measured(tmp_path: Path) -> None:
    def shown_darkly(image: Dataset, _: int) -> None:
        image.PhotometricInterpretation = "MONOCHROME1"
        image.WindowCenter, image.WindowWidth = "40", "400"
        other = Dataset()
        other.RealWorldValueFirstValueMapped, other.RealWorldValueLastValueMapped = 0, 4000
        other.RealWorldValueSlope, other.RealWorldValueIntercept, other.LUTLabel = 3.0, 1.0, "of a vendor"
        units = Dataset()
        units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = "1", "UCUM", "no units"
        other.MeasurementUnitsCodeSequence = [units]
        image.RealWorldValueMappingSequence = [other]

    plain, dark = write_series(tmp_path / "a"), write_series(tmp_path / "b", change=shown_darkly)
    assert (plain.values == dark.values).all()
    assert (only(tmp_path / "a").values == only(tmp_path / "b").values).all()


def test_a_file_of_many_frames_is_the_volume_that_its_slices_are(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    dicom.write_frames(tmp_path / "many" / "file", list((tmp_path / "in").iterdir()))
    one, many = only(tmp_path / "in"), only(tmp_path / "many")
    assert one.affine is not None
    assert many.affine is not None
    assert (one.values == many.values).all()
    assert np.allclose(one.affine, many.affine, atol=1e-4)


def test_an_x_ray_has_a_size_and_no_place_and_dense_is_bright(tmp_path: Path) -> None:
    def film(image: Dataset, _: int) -> None:
        as_film(image)

    def negative(image: Dataset, index: int) -> None:
        film(image, index)
        image.PhotometricInterpretation = "MONOCHROME1"

    written = write_series(tmp_path / "a", slices=1, change=film)
    volume = only(tmp_path / "a")
    assert (volume.values[..., 0] == written.values[0].T).all()
    assert volume.spacing[:2] == pytest.approx(dicom.SPACING[::-1])
    write_series(tmp_path / "b", slices=1, change=negative)
    assert np.corrcoef(only(tmp_path / "b").values.ravel(), volume.values.ravel())[0, 1] == pytest.approx(-1)


def test_two_films_of_one_series_are_two_images(tmp_path: Path) -> None:
    def film(image: Dataset, _: int) -> None:
        as_film(image)

    write_series(tmp_path / "in", slices=2, change=film)
    found = series(find(tmp_path / "in")).sources
    assert len(found) == 2
    assert len({source.patient for source in found}) == 1


def test_series_are_told_apart_in_one_folder_and_joined_over_several(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", "1", seed=1)
    write_series(tmp_path / "in" / "b", "2", seed=2)
    for index, path in enumerate(sorted((tmp_path / "in" / "a").iterdir())):
        path.rename(tmp_path / "in" / f"loose{index}" if index % 2 else tmp_path / "in" / "b" / f"x{index}")
    found = series(find(tmp_path / "in"))
    assert sorted((source.patient, len(source.files)) for source in found.sources) == [("1", 5), ("2", 5)]
    assert found.left_out == {}


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    def report(image: Dataset, _: int) -> None:
        del image.Rows, image.Columns, image.PixelData
        image.Modality, image.SOPClassUID = "SR", BasicTextSRStorage

    def mask(image: Dataset, _: int) -> None:
        image.Modality = "SEG"

    write_series(tmp_path / "in" / "image")
    write_series(tmp_path / "in" / "report", slices=1, change=report)
    write_series(tmp_path / "in" / "mask", slices=2, change=mask)
    found = series(find(tmp_path / "in"))
    assert len(found.sources) == 1
    assert {kind: len(names) for kind, names in found.left_out.items()} == {
        "structured reports": 1,
        "segmentations, registrations and raw data": 2,
    }


def moved(by: np.ndarray) -> dicom.Change:
    def change(image: Dataset, index: int) -> None:
        image.ImagePositionPatient = [float(v) for v in np.array(image.ImagePositionPatient) + by * index]

    return change


def of_another(image: Dataset, index: int) -> None:
    image.PatientID = "4712" if index == 3 else "4711"


def larger(image: Dataset, index: int) -> None:
    if index == 3:
        image.Rows, image.Columns = 6, 8


def again(image: Dataset, index: int) -> None:
    image.ImagePositionPatient = [float(v) for v in dicom.ORIGIN + np.cross(dicom.ROW, dicom.COLUMN) * (index // 2)]


def turned(image: Dataset, index: int) -> None:
    if index == 3:
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def coloured(image: Dataset, _: int) -> None:
    image.SamplesPerPixel, image.SOPClassUID, image.Modality = 3, UltrasoundImageStorage, "US"


def huge(image: Dataset, _: int) -> None:
    image.Rows = image.Columns = 65535


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"skip": [2]}, r"slices are missing or unevenly spaced \(behind slice 2 of 4 come 5 mm, elsewhere 2.5 mm\)"),
        ({"change": moved(dicom.COLUMN * 0.6)}, "tilted gantry"),
        ({"change": of_another}, "one series with several patients"),
        ({"change": larger}, "different sizes"),
        ({"change": again}, "several slices lie in the same place"),
        ({"change": turned}, "look in different directions"),
        ({"change": coloured}, "in colour"),
        ({"change": huge}, "an image has 1 to 2,147,483,648"),
        ({"patient": None}, r"has no PatientID; say with --patients"),
        ({"patient": " "}, r"has no PatientID"),
    ],
    ids=["gap", "tilt", "patients", "sizes", "time", "localiser", "colour", "huge", "nobody", "blank"],
)
def test_a_series_that_would_make_a_wrong_volume_is_refused(
    tmp_path: Path, given: dict[str, object], sentence: str
) -> None:
    write_series(tmp_path / "in" / "chest", **given)  # type-checked by what follows
    with pytest.raises(ConfigError, match=sentence) as refused:
        series(find(tmp_path / "in"))
    assert "chest" in str(refused.value)
    assert "Doe" not in str(refused.value)


def test_a_path_says_who_the_patient_is_where_the_file_does_not(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "case-17", None)
    (source,) = series(find(tmp_path / "in"), Admission(patients=re.compile(r"case-(\d+)"))).sources
    assert source.patient == "17"
    with pytest.raises(ConfigError, match="finds no patient in this path"):
        series(find(tmp_path / "in"), Admission(patients=re.compile(r"patient-(\d+)")))


@pytest.mark.parametrize("keep", [140, 200, 600])
def test_a_torn_file_is_named(tmp_path: Path, keep: int) -> None:
    write_series(tmp_path / "in")
    torn = min((tmp_path / "in").iterdir())
    torn.write_bytes(torn.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=torn.name):
        series(find(tmp_path / "in"))


def test_torn_pixels_are_noticed_too(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "chest")
    torn = min((tmp_path / "in" / "chest").iterdir())
    torn.write_bytes(torn.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="chest: the pixels cannot be made a volume"):
        only(tmp_path / "in")


def test_slices_that_name_no_common_space_are_refused_with_the_name_of_what_is_missing(tmp_path: Path) -> None:
    def forget(image: Dataset, _: int) -> None:
        del image.FrameOfReferenceUID

    write_series(tmp_path / "in" / "chest", change=forget)
    with pytest.raises(ConfigError, match=r"chest: .*FrameOfReferenceUID is missing"):
        only(tmp_path / "in")


def test_values_that_nobody_needs_are_not_told_for_every_slice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def long(image: Dataset, _: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.FrameOfReferenceUID = "1." * 32 + "1"

    write_series(tmp_path / "in", change=long)
    caplog.clear()
    before = logging.getLogger("pydicom").level
    assert only(tmp_path / "in").values.size
    assert not caplog.records
    assert logging.getLogger("pydicom").level == before
