"""DICOM files: which of them are images, and which make one series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pydicom import Dataset

from protocol.errors import ConfigError
from worker.data.dicom_files import header_of, read_file, readable_values
from worker.data.dicom_frames import (
    Frame,
    are_crossed,
    are_scouts,
    check_frames,
    frames_of,
    image_types,
    is_functional,
)
from worker.data.dicom_kinds import Beside, beside, is_raw, is_secondary, is_slice
from worker.data.discovery import FoundFiles
from worker.data.matching import keys_of
from worker.data.sources import Admission, FoundImages, ImageKind, ImageSource, Refusals, few, patient_in_path, shown
from worker.data.volumes import check_size

_GREY = frozenset({"", "MONOCHROME1", "MONOCHROME2"})
_MOSAIC = frozenset({"MOSAIC", "VFRAME"})
"""How Siemens and United Imaging call pictures in which many slices lie side by side."""
_MOST_FRAMES = 16_384


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
        header = header_of(path)
        with readable_values(path):
            kind = _kind(header)
            if kind is None or kind in wanted.also:
                _check_count(path, header)
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
    sources, refusals = [], Refusals(skip=wanted.skip_refused)
    for uid, files in sorted(grouped.items()):
        try:
            with readable_values(files[0].path):
                if (kind := _left_out_whole(files, around)) is not None and kind not in wanted.also:
                    left_out[kind].extend(found.name(image.path) for image in files)
                else:
                    sources.append(_source(found, uid, names[uid], files, wanted))
        except ConfigError as error:
            patients = dict.fromkeys(image.uid("PatientID").strip() for image in files)
            refusals.found[_described(found, uid, names[uid], files, *patients)] = str(error)
    refusals.check()
    listed = {kind.value: left_out[kind] for kind in Beside if left_out[kind] and kind is not Beside.DIRECTORY}
    return FoundImages(sources=sources, left_out=listed, dropped=dropped, refused=refusals.found)


def _check_count(path: Path, header: Dataset) -> None:
    """Refuse more frames than any image has: a header may say any number, whatever is in the file.

    Raises:
        ConfigError: it says so.
    """
    if (count := int(header.get("NumberOfFrames") or 1)) > _MOST_FRAMES:
        raise ConfigError(
            f"{shown(path)} says that it has {count:,} frames; one file may have {_MOST_FRAMES:,}: export it as "
            "several series, or leave it out"
        )


# ---- series


def _kind(header: Dataset) -> Beside | None:
    words, technique = image_types(header)
    return beside(
        str(header.get("SOPClassUID") or ""),
        words,
        modality=str(header.get("Modality") or ""),
        technique=technique,
        pixels="Rows" in header,
        grey=_is_grey(header),
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
    with readable_values(other.path):
        return bool(np.array_equal(read_file(one.path).pixel_array, read_file(other.path).pixel_array))


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
    return _described(found, uid, name, files, patient)


def _described(found: FoundFiles, uid: str, name: str, files: Sequence[ImageFile], *patients: str) -> ImageSource:
    return ImageSource(
        name=name,
        kind=ImageKind.DICOM,
        files=tuple(file.path for file in files),
        patient=patients[0],
        identity=uid,
        keys=keys_of(name, _folder(found, files), uid, files[0].uid("SeriesInstanceUID"), *patients),
        modality=files[0].uid("Modality"),
        units=files[0].frames[0].values_in,
    )


def _is_grey(header: Dataset) -> bool:
    plain = str(header.get("PhotometricInterpretation") or "") in _GREY
    return plain and int(header.get("SamplesPerPixel") or 1) == 1


def _check_pixels(name: str, header: Dataset) -> None:
    """Refuse pixels whose numbers are no grey values, or stand where no decoder looks for them."""
    if not _is_grey(header):
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
