"""DICOM files: which of them are images, which make one series, and the volume of a series."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.processing import apply_modality_lut
from pydicom.tag import Tag
from pydicom.uid import UID

from protocol.errors import ConfigError
from worker.data.dicom_frames import (
    PRIVATE,
    TAGS,
    Frame,
    are_crossed,
    are_scouts,
    check_frames,
    frames_of,
    image_types,
    is_functional,
    stacked,
)
from worker.data.dicom_kinds import Beside, beside, is_raw, is_secondary, is_slice
from worker.data.discovery import FoundFiles
from worker.data.matching import keys_of
from worker.data.sources import Admission, FoundImages, ImageKind, ImageSource, few, patient_in_path, shown
from worker.data.volumes import Volume, check_size, in_space

_WANTED = [*map(Tag, TAGS), *map(Tag, PRIVATE)]
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GREY = frozenset({"", "MONOCHROME1", "MONOCHROME2"})
_MOSAIC = frozenset({"MOSAIC", "VFRAME"})
"""How Siemens and United Imaging call pictures in which many slices lie side by side."""
_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_LINE = 240


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """One file that is an image, or frames of one."""

    path: Path
    header: Dataset
    frames: tuple[Frame, ...]

    def uid(self, tag: str) -> str:
        """A UID of the file, or a text; nothing if it has none."""
        return str(self.header.get(tag) or "")

    @property
    def is_secondary(self) -> bool:
        """Whether it says that it was made of other images, later on."""
        return is_secondary(self.uid("SOPClassUID"), image_types(self.header)[0])

    @property
    def is_raw(self) -> bool:
        """Whether it is a film that is not made to be looked at."""
        return is_raw(self.uid("SOPClassUID"))

    @property
    def study(self) -> tuple[str, str]:
        """In which study it lies, and by which modality."""
        return self.uid("StudyInstanceUID"), self.uid("Modality")

    @property
    def is_projection(self) -> bool:
        """Whether it is an image by itself that lies nowhere, as an X-ray is."""
        return not is_slice(self.uid("SOPClassUID")) and all(frame.position is None for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is there altogether, which some series have to be seen against."""

    spaces: Mapping[str, Sequence[Frame]]
    """The frames in each space."""
    originals: frozenset[tuple[str, str]]
    """The studies and modalities of which there are images that were not made of others."""
    films: frozenset[tuple[str, str]]
    """Those of which there are films to be looked at."""

    @classmethod
    def of(cls, images: Sequence[ImageFile]) -> Surroundings:
        """Of all images."""
        spaces: defaultdict[str, list[Frame]] = defaultdict(list)
        for image in images:
            spaces[image.frames[0].space].extend(image.frames)
        return cls(
            spaces=spaces,
            originals=frozenset(image.study for image in images if not image.is_secondary),
            films=frozenset(image.study for image in images if image.is_projection and not image.is_raw),
        )


def series(found: FoundFiles, wanted: Admission | None = None) -> FoundImages:
    """The images among a folder's DICOM files, and what is left out; only headers are read.

    Raises:
        ConfigError: a file is damaged, has no patient, or does not go with the others of its series; says which.
    """
    wanted = wanted or Admission()
    left_out: defaultdict[Beside, list[str]] = defaultdict(list)
    images: list[ImageFile] = []
    for done, path in enumerate(found.files[ImageKind.DICOM]):
        if wanted.progress is not None:
            wanted.progress(done, len(found.files[ImageKind.DICOM]))
        header = _header(path)
        with _readable(path):
            kind = _kind(header)
            if kind is None or kind in wanted.also:
                images.append(ImageFile(path, header, frames_of(header)))
            else:
                left_out[kind].append(found.name(path))
    images, dropped = _single(found, images, drop=wanted.drop_duplicates)
    grouped: defaultdict[str, list[ImageFile]] = defaultdict(list)
    for image in images:
        if not (uid := image.uid("SOPInstanceUID" if image.is_projection else "SeriesInstanceUID")):
            raise ConfigError(f"{shown(image.path)} does not say which series it belongs to; leave it out")
        grouped[uid].append(image)
    names = _names(found, grouped)
    around = Surroundings.of(images)
    sources = []
    for uid, files in sorted(grouped.items()):
        with _readable(files[0].path):
            if (kind := _left_out_whole(files, around)) is not None and kind not in wanted.also:
                left_out[kind].extend(found.name(image.path) for image in files)
            else:
                sources.append(_source(found, uid, names[uid], files, wanted))
    listed = {kind.value: left_out[kind] for kind in Beside if left_out[kind] and kind is not Beside.DIRECTORY}
    return FoundImages(sources=sources, left_out=listed, dropped=dropped)


def read_series(source: ImageSource) -> Volume:
    """The volume of a series as (column, row, slice), or a projection as (column, row), in the scanner's units.

    Raises:
        ConfigError: pixels are missing or cannot be decoded; says in which series.
    """
    try:
        with _quiet():
            planes = [(path, frame) for path in source.files for frame in frames_of(_read(path, header=True))]
            if planes[0][1].position is None:
                return _projection(_read(source.files[0]), planes[0][1])
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


# ---- files


def _header(path: Path) -> Dataset:
    try:
        _check_plain(path)
        header = _read(path, header=True)
        if "SOPClassUID" not in header and hasattr(header, "file_meta"):
            header.SOPClassUID = header.file_meta.get("MediaStorageSOPClassUID")  # a DICOMDIR has it there alone
        if not header.get("SOPClassUID") or ("Rows" not in header and "Image Storage" in header.SOPClassUID.name):
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
        with _quiet():
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
        return dcmread(path, force=True, stop_before_pixels=header, specific_tags=_WANTED if header else None)


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


# ---- series


def _kind(header: Dataset) -> Beside | None:
    words, technique = image_types(header)
    return beside(
        str(header.get("SOPClassUID") or ""),
        words,
        modality=str(header.get("Modality") or ""),
        technique=technique,
        pixels="Rows" in header,
    )


def _left_out_whole(files: Sequence[ImageFile], around: Surroundings) -> Beside | None:
    """What a series is if it is none of the patient's volumes, by all its files and what else is there."""
    frames = [frame for file in files for frame in file.frames]
    if files[0].is_projection:
        return Beside.RAW if files[0].is_raw and files[0].study in around.films else None
    if all(frame.position is None for frame in frames):
        return Beside.NO_PLACE
    if are_crossed(frames):
        return Beside.LOCALIZER
    if all(file.is_secondary for file in files) and files[0].study in around.originals:
        return Beside.DERIVED
    space = frames[0].space
    return Beside.LOCALIZER if space and are_scouts(frames, around.spaces[space]) else None


def _single(found: FoundFiles, images: Sequence[ImageFile], *, drop: bool) -> tuple[list[ImageFile], list[str]]:
    """Each image once, and the names of what is there again.

    Raises:
        ConfigError: an image is there twice and `drop` is not set, or two images have one name.
    """
    seen: dict[str, ImageFile] = {}
    dropped: list[str] = []
    for image in images:
        uid = image.uid("SOPInstanceUID")
        other = seen.setdefault(uid or str(image.path), image)
        if other is image:
            continue
        both = few((found.name(other.path), found.name(image.path)))
        if not _is_same(other, image):
            raise ConfigError(
                f"{both} have one SOPInstanceUID and are two images; find out which is right, and leave the other out"
            )
        if not drop:
            raise ConfigError(
                f"{both} are the same image twice (SOPInstanceUID); leave one out, or say --drop-duplicates"
            )
        dropped.append(found.name(image.path))
    return list(seen.values()), dropped


def _is_same(one: ImageFile, other: ImageFile) -> bool:
    if (one.uid("PatientID"), one.frames) != (other.uid("PatientID"), other.frames):
        return False
    with _readable(other.path):
        return bool(np.array_equal(_read(one.path).pixel_array, _read(other.path).pixel_array))


def _names(found: FoundFiles, grouped: Mapping[str, Sequence[ImageFile]]) -> Mapping[str, str]:
    """What each series is called: its file, or its folder, with its UID where others lie in the same one."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for uid, files in grouped.items():
        if len(files) > 1:
            folders[_folder(found, files)].add(uid)
    names = {uid: found.name(files[0].path) for uid, files in grouped.items()}
    for folder, uids in folders.items():
        names |= {uid: folder if len(uids) == 1 and folder else f"{folder}/{uid}".lstrip("/") for uid in uids}
    return names


def _folder(found: FoundFiles, files: Sequence[ImageFile]) -> str:
    return "" if (name := PurePosixPath(found.name(files[0].path)).parent.as_posix()) == "." else name


def _source(found: FoundFiles, uid: str, name: str, files: Sequence[ImageFile], wanted: Admission) -> ImageSource:
    header, frames = files[0].header, [frame for file in files for frame in file.frames]
    for tag, means in (("Rows", "sizes"), ("Columns", "sizes"), ("SamplesPerPixel", "kinds of pixels")):
        if len({each.header.get(tag) for each in files}) > 1:
            raise ConfigError(f"{shown(name)}: the slices of this series have different {means}; export it again")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise ConfigError(f"{shown(name)} is in colour; export it as grey values, or leave it out")
    check_size(name, (int(header.Columns), int(header.Rows), len(frames)))
    for file in files:
        _check_pixels(name, file.header)
    if _MOSAIC & set(image_types(header)[0]) and not is_functional(header):
        raise ConfigError(
            f"{shown(name)} is a mosaic of slices side by side; have single slices or enhanced objects exported"
        )
    patient = _patient(found, files, wanted)
    if not files[0].is_projection:
        _check_whole(name, files)
        check_frames(name, frames)
    elif len(frames) > 1:
        raise ConfigError(
            f"{shown(name)} is a film: {len(frames)} frames that do not say where they lie; "
            "export single images, or leave it out"
        )
    return ImageSource(
        name=name,
        kind=ImageKind.DICOM,
        files=tuple(file.path for file in files),
        patient=patient,
        identity=uid,
        keys=keys_of(name, _folder(found, files), uid, files[0].uid("SeriesInstanceUID"), patient),
        modality=str(header.get("Modality") or ""),
    )


def _check_pixels(name: str, header: Dataset) -> None:
    """Refuse pixels whose numbers are no grey values, or stand where no decoder looks for them."""
    if str(header.get("PhotometricInterpretation") or "") not in _GREY:
        raise ConfigError(f"{shown(name)} is in colour; export it as grey values, or leave it out")
    stored, high = header.get("BitsStored"), header.get("HighBit")
    if stored and high is not None and int(high) != int(stored) - 1:
        raise ConfigError(
            f"{shown(name)}: HighBit is {high} with {stored} bits stored, as nothing writes any more; export it again"
        )


def _check_whole(name: str, files: Sequence[ImageFile]) -> None:
    """Refuse a series that says itself that it has more files, frames or slices than are here."""
    frames = sum(len(file.frames) for file in files)
    parts, slices = (files[0].header.get(tag) for tag in ("InConcatenationTotalNumber", "NumberOfSlices"))
    for said, here, what in ((parts, len(files), "files"), (slices, frames, "slices")):
        if said and here < int(said):
            raise ConfigError(
                f"{shown(name)}: {here} of {said} {what} of this series are here; export the whole series again"
            )


def _patient(found: FoundFiles, files: Sequence[ImageFile], wanted: Admission) -> str:
    if wanted.patients is not None:
        named = {patient_in_path(PurePosixPath(found.name(file.path)), wanted.patients) for file in files}
    else:
        for file in files:
            if not (file.uid("PatientID").strip() or wanted.nameless):
                raise ConfigError(
                    f"{shown(found.name(file.path))} has no PatientID; say with --patients REGEX where the patient "
                    "stands in the path, or leave it out"
                )
        named = {file.uid("PatientID").strip() for file in files}
    if len(named) > 1:
        raise ConfigError(
            f"{few(found.name(file.path) for file in files)}: one series with several patients; "
            "find out whose images they are, and leave the others out"
        )
    return named.pop()


# ---- pixels


def _stack(planes: Sequence[tuple[Path, Frame]]) -> NDArray[np.floating]:
    """The values of frames in this order; one file at a time is decoded."""
    at: defaultdict[Path, list[tuple[int, Frame]]] = defaultdict(list)
    for place, (path, frame) in enumerate(planes):
        at[path].append((place, frame))
    values: NDArray[np.floating] | None = None
    for path, frames in at.items():
        image = _read(path)
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
