"""DICOM series: which files make one, what would make a wrong volume of them, and the volume."""

from __future__ import annotations

import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.processing import apply_rescale
from pydicom.uid import UID

from protocol.errors import ConfigError
from worker.data.discovery import FoundFiles
from worker.data.matching import keys_of
from worker.data.sources import ImageKind, ImageSource, few, patient_in_path, shown
from worker.data.volumes import Volume, check_size, in_space

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
]
_NO_IMAGES = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "SR", "PR", "KO"})
"""What is made of images; it would be taken for one."""
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN, _UNEVEN_MM = 0.01, 0.01
"""By how much steps between slices may differ: a part of the step, or millimetres of rounding."""
_TURNED = 1e-3
_LINE = 240
Header = tuple[Path, Dataset]


def series(found: FoundFiles, patients: re.Pattern[str] | None = None) -> tuple[list[ImageSource], list[Path]]:
    """The images among a folder's DICOM files, and the files that are none; only headers are read.

    A patient is the PatientID, or what `patients` finds in the path.

    Raises:
        ConfigError: a file is damaged, has no patient, or does not go with the others of its series; says which.
    """
    grouped: defaultdict[str, list[Header]] = defaultdict(list)
    others: list[Path] = []
    for path in found.files[ImageKind.DICOM]:
        header = _header(path)
        with _readable(path):
            if "Rows" not in header or header.get("Modality") in _NO_IMAGES:
                others.append(path)
                continue
            alone = int(header.get("NumberOfFrames") or 1) > 1 or "ImagePositionPatient" not in header
            uid = str(header.get("SOPInstanceUID" if alone else "SeriesInstanceUID") or "")
        if not uid:
            raise ConfigError(f"{shown(path)} does not say which series it belongs to; leave it out")
        grouped[uid].append((path, header))
    sources = []
    for uid, files in sorted(grouped.items()):
        with _readable(files[0][0]):
            sources.append(_source(found, uid, files, patients))
    return sources, others


def read_series(source: ImageSource) -> Volume:
    """The volume of a series as (column, row, slice), or a projection as (column, row), in the scanner's units.

    Raises:
        ConfigError: slices are missing, repeated or slanted, or pixels cannot be decoded; says in which series.
    """
    try:
        images = [_read(path) for path in source.files]
        with _quiet():
            if len(images) == 1 and int(images[0].get("NumberOfFrames") or 1) == 1:
                volume = _projection(images[0]) if "ImagePositionPatient" not in images[0] else _single(images[0])
            elif len(images) > 1 and not images[0].get("FrameOfReferenceUID"):
                raise ValueError("FrameOfReferenceUID is missing, which says that slices share one space")
            else:
                volume = _volume(images)
        return Volume(volume.values, None if volume.affine is None else in_space(volume.affine))
    except ConfigError:
        raise
    except Exception as error:  # whatever damaged values make of a library
        raise ConfigError(
            f"{shown(source.name)}: the pixels cannot be made a volume ({_reason(error)}); "
            "export the series again, uncompressed and complete, or leave it out"
        ) from error


def _header(path: Path) -> Dataset:
    try:
        _check_plain(path)
        header = _read(path, header=True)
        if "SOPClassUID" not in header or ("Rows" not in header and "Image Storage" in header.SOPClassUID.name):
            raise InvalidDicomError  # a file that ends early has no tags behind its end
        return header
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged file makes of a parser
        raise ConfigError(
            f"{shown(path)} is a damaged DICOM file ({type(error).__name__}); export it again, or leave it out"
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of a value that is missing or none of its kind which file, or which series beginning with it, has it."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # values are parsed when they are asked for
        raise ConfigError(
            f"{shown(path)}: this file or another of its series has a value that is missing or damaged "
            f"({type(error).__name__}); export the series again, or leave it out"
        ) from error


def _check_plain(path: Path) -> None:
    """Refuse a file that is compressed as a whole: it is unpacked, to whatever size, before anything is read of it.

    Raises:
        ConfigError: it is.
    """
    with path.open("rb") as file:
        read_preamble(file, True)
        about = read_dataset(file, False, True, stop_when=lambda tag, representation, length: tag.group != 2)
    if "deflated" in UID(about.get("TransferSyntaxUID") or "").name.lower():
        raise ConfigError(f"{shown(path)} is compressed as a whole (deflated); export it uncompressed, or leave it out")


def _read(path: Path, *, header: bool = False) -> Dataset:
    with _quiet():
        return dcmread(path, force=True, stop_before_pixels=header, specific_tags=_TAGS if header else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """What a parser thinks of values not needed here is not said for every slice; pydicom warns and logs it."""
    log = logging.getLogger("pydicom")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _source(found: FoundFiles, uid: str, files: Sequence[Header], patients: re.Pattern[str] | None) -> ImageSource:
    name = found.name(files[0][0])
    if len(files) > 1:
        name = PurePosixPath(name).parent.as_posix()
        name = uid if name == "." else name
    for tag, means in (("Rows", "sizes"), ("Columns", "sizes"), ("SamplesPerPixel", "kinds of pixels")):
        if len({header.get(tag) for _, header in files}) > 1:
            raise ConfigError(f"{shown(name)}: the slices of this series have different {means}; export it again")
    _check_numbers(name, files)
    header = files[0][1]
    patient = _patient(found, files, patients)
    return ImageSource(
        name=name,
        kind=ImageKind.DICOM,
        files=tuple(path for path, _ in files),
        patient=patient,
        identity=uid,
        keys=keys_of(name, uid, str(header.get("SeriesInstanceUID") or ""), patient),
        modality=str(header.get("Modality") or ""),
    )


def _check_numbers(name: str, files: Sequence[Header]) -> None:
    """Refuse what is not one grey image of a bearable size, with its slices side by side."""
    header = files[0][1]
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise ConfigError(f"{shown(name)} is in colour; export it as grey values, or leave it out")
    frames = max(len(files), int(header.get("NumberOfFrames") or 1))
    check_size(name, (int(header.Columns), int(header.Rows), frames))
    if len(files) == 1:
        return
    turns = [each.get("ImageOrientationPatient") for _, each in files]
    if not all(turn is not None and len(turn) == 6 for turn in turns):
        raise ConfigError(f"{shown(name)}: the slices do not say which way they look; export the series again")
    looks = np.array(turns, float)
    if np.ptp(looks, axis=0).max() > _TURNED:
        raise ConfigError(f"{shown(name)}: the slices look in different directions, as a localiser's do; leave it out")
    places = np.array([each.ImagePositionPatient for _, each in files], float)
    if len(np.unique(places, axis=0)) < len(files):
        raise ConfigError(
            f"{shown(name)}: several slices lie in the same place (a series in time, or files twice); "
            "export one point in time as a series of its own"
        )
    pixel = min(map(float, header.get("PixelSpacing") or (1, 1)))
    _check_gaps(name, places, np.cross(looks[0, :3], looks[0, 3:]), pixel)


def _check_gaps(name: str, places: NDArray[np.float64], normal: NDArray[np.float64], pixel: float) -> None:
    """Refuse slices with uneven steps, or that drift sideways by more than half a `pixel` (in mm)."""
    along = np.sort(places @ normal)
    steps = np.diff(along)
    usual = float(np.median(steps))
    if np.ptp(steps) > max(_UNEVEN_MM, _UNEVEN * usual):
        widest = int(steps.argmax())
        raise ConfigError(
            f"{shown(name)}: slices are missing or unevenly spaced (behind slice {widest + 1} of {len(places)} come "
            f"{steps[widest]:.4g} mm, elsewhere {usual:.4g} mm); export the whole series again"
        )
    if np.ptp(places - np.outer(places @ normal, normal), axis=0).max() > pixel / 2:
        raise ConfigError(
            f"{shown(name)} was taken with a tilted gantry; have it straightened where it was made, or leave it out"
        )


def _patient(found: FoundFiles, files: Sequence[Header], patients: re.Pattern[str] | None) -> str:
    if patients is not None:
        named = {patient_in_path(PurePosixPath(found.name(path)), patients) for path, _ in files}
    else:
        for path, header in files:
            if not str(header.get("PatientID") or "").strip():
                raise ConfigError(
                    f"{shown(found.name(path))} has no PatientID; say with --patients REGEX where the patient "
                    "stands in the path, or leave it out"
                )
        named = {str(header.PatientID).strip() for _, header in files}
    if len(named) > 1:
        raise ConfigError(
            f"{few(found.name(path) for path, _ in files)}: one series with several patients; "
            "find out whose images they are, and leave the others out"
        )
    return named.pop()


def _volume(images: Sequence[Dataset]) -> Volume:
    with ExitStack() as used:
        make: Callable[..., highdicom.Volume]
        if len(images) > 1:
            make = partial(highdicom.get_volume_from_series, images)
        else:
            image = highdicom.Image.from_dataset(images[0], copy=False)
            if (index := getattr(image, "_db_con", None)) is not None:
                used.callback(index.close)  # a database in memory, which highdicom itself never closes
            make = image.get_volume
        volume = make(
            # Exact for whole numbers of 16 bits.
            dtype=np.float32 if int(images[0].BitsAllocated) <= 16 else np.float64,
            # Neither windows nor colours nor units of a vendor's own: what the scanner measured.
            apply_real_world_transform=False,
            apply_voi_transform=False,
            apply_presentation_lut=False,
            apply_palette_color_lut=False,
            apply_icc_profile=False,
        )
    values = volume.array.transpose(2, 1, 0)
    return Volume(values, _TO_RAS @ volume.affine[:, [2, 1, 0, 3]])


def _single(image: Dataset) -> Volume:
    """One slice that knows its place: a volume of one."""
    row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    matrix = np.eye(4)
    matrix[:3, 0] = row * float(image.PixelSpacing[1])
    matrix[:3, 1] = column * float(image.PixelSpacing[0])
    matrix[:3, 2] = np.cross(row, column) * float(image.get("SliceThickness") or 1)
    matrix[:3, 3] = np.array(image.ImagePositionPatient, float)
    return Volume(apply_rescale(image.pixel_array, image).T[..., None], _TO_RAS @ matrix)


def _projection(image: Dataset) -> Volume:
    """An X-ray: it has a size, and no place in space; white is dense, whichever way the file has it."""
    values = apply_rescale(image.pixel_array, image)
    if image.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    rows, columns = (float(size) for size in image.get("PixelSpacing") or image.get("ImagerPixelSpacing") or (1, 1))
    return Volume(values.T[..., None], np.diag([-columns, -rows, 1.0, 1.0]))


def _reason(error: Exception) -> str:
    """What a library says, in one short line; it may name tags, which stay here."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"
