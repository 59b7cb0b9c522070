"""What is wrong with a site's images and labels, for a bundle: looked at one by one, before anything trains on them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from monai.transforms.io.array import LoadImage
from nibabel.dataobj_images import DataobjImage
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from PIL import Image

from protocol.errors import ConfigError
from worker.bundles.findings import Problem, Severity
from worker.data.discovery import FoundFiles, find, kind_of
from worker.data.gatekeeper import sort_out, volume_of
from worker.data.nifti import check_extensions, in_mm
from worker.data.pictures import as_seen
from worker.data.sources import Admission, ImageKind, counted, told
from worker.data.volumes import VOXELS

Item = Mapping[str, object]
ANSWER = "label"
"""Under which key MONAI's trainers find a class or a list of zeros and ones."""
LABELS = ("label", "mask", "seg")
"""What a key's name has in it if labels stand under it."""
_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_SEEN = ("PNG", "JPEG")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Expected:
    """What a bundle's network takes; None: that does not follow from its configuration, and is not judged."""

    channels: int | None = None
    classes: frozenset[int] | None = None
    """The values a label may have."""
    answers: int | None = None
    """How many zeros and ones a label has that is a list."""
    loaded: tuple[str, ...] = ("image", "label")
    """The keys under which files stand."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file holds."""

    shape: tuple[int, ...]
    """In space, without channels."""
    channels: int | None
    finite: bool = True
    whole: bool = True
    values: frozenset[int] | None = None
    """The distinct values of a label, if they are whole numbers and they were looked at."""
    seen: bool = True
    """Whether the numbers in it are what a person sees: MONAI takes the places of a palette, and transparency too."""
    unit: float = 1.0
    """How many millimetres its unit of length is: MONAI takes every one for a millimetre."""


def item_findings(items: Sequence[Item], expected: Expected, *, quick: bool = False) -> Iterator[Problem]:
    """Go through a list of examples, each a mapping of keys to files and labels; every file is read once.

    Args:
        quick: look at the headers of volumes and pictures alone, not at their values.
    """
    for number, item in enumerate(items):
        facts: dict[str, tuple[str, Facts]] = {}
        for key in expected.loaded:
            if key not in item:
                yield Problem(f"example {number}", f"has no {key!r}", "correct the list of data")
                continue
            if not (paths := files_of(item[key])):
                continue
            is_label = labels(key)
            found = []
            for path in paths:
                try:
                    found.append(look(path, label=is_label, quick=quick))
                except Unreadable as error:
                    yield error.finding
            if len({each.shape for each in found}) > 1:
                yield Problem(str(paths[0]), "and the other files of its image differ in shape", "resample them alike")
            elif len(found) == len(paths):
                facts[key] = str(paths[0]), together(found)
        yield from judged(facts, expected)
        if ANSWER in item and ANSWER not in expected.loaded:
            yield from judged_answer(f"{ANSWER} of {_named(item, number)}", item[ANSWER], expected)


def judged(facts: Mapping[str, tuple[str, Facts]], expected: Expected) -> Iterator[Problem]:
    """What is wrong with one example, by what its files hold."""
    images = {key: each for key, each in facts.items() if not labels(key)}
    for where, image in images.values():
        if expected.channels is not None and image.channels is not None and image.channels != expected.channels:
            yield Problem(
                where,
                f"has {image.channels} channels, and the bundle's network takes {expected.channels}",
                "give it the images it was made for",
            )
        if not image.finite:
            yield Problem(where, "has intensities that are not finite", "repair the image or take it out")
        if not image.seen:
            told = (
                "is stored with a palette, transparency, one bit or turned; MONAI reads other values than a person sees"
            )
            yield Problem(where, told, "have `fledge data prepare` write it anew", Severity.WARNING)
    for where, each in facts.values():
        if each.unit != 1:
            told = f"is measured in units of {each.unit:g} mm (xyzt_units), which MONAI takes for millimetres"
            yield Problem(where, told, "have `fledge data prepare` write it anew", Severity.WARNING)
    for key, (where, label) in facts.items():
        if not labels(key):
            continue
        for beside, image in images.values():
            if image.shape != label.shape:
                told = f"has the shape {label.shape}, and its image {beside} has {image.shape}"
                yield Problem(where, told, "resample the label to its image")
        if not label.whole:
            yield Problem(where, "has values that are not whole numbers", "resample labels with nearest neighbours")
        elif label.values is not None and expected.classes is not None:
            yield from _outside(where, label.values, expected.classes)


def judged_answer(where: str, answer: object, expected: Expected) -> Iterator[Problem]:
    """What is wrong with a label that is no file: a class, or a list of zeros and ones."""
    if isinstance(answer, str | Path):
        yield Problem(where, f"is the text {str(answer)!r}", "write the number of the class")
    elif isinstance(answer, Sequence):
        if expected.answers is not None and len(answer) != expected.answers:
            told = f"has {len(answer)} entries, and the bundle's network gives {expected.answers}"
            yield Problem(where, told, "write a zero or a one for each, in the bundle's order")
        if any(each not in (0, 1) for each in answer):
            yield Problem(where, "has entries other than zero and one", "write a zero or a one for each")
    elif isinstance(answer, int | float):
        if isinstance(answer, float) and not answer.is_integer():
            yield Problem(where, f"is {answer}, which is no class", "write the number of the class")
        elif expected.classes is not None:
            yield from _outside(where, frozenset({int(answer)}), expected.classes)


def look(path: Path, *, label: bool, quick: bool) -> Facts:
    """What a file holds, read with what its kind is read with; a kind that is not known, with MONAI.

    Raises:
        Unreadable: it is not there or cannot be read.
    """
    name = path.name.lower()
    if not os.path.exists(path):  # unlike a path's own method, also where no file can be called so
        raise Unreadable(path, "is not there", "put it there, or correct dataset_dir or the list of data")
    if not (path.is_file() or path.is_dir()):
        raise Unreadable(path, "is no file but a pipe or a device", "take it out of the list of data")
    try:
        if (files := _dicom_files(path)) is not None:
            return _dicom(path, files, label=label)
        if name.endswith(_NIFTI):
            return _volume(path, label=label, quick=quick)
        if name.endswith(_PICTURES):
            return _picture(path, label=label, quick=quick)
        return _other(path, label=label, quick=quick)
    except Unreadable:
        raise
    except Exception as error:  # readers of images raise all kinds of things
        told = " ".join(str(error).split())[:200]
        raise Unreadable(path, f"cannot be read: {told}", "copy it anew, or take it out") from error


def duplicates(training: Sequence[Item], validation: Sequence[Item], keys: Iterable[str]) -> Iterator[Problem]:
    """Images that are trained on and validated on, the same file or another one with the same bytes."""
    trained = _files(training, keys)
    by_size: dict[int, list[Path]] = {}
    for path in trained:
        by_size.setdefault(path.stat().st_size, []).append(path)
    digests: dict[Path, bytes] = {}
    for path in _files(validation, keys):
        alike = by_size.get(path.stat().st_size, [])
        same = (other for other in alike if _digest(other, digests) == _digest(path, digests))
        twin = path if path in trained else next(same, None)
        if twin is not None:
            told = "is also trained on" + ("" if twin == path else f", as {twin}")
            yield Problem(str(path), told, "keep each patient in one list; results would look better than they are")


def labels(key: str) -> bool:
    """Whether labels stand under this key, by its name."""
    return any(word in key.lower() for word in LABELS)


def files_of(value: object) -> list[Path]:
    """The files that stand under a key: one, several that are one image, or none if it is a class or a number."""
    if isinstance(value, str | Path):
        return [Path(value)]
    if isinstance(value, list | tuple) and value and all(isinstance(each, str | Path) for each in value):
        return [Path(each) for each in value]
    return []


def together(found: Sequence[Facts]) -> Facts:
    """Several files of one shape that are the channels of one image."""
    channels = [each.channels for each in found]
    values = [each.values for each in found if each.values is not None]
    return Facts(
        shape=found[0].shape,
        channels=None if None in channels else sum(each or 0 for each in channels),
        finite=all(each.finite for each in found),
        whole=all(each.whole for each in found),
        values=frozenset().union(*values) if values else None,
        seen=all(each.seen for each in found),
        unit=next((each.unit for each in found if each.unit != 1), 1.0),
    )


class Unreadable(ConfigError):
    """A file that cannot be looked at, as a finding."""

    def __init__(self, path: Path, what: str, advice: str) -> None:
        super().__init__(f"{path} {what}; {advice}")
        self.finding = Problem(str(path), what, advice)


def _volume(path: Path, *, label: bool, quick: bool) -> Facts:
    check_extensions(path)
    volume = nibabel.load(path)
    if not isinstance(volume, DataobjImage):
        raise TypeError("it holds no image")
    shape = tuple(map(int, volume.shape))
    _bounded(path, shape)
    channels = math.prod(shape[3:]) if len(shape) > 3 else 1
    facts = Facts(shape[:3], channels, unit=in_mm(volume) if isinstance(volume, SpatialImage) else 1.0)
    return facts if quick else _valued(np.asanyarray(volume.dataobj), facts, label)


def _picture(path: Path, *, label: bool, quick: bool) -> Facts:
    with Image.open(path) as picture:
        _bounded(path, picture.size)
        seen = picture.format not in _SEEN or as_seen(picture)
        facts = Facts(tuple(picture.size), len(picture.getbands()), seen=seen)
        return facts if quick else _valued(np.asarray(picture), facts, label)


def _dicom_files(path: Path) -> FoundFiles | None:
    """The DICOM files that stand for one image: a file, or all of a folder; None if there are none."""
    if path.is_dir():
        found = find(path)
        return found if found.files[ImageKind.DICOM] else None
    if kind_of(path) is not ImageKind.DICOM:
        return None
    return FoundFiles(path.parent, {**FoundFiles(path).files, ImageKind.DICOM: [path]})


def _dicom(path: Path, files: FoundFiles, *, label: bool) -> Facts:
    """A series or an X-ray, if that is all that MONAI would read here as one image."""
    try:
        found = sort_out(files, Admission(nameless=True, skip_refused=True))
        if found.refused:
            raise ConfigError(told(found.refused.values()))
        beside = "".join(f"; {line}" for line in counted(found.left_out))
        if len(found.sources) != 1 or found.left_out or found.sources[0].kind is not ImageKind.DICOM:
            holds = f"is read as one image, and holds {len(found.sources)}{beside}"
            raise Unreadable(path, holds, "make files of them with `fledge data prepare`")
        values = volume_of(found.sources[0]).values
    except Unreadable:
        raise
    except ConfigError as error:
        raise Unreadable(
            path, f"would be read wrongly: {error}", "make files of it with `fledge data prepare`"
        ) from error
    return _valued(values, Facts(tuple(map(int, values.shape)), 1), label)


def _other(path: Path, *, label: bool, quick: bool) -> Facts:
    """MONAI has no way to read a header alone, so `quick` spares the values and not the reading."""
    read = LoadImage(image_only=True, ensure_channel_first=True)(str(path))
    facts = Facts(tuple(map(int, read.shape[1:])), int(read.shape[0]))
    return facts if quick else _valued(np.asarray(read), facts, label)


def _bounded(path: Path, shape: Sequence[int]) -> None:
    if math.prod(shape) > VOXELS:
        raise Unreadable(path, f"says it has the shape {tuple(shape)}", "copy it anew: no scanner makes such images")


def _valued(array: NDArray[np.generic], facts: Facts, label: bool) -> Facts:
    finite = bool(np.isfinite(array).all())
    if not label or not finite:
        return replace(facts, finite=finite, whole=finite)
    if array.dtype.kind not in "iub" and bool((array != np.rint(array)).any()):
        return replace(facts, whole=False)
    values = frozenset(int(value) for value in np.unique(array))
    return replace(facts, values=values)


def _outside(where: str, values: frozenset[int], classes: frozenset[int]) -> Iterator[Problem]:
    if odd := sorted(values - classes):
        shown = ", ".join(map(str, odd[:_SHOWN])) + (", …" if len(odd) > _SHOWN else "")
        allowed = ", ".join(map(str, sorted(classes)))
        yield Problem(where, f"has the value {shown}, and the bundle's classes are {allowed}", "correct the labels")


def _named(item: Item, number: int) -> str:
    return next((str(paths[0]) for value in item.values() if (paths := files_of(value))), f"example {number}")


def _files(items: Iterable[Item], keys: Iterable[str]) -> dict[Path, None]:
    wanted = [key for key in keys if not labels(key)]
    found = (path for item in items for key in wanted for path in files_of(item.get(key)))
    return dict.fromkeys(path.resolve() for path in found if os.path.isfile(path))


def _digest(path: Path, known: dict[Path, bytes]) -> bytes:
    if path not in known:
        with path.open("rb") as file:
            known[path] = hashlib.file_digest(file, "sha256").digest()
    return known[path]
