"""DICOM files read: their headers first, and the pixels of a series as a volume."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.processing import apply_modality_lut
from pydicom.tag import Tag
from pydicom.uid import UID

from protocol.errors import ConfigError
from worker.data.dicom_frames import PRIVATE, TAGS, Frame, frames_of, stacked
from worker.data.sources import ImageSource, shown
from worker.data.volumes import Volume, in_space, readable

_WANTED = [*map(Tag, TAGS), *map(Tag, PRIVATE)]
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_LINE = 240


def read_series(source: ImageSource) -> Volume:
    """The volume of a series as (column, row, slice), or a projection as (column, row), in the scanner's units.

    Raises:
        ConfigError: pixels are missing or cannot be decoded; says in which series.
    """
    try:
        with quietly():
            planes = [(path, frame) for path in source.files for frame in frames_of(read_file(path, header=True))]
            if planes[0][1].position is None:
                return _projection(read_file(source.files[0]), planes[0][1])
            order, matrix = stacked([frame for _, frame in planes])
            values = _stack([planes[index] for index in order])
        return Volume(values, in_space(_TO_RAS @ matrix))
    except ConfigError:
        raise
    except Exception as error:  # whatever damaged values make of a library
        raise ConfigError(
            f"{shown(source.name)}: the pixels cannot be made a volume ({_reason(error)}); "
            "export the series again, uncompressed and complete, or leave it out"
        ) from error


def header_of(path: Path) -> Dataset:
    """What a file says before its pixels.

    Raises:
        ConfigError: it is damaged.
    """
    with readable(path, " is a damaged DICOM file", "export it again, or leave it out"):
        _check_plain(path)
        header = read_file(path, header=True)
        cut = "SOPClassUID" in header and "SOPInstanceUID" not in header
        if "SOPClassUID" not in header and hasattr(header, "file_meta"):
            header.SOPClassUID = header.file_meta.get("MediaStorageSOPClassUID")  # a DICOMDIR has it there alone
        if not header.get("SOPClassUID") or (
            "Rows" not in header and (cut or "Image Storage" in header.SOPClassUID.name)
        ):
            raise InvalidDicomError  # a file that ends early has no tags behind its end
        return header


@contextmanager
def readable_values(path: Path) -> Iterator[None]:
    """Say of a value that is missing or none of its kind which file, or which series beginning with it, has it."""
    told = ": this file or another of its series has a value that is missing or damaged"
    with readable(path, told, "export the series again, or leave it out"), quietly():
        yield  # values are parsed when they are asked for


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


def read_file(path: Path, *, header: bool = False) -> Dataset:
    """All of a file, or what is needed before its pixels are."""
    with quietly():
        return dcmread(path, force=True, stop_before_pixels=header, specific_tags=_WANTED if header else None)


@contextmanager
def quietly() -> Iterator[None]:
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


# ---- pixels


def _stack(planes: Sequence[tuple[Path, Frame]]) -> NDArray[np.floating]:
    """The values of frames in this order; one file at a time is decoded."""
    at: defaultdict[Path, list[tuple[int, Frame]]] = defaultdict(list)
    for place, (path, frame) in enumerate(planes):
        at[path].append((place, frame))
    values: NDArray[np.floating] | None = None
    for path, frames in at.items():
        image = read_file(path)
        pixels = image.pixel_array.reshape(-1, int(image.Rows), int(image.Columns))
        if values is None:
            # Exact for whole numbers of 16 bits.
            kind = np.float32 if int(image.BitsAllocated) <= 16 else np.float64
            values = np.empty((int(image.Columns), int(image.Rows), len(planes)), kind)
        for place, frame in frames:
            values[..., place] = _scaled(pixels[frame.index], image, frame).T
    if values is None:
        raise ValueError("there are no pixels")
    return values


def _scaled(pixels: NDArray[np.generic], image: Dataset, frame: Frame) -> NDArray[np.float64]:
    """What the scanner measured: neither windows nor colours nor units of a vendor's own."""
    if pixels.dtype.kind in "iu":  # some decoders leave overlays in the bits beside those that are stored
        unused = pixels.dtype.itemsize * 8 - int(image.BitsStored)
        pixels = np.right_shift(np.left_shift(pixels, unused), unused)
    if image.get("ModalityLUTSequence"):
        return apply_modality_lut(pixels, image).astype(np.float64)
    slope = 1.0 if frame.slope is None else frame.slope
    return pixels.astype(np.float64) * slope + (frame.intercept or 0.0)


def _projection(image: Dataset, frame: Frame) -> Volume:
    """An X-ray: it has a size, and no place in space; white is dense, whichever way the file has it."""
    values = _scaled(image.pixel_array, image, frame)
    if image.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    rows, columns = map(float, next(filter(None, (image.get(tag) for tag in _SIZES)), (1, 1)))
    return Volume(values.T[..., None], in_space(np.diag([-columns, -rows, 1.0, 1.0])))


def _reason(error: Exception) -> str:
    """What a library says, in one short line; it may name tags, which stay here."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"
