"""What lies beside images is left out by kind, and what would be a wrong volume is refused with what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydicom import Dataset, dcmread
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    JPEGLSLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from protocol.errors import ConfigError
from tests.support import dicom
from tests.support.dicom import write_series
from worker.data.datalist import Task
from worker.data.dicom_kinds import TAKEN, Beside, beside
from worker.data.gatekeeper import admit, volume_of
from worker.data.prepare import PrepareRequest, prepare
from worker.data.sources import Admission, FoundImages
from worker.data.splits import Shares

Set = Callable[[Dataset], None]
STORAGE = "1.2.840.10008.5.1.4.1.1"


def setting(at: Sequence[int] = (), **values: Any) -> dicom.Change:
    """A change of some slices, or all; None removes a value."""

    def change(image: Dataset, index: int) -> None:
        for name, value in values.items():
            if at and index not in at:
                continue
            if value is not None:
                setattr(image, name, value)
            elif name in image:
                delattr(image, name)

    return change


def both(*changes: dicom.Change) -> dicom.Change:
    def change(image: Dataset, index: int) -> None:
        for each in changes:
            each(image, index)

    return change


def admitted(folder: Path, **terms: Any) -> FoundImages:
    return admit(folder, Admission(**terms))


def counts(found: FoundImages) -> Mapping[str, int]:
    return {kind: len(names) for kind, names in found.left_out.items()}


# ---- what lies beside images


BESIDE: Mapping[Beside, Sequence[dict[str, Any]]] = {
    Beside.LOCALIZER: (
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]},
        {"ImageType": ["DERIVED", "SECONDARY", "SCOUT"]},
    ),
    Beside.DERIVED: (
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "MIP"]},
        {"ImageType": ["DERIVED", "PRIMARY", "REFORMATTED"], "SOPClassUID": MRImageStorage},
        {"VolumeBasedCalculationTechnique": "MAX_IP"},
    ),
    Beside.RAW: (),  # only beside others, below
    Beside.SECONDARY_CAPTURE: ({"SOPClassUID": f"{STORAGE}.7"}, {"SOPClassUID": f"{STORAGE}.7.2"}),
    Beside.SCREEN: (
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        {"ImageType": ["ORIGINAL", "SECONDARY", "OTHER", "CT_SOM5 PROT"]},
        {"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]},
    ),
    Beside.DOSE: ({"SOPClassUID": f"{STORAGE}.88.67"}, {"SOPClassUID": f"{STORAGE}.88.76"}),
    Beside.REPORT: ({"SOPClassUID": f"{STORAGE}.88.33"}, {"Modality": "SR"}),
    Beside.SELECTION: ({"SOPClassUID": f"{STORAGE}.88.59"}, {"Modality": "KO"}),
    Beside.PRESENTATION: ({"SOPClassUID": f"{STORAGE}.11.1"}, {"Modality": "PR"}),
    Beside.DOCUMENT: ({"SOPClassUID": f"{STORAGE}.104.1"},),
    Beside.RADIOTHERAPY: ({"SOPClassUID": f"{STORAGE}.481.2"}, {"SOPClassUID": f"{STORAGE}.481.3"}),
    Beside.SEGMENTATION: ({"SOPClassUID": f"{STORAGE}.66.4"}, {"SOPClassUID": f"{STORAGE}.66"}, {"Modality": "SEG"}),
    Beside.MAP: ({"SOPClassUID": f"{STORAGE}.30"},),
    Beside.WAVEFORM: ({"SOPClassUID": f"{STORAGE}.9.1.1"}, {"SOPClassUID": f"{STORAGE}.4.2"}),
    Beside.COLOURED: (
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ),
    Beside.NO_PLACE: ({"ImagePositionPatient": None, "ImageOrientationPatient": None},),
    Beside.NO_PIXELS: ({"Rows": None, "Columns": None, "PixelData": None, "SOPClassUID": f"{STORAGE}.200.1"},),
    Beside.DIRECTORY: ({"SOPClassUID": "1.2.840.10008.1.3.10"},),
}


@pytest.mark.parametrize(("kind", "values"), [(kind, each) for kind, all_of in BESIDE.items() for each in all_of])
def test_what_is_no_image_of_the_patient_is_left_out_by_kind(
    tmp_path: Path, kind: Beside, values: dict[str, Any]
) -> None:
    write_series(tmp_path / "in" / "ct", seed=1)
    write_series(tmp_path / "in" / "other", slices=2, change=setting(**values))
    found = admitted(tmp_path / "in")
    assert [source.name for source in found.sources] == ["ct"]
    assert counts(found) == ({} if kind is Beside.DIRECTORY else {kind.value: 2})


def test_every_kind_is_in_the_table() -> None:
    assert set(BESIDE) == set(Beside)


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_asked_for_is_taken(tmp_path: Path, name: str) -> None:
    (values, *_) = BESIDE[TAKEN[name]]
    write_series(tmp_path / "in", change=setting(**values))
    assert not admitted(tmp_path / "in").sources
    assert len(admitted(tmp_path / "in", also=frozenset({TAKEN[name]})).sources) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["ORIGINAL", "PRIMARY"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"],
        ["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "NORM"],
        ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
        ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM7 SPI DUAL"],
        ["DERIVED", "SECONDARY", "OTHER"],
        [],
    ],
)
@pytest.mark.parametrize("sop_class", [CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage])
def test_images_of_patients_stay(words: list[str], sop_class: str) -> None:
    assert beside(sop_class, words, modality="MR") is None


def test_x_rays_that_were_processed_for_presentation_stay() -> None:
    assert beside(f"{STORAGE}.1.1", ["DERIVED", "SECONDARY", ""], modality="DX") is None


@given(some.text("0123456789.", max_size=40), some.lists(some.text(max_size=12), max_size=6))
def test_whatever_an_object_says_it_is_an_image_or_of_one_kind(sop_class: str, words: list[str]) -> None:
    assert beside(sop_class, words) in {None, *Beside}


@pytest.mark.parametrize("of_others", [True, False])
def test_slices_made_of_others_later_on_are_left_out_where_those_are_there(tmp_path: Path, of_others: bool) -> None:
    made = setting(ImageType=["DERIVED", "SECONDARY", "OTHER"], StudyInstanceUID="1.2.3")
    write_series(tmp_path / "in" / "made", change=made)
    write_series(tmp_path / "in" / "ct", seed=1, change=setting(StudyInstanceUID="1.2.3" if of_others else "1.2.4"))
    found = admitted(tmp_path / "in")
    assert {source.name for source in found.sources} == {"ct", *(() if of_others else ("made",))}
    assert counts(found) == ({"derived images": 5} if of_others else {})
    assert len(admitted(tmp_path / "in", also=frozenset({Beside.DERIVED})).sources) == 2


@pytest.mark.parametrize("beside_others", [True, False])
def test_films_for_processing_are_left_out_where_there_are_those_for_people(
    tmp_path: Path, beside_others: bool
) -> None:
    film = setting(ImagePositionPatient=None, ImageOrientationPatient=None, Modality="DX", StudyInstanceUID="1.2.3")
    write_series(tmp_path / "in" / "raw", slices=1, change=both(film, setting(SOPClassUID=f"{STORAGE}.1.1.1")))
    if beside_others:
        write_series(tmp_path / "in" / "dx", slices=1, change=both(film, setting(SOPClassUID=f"{STORAGE}.1.1")))
    found = admitted(tmp_path / "in")
    assert len(found.sources) == 1
    assert counts(found) == ({"raw films beside those made of them": 1} if beside_others else {})


@pytest.mark.parametrize(("enhanced", "word"), [(False, "MOSAIC"), (False, "VFRAME"), (True, "MOSAIC")])
def test_a_mosaic_is_no_slice_but_some_scanners_call_what_is_none_so(tmp_path: Path, enhanced: bool, word: str) -> None:
    written = write_series(tmp_path / "slices", change=setting(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", word]))
    if enhanced:
        dicom.write_frames(tmp_path / "in" / "bold" / "file", list(written.folder.iterdir()))
        assert volume_of(admitted(tmp_path / "in").sources[0]).values.shape == (6, 8, 5)
        return
    with pytest.raises(ConfigError, match="is a mosaic of slices side by side"):
        admitted(tmp_path / "slices")


def test_a_scout_within_its_series_is_left_out_alone(tmp_path: Path) -> None:
    scout = setting([5], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_series(tmp_path / "in", slices=6, change=scout)
    found = admitted(tmp_path / "in")
    assert [len(source.files) for source in found.sources] == [5]
    assert counts(found) == {"localizers": 1}


def test_planes_across_one_another_are_a_localizer_that_does_not_say_so(tmp_path: Path) -> None:
    looks = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]]

    def three(image: Dataset, index: int) -> None:
        image.ImageOrientationPatient = looks[index % 3]

    write_series(tmp_path / "in" / "survey", slices=9, change=three)
    write_series(tmp_path / "in" / "ct", seed=1)
    found = admitted(tmp_path / "in")
    assert [source.name for source in found.sources] == ["ct"]
    assert counts(found) == {"localizers": 9}


@pytest.mark.parametrize(("slices", "left_out"), [(1, True), (2, True), (4, False)])
def test_few_slices_across_a_volume_of_their_space_are_its_scout(tmp_path: Path, slices: int, left_out: bool) -> None:
    space = setting(FrameOfReferenceUID="1.2.3")
    across = setting(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])

    def beside_one_another(image: Dataset, index: int) -> None:
        image.ImagePositionPatient = [0.0, 5.0 * index, 0.0]

    write_series(tmp_path / "in" / "ct", seed=1, change=space)
    write_series(tmp_path / "in" / "scout", slices=slices, change=both(space, across, beside_one_another))
    found = admitted(tmp_path / "in")
    assert len(found.sources) == 1 + (not left_out)
    assert counts(found) == ({"localizers": slices} if left_out else {})
    assert len(admitted(tmp_path / "in", also=frozenset({Beside.LOCALIZER})).sources) == 2


def test_hidden_files_folders_and_a_mediums_directory_are_passed_over(tmp_path: Path) -> None:
    written = write_series(tmp_path / "in" / "ct")
    file = min(written.folder.iterdir())
    for name in ("._IM0000", ".DS_Store", ".hidden/IM0001", "DICOMDIR"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "in" / name)
    (tmp_path / "in" / "ct" / "photo").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "in" / "ct" / "notes").write_text("x")
    found = admitted(tmp_path / "in")
    assert [len(source.files) for source in found.sources] == [5]
    assert counts(found) == {"JPEG pictures beside DICOM": 1, "files that are no images": 1}


# ---- what is there twice


def test_a_file_that_is_there_twice_is_said_or_dropped(tmp_path: Path) -> None:
    written = write_series(tmp_path / "in" / "ct")
    for path in list(written.folder.iterdir()):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    with pytest.raises(ConfigError, match=r"are the same image twice \(SOPInstanceUID\); leave one out, or say --drop"):
        admitted(tmp_path / "in")
    found = admitted(tmp_path / "in", drop_duplicates=True)
    assert len(found.dropped) == 5
    assert (volume_of(found.sources[0]).values.shape) == (6, 8, 5)


@pytest.mark.parametrize("other", [{"PixelData": bytes(96)}, {"PatientID": "0815"}, {"RescaleSlope": "2"}])
def test_two_images_under_one_uid_are_never_dropped(tmp_path: Path, other: dict[str, Any]) -> None:
    written = write_series(tmp_path / "in" / "ct")
    again = dcmread(file := min(written.folder.iterdir()))
    setting(**other)(again, 0)
    again.save_as(file.with_name("other"))
    with pytest.raises(ConfigError, match="have one SOPInstanceUID and are two images"):
        admitted(tmp_path / "in", drop_duplicates=True)


# ---- what a value means


DIFFERING: Mapping[str, tuple[Any, Any]] = {
    "EchoTime": ("10", "80"),
    "EchoNumbers": ("1", "2"),
    "InversionTime": ("800", "2500"),
    "FlipAngle": ("4", "12"),
    "DiffusionBValue": (0.0, 1000.0),
    "TemporalPositionIdentifier": ("1", "2"),
    "KVP": ("80", "140"),
    "ConvolutionKernel": ("B30f", "B70f"),
    "Units": ("BQML", "CNTS"),
    "SUVType": ("BW", "LBM"),
    "DecayCorrection": ("START", "ADMIN"),
    "RescaleType": ("HU", "US"),
    "PhotometricInterpretation": ("MONOCHROME2", "MONOCHROME1"),
    "ImageType": (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    "SliceThickness": ("1", "5"),
    "Modality": ("CT", "MR"),
}


@pytest.mark.parametrize("tag", DIFFERING)
@pytest.mark.parametrize("missing", [False, True])
def test_slices_whose_values_do_not_mean_the_same_are_refused(tmp_path: Path, tag: str, missing: bool) -> None:
    one, other = DIFFERING[tag]
    if missing:
        other = None
    write_series(tmp_path / "in" / "mr", change=both(setting(**{tag: one}), setting([1, 3], **{tag: other})))
    with pytest.raises(ConfigError, match=rf"mr: the slices of this series differ in {tag} \(.*export each kind as a"):
        admitted(tmp_path / "in")


def private(image: Dataset, index: int) -> None:
    image.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    image.add_new(0x0019100C, "IS", str(1000 * (index % 2)))


def mapped(image: Dataset, index: int) -> None:
    units, each = Dataset(), Dataset()
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = "g/ml", "UCUM", "SUV"
    each.RealWorldValueSlope, each.RealWorldValueIntercept, each.LUTLabel = 1.0 + index, 0.0, "SUV"
    each.RealWorldValueFirstValueMapped, each.RealWorldValueLastValueMapped = 0, 4000
    each.MeasurementUnitsCodeSequence = [units]
    image.RealWorldValueMappingSequence = [each]


@pytest.mark.parametrize(("change", "tag"), [(private, "b-value"), (mapped, "RealWorldValueMappingSequence")])
def test_so_are_those_that_say_it_in_a_vendors_own_way(tmp_path: Path, change: dicom.Change, tag: str) -> None:
    write_series(tmp_path / "in" / "mr", change=change)
    with pytest.raises(ConfigError, match=f"differ in {tag}"):
        admitted(tmp_path / "in")


def test_a_slope_of_its_own_is_applied_to_each_slice_whose_units_are_known(tmp_path: Path) -> None:
    def decaying(image: Dataset, index: int) -> None:
        image.Modality, image.Units, image.SOPClassUID = "PT", "BQML", PositronEmissionTomographyImageStorage
        image.RescaleSlope, image.RescaleIntercept = str(0.5 * (index + 1)), "0"
        mapped(image, 0)
        image.RealWorldValueMappingSequence[0].RealWorldValueSlope = 0.1 * (index + 1)

    written = write_series(tmp_path / "in", change=decaying)
    (source,) = admitted(tmp_path / "in").sources
    pixels = written.values - dicom.INTERCEPT
    expected = pixels * (0.5 * (np.arange(5) + 1))[:, None, None]
    assert np.allclose(volume_of(source).values.transpose(2, 1, 0)[::-1], expected)


@pytest.mark.parametrize("alike", [True, False])
def test_a_table_of_values_is_applied_if_it_is_the_same_in_all_slices(tmp_path: Path, alike: bool) -> None:
    def tabled(image: Dataset, index: int) -> None:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
        table.LUTData = (np.arange(4096) * (2 if alike or index else 3)).astype("<u2").tobytes()
        image.ModalityLUTSequence = [table]
        image.PixelRepresentation = 0
        del image.RescaleSlope, image.RescaleIntercept

    written = write_series(tmp_path / "in", change=tabled)
    if not alike:
        with pytest.raises(ConfigError, match="differ in ModalityLUTSequence"):
            admitted(tmp_path / "in")
        return
    values = volume_of(admitted(tmp_path / "in").sources[0]).values
    assert (values.transpose(2, 1, 0)[::-1] == (written.values - dicom.INTERCEPT) * 2).all()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "some slices of this series have no RescaleSlope"),
        ({"RescaleIntercept": None}, "some slices of this series have no RescaleIntercept"),
        ({"RescaleSlope": "0"}, "a RescaleSlope of this series is 0 or no number"),
        ({"Modality": "MR", "RescaleSlope": "2"}, "do not say in which units they are then the same"),
    ],
)
def test_slices_that_are_scaled_differently_without_a_unit_are_refused(
    tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    everywhere = {"Modality": values.pop("Modality")} if "Modality" in values else {}
    write_series(tmp_path / "in" / "mr", change=both(setting(**everywhere), setting([2], **values)))
    with pytest.raises(ConfigError, match=f"mr: .*{sentence}"):
        admitted(tmp_path / "in")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slices", [1, 4])
def test_only_the_stored_bits_count_whatever_else_stands_in_them(tmp_path: Path, signed: bool, slices: int) -> None:
    def overlaid(image: Dataset, index: int) -> None:
        pixels = np.frombuffer(image.PixelData, np.uint16).copy() & 0x0FFF
        pixels[::3] |= 0x1000
        image.PixelData = pixels.tobytes()
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, int(signed and index % 2)

    written = write_series(tmp_path / "in", slices=slices, change=overlaid)
    (source,) = admitted(tmp_path / "in").sources
    pixels = (written.values - dicom.INTERCEPT).astype(int) & 0x0FFF
    if signed:
        pixels[1::2] -= (pixels[1::2] & 0x0800) * 2
    assert (volume_of(source).values.transpose(2, 1, 0)[::-1] == pixels + dicom.INTERCEPT).all()


def test_overlays_that_a_decoder_leaves_do_not_count(tmp_path: Path) -> None:
    """Lossless compression keeps all 16 bits; pydicom then gives them all (pydicom's issue 2260)."""
    pytest.importorskip("jpeg_ls")  # without a wheel for Python 3.14 so far

    def packed(image: Dataset, _: int) -> None:
        pixels = np.frombuffer(image.PixelData, np.uint16).copy() & 0x0FFF
        pixels[::3] |= 0x1000
        image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 15, 0
        image.PixelData = pixels.tobytes()
        image.compress(JPEGLSLossless, generate_instance_uid=False)
        image.BitsStored, image.HighBit = 12, 11

    written = write_series(tmp_path / "in", change=packed)
    pixels = (written.values - dicom.INTERCEPT).astype(int) & 0x0FFF
    values = volume_of(admitted(tmp_path / "in").sources[0]).values
    assert (values.transpose(2, 1, 0)[::-1] == pixels + dicom.INTERCEPT).all()


@pytest.mark.parametrize(
    ("tag", "spacing"),
    [
        ("ImagerPixelSpacing", (0.2, 0.1)),
        ("NominalScannedPixelSpacing", (0.2, 0.1)),
        ("PixelAspectRatio", (2, 1)),
        ("Rows", (1, 1)),
    ],
)
def test_a_film_has_the_size_that_it_says_in_one_way_or_another(
    tmp_path: Path, tag: str, spacing: tuple[float, float]
) -> None:
    film = setting(
        SOPClassUID=f"{STORAGE}.1",
        Modality="CR",
        ImagePositionPatient=None,
        PixelSpacing=None,
        **({} if tag == "Rows" else {tag: list(spacing)}),
    )
    write_series(tmp_path / "in", slices=1, change=film)
    assert volume_of(admitted(tmp_path / "in").sources[0]).spacing[:2] == pytest.approx(spacing[::-1])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"BitsStored": 12, "HighBit": 15}, "HighBit is 15 with 12 bits stored"),
        ({"PhotometricInterpretation": "PALETTE COLOR", "SOPClassUID": f"{STORAGE}.6.1"}, "is in colour"),
    ],
)
def test_pixels_that_are_no_plain_grey_values_are_refused(
    tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    write_series(tmp_path / "in" / "ct", change=setting(**values))
    with pytest.raises(ConfigError, match=f"ct.*{sentence}"):
        admitted(tmp_path / "in")


# ---- where slices lie


def at(*places: float) -> dicom.Change:
    def change(image: Dataset, index: int) -> None:
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [0.0, 0.0, places[index]]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (at(0, 1, 2, 3, 6), "slices are missing or unevenly spaced"),
        (at(0, 1, 2, 7, 12), "slices are missing or unevenly spaced"),
        (at(0, 1, 2, 2.004, 3), "several slices lie in the same place"),
        (both(at(0, 5, 10, 15, 20), setting(SpacingBetweenSlices="2.5")), "slices are missing .*says 2.5 mm"),
        (setting([2], ImagePositionPatient=None), "some slices of this series do not say where they lie"),
        (setting([2], ImageOrientationPatient=None), "do not say which way they look"),
        (setting(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "no direction or place that can be"),
        (setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "no direction or place that can be"),
        (setting([2], PixelSpacing=[0.7, 0.8]), "pixels of different sizes"),
        (setting([2], PixelSpacing=None), "do not say how large a pixel is"),
        (setting([2], FrameOfReferenceUID="1.2.3"), "lie in different spaces"),
        (setting(NumberOfSlices=90), "5 of 90 slices of this series are here"),
        (setting(InConcatenationTotalNumber=6), "5 of 6 files of this series are here"),
    ],
)
def test_a_geometry_that_is_not_whole_is_refused(tmp_path: Path, change: dicom.Change, sentence: str) -> None:
    write_series(tmp_path / "in" / "chest", change=change)
    with pytest.raises(ConfigError, match=f"chest.*{sentence}"):
        admitted(tmp_path / "in")


def test_a_gap_that_is_meant_is_no_missing_slice(tmp_path: Path) -> None:
    apart = setting(SliceThickness="4", SpacingBetweenSlices="1")  # the gap, where the standard wants the distance
    write_series(tmp_path / "in", change=both(at(0, 5, 10, 15, 20), apart))
    assert len(admitted(tmp_path / "in").sources) == 1


def test_the_order_of_files_and_numbers_does_not_matter(tmp_path: Path) -> None:
    def shuffled(image: Dataset, index: int) -> None:
        image.InstanceNumber = str([3, 1, 5, 2, 4][index])

    plain, mixed = write_series(tmp_path / "a"), write_series(tmp_path / "b", change=shuffled)
    assert (plain.values == mixed.values).all()
    one, other = (volume_of(admitted(tmp_path / name).sources[0]) for name in "ab")
    assert (one.values == other.values).all()


# ---- functional groups


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("split", [False, True])
def test_functional_groups_say_what_a_slice_says_also_with_one_frame(tmp_path: Path, frames: int, split: bool) -> None:
    """`split`: a file for each frame, as some scanners write enhanced objects."""
    written = write_series(tmp_path / "slices", slices=frames)
    files = sorted(written.folder.iterdir())
    for number, group in enumerate([[file] for file in files] if split else [files]):
        dicom.write_frames(tmp_path / "in" / str(number) / "file", group)
    (source,), (plain,) = admitted(tmp_path / "in").sources, admitted(tmp_path / "slices").sources
    volume, expected = volume_of(source), volume_of(plain)
    assert (volume.values == expected.values).all()
    assert volume.affine is not None
    assert np.allclose(volume.affine, expected.affine, atol=1e-6)


def test_all_that_is_refused_is_said_at_once(tmp_path: Path) -> None:
    for number in range(12):
        write_series(tmp_path / "in" / f"p{number:02}", f"{number}", skip=[2])
    with pytest.raises(ConfigError, match=r"^12 images cannot be used: ") as refused:
        admitted(tmp_path / "in")
    assert str(refused.value).count("slices are missing") == 10
    assert str(refused.value).endswith(" · …; or go on without such images, with --skip-refused")


def test_series_that_cannot_be_used_are_left_out_if_that_is_wanted(tmp_path: Path) -> None:
    wrong: Mapping[str, tuple[Any, str]] = {
        "gap": ({"skip": [2]}, "slices are missing"),
        "kernel": ({"change": setting([1], ConvolutionKernel="B70f")}, "differ in ConvolutionKernel"),
        "pixels": ({"change": setting([1], HighBit=11)}, "HighBit is 11"),
        "nobody": ({"patient": None}, "has no PatientID"),
        "two": ({"change": setting([1], PatientID="4712")}, "one series with several patients"),
    }
    for seed, (name, (how, _)) in enumerate(wrong.items()):
        write_series(tmp_path / "in" / name, seed=seed, **how)
    write_series(tmp_path / "in" / "right", seed=9)
    found = admitted(tmp_path / "in", skip_refused=True)
    assert [source.name for source in found.sources] == ["right"]
    why = {source.name: reason for source, reason in found.refused.items()}
    assert why.keys() == wrong.keys()
    for name, (_, reason) in wrong.items():
        assert reason in why[name]
        assert "--skip-refused" not in why[name]
    with pytest.raises(ConfigError, match=r"^5 images cannot be used"):
        admitted(tmp_path / "in")


@pytest.mark.parametrize("cut", [200, 400, 600, 900])
def test_a_damaged_file_may_be_a_slice_of_any_series_and_is_refused_all_the_same(tmp_path: Path, cut: int) -> None:
    last = max(write_series(tmp_path / "in" / "p").folder.iterdir(), key=lambda path: dcmread(path).InstanceNumber)
    last.write_bytes(last.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="is a damaged DICOM file"):
        admitted(tmp_path / "in", skip_refused=True)


def test_two_series_in_one_folder_are_two_images_with_names_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", seed=1)
    write_series(tmp_path / "b", seed=2)
    for path in (tmp_path / "b").iterdir():
        shutil.copy(path, tmp_path / "in" / "a" / f"b{path.name}")
    found = admitted(tmp_path / "in").sources
    assert [len(source.files) for source in found] == [5, 5]
    assert all(source.name == f"a/{source.identity}" for source in found)


def test_frames_in_time_are_refused(tmp_path: Path) -> None:
    written = write_series(tmp_path / "slices", slices=4)
    dicom.write_frames(tmp_path / "in" / "cine" / "file", list(written.folder.iterdir()))
    image = dcmread(file := tmp_path / "in" / "cine" / "file")
    assert image.SOPClassUID == EnhancedCTImageStorage
    for number, group in enumerate(image.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence = image.PerFrameFunctionalGroupsSequence[number // 2].PlanePositionSequence
    image.save_as(file)
    with pytest.raises(ConfigError, match="cine/file: several slices lie in the same place"):
        admitted(tmp_path / "in")


def test_a_film_is_refused(tmp_path: Path) -> None:
    film = setting(
        SOPClassUID=f"{STORAGE}.12.1", Modality="XA", ImagePositionPatient=None, ImageOrientationPatient=None
    )
    write_series(tmp_path / "in" / "cine", slices=1, change=both(film, setting(NumberOfFrames=2, PixelData=bytes(192))))
    with pytest.raises(ConfigError, match="is a film: 2 frames"):
        admitted(tmp_path / "in")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            ({"Modality": "PT", "Units": "BQML"}, {"Modality": "PT", "Units": "CNTS"}),
            "PT.*BQML: a/0; CNTS: b/1",
        ),
        (({"RescaleType": "HU"}, {"RescaleType": "MGML"}), "CT.*HU: a/0; MGML: b/1"),
        (({"RescaleType": "HU"}, {}, {"RescaleType": "US"}), None),
        (({"RescaleType": "HU"}, {"Modality": "PT", "Units": "BQML"}), None),
    ],
)
def test_images_whose_values_are_in_different_units_are_not_prepared_together(
    tmp_path: Path, values: Sequence[dict[str, Any]], told: str | None
) -> None:
    for number, each in enumerate(values):
        folder = tmp_path / "in" / "abc"[number] / str(number)
        write_series(folder, str(number), seed=number, change=setting(**each))
    request = PrepareRequest(
        images=tmp_path / "in", out=tmp_path / "out", task=Task.CLASSIFICATION, shares=Shares(validation=0.0)
    )
    if told is None:
        assert len(prepare(request, lambda done, of: None).datalist.entries) == len(values)
    else:
        with pytest.raises(ConfigError, match=rf"{told}\), so the same value does not mean the same; convert"):
            prepare(request, lambda done, of: None)
        assert not (tmp_path / "out").exists()
