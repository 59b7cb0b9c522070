"""The images that a bundle infers with: those that training would take, in files that MONAI reads rightly."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from protocol.errors import ConfigError
from worker.data.discovery import find, kind_of
from worker.data.gatekeeper import FOREIGN, sort_out, volume_of
from worker.data.images import save
from worker.data.sources import Admission, ImageKind, ImageSource, Refusals, counted, shown

_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """On which terms images are read, and what is told how many of them are."""

    terms: Admission = field(default_factory=lambda: Admission(nameless=True))
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceInput:
    """One image: what the bundle reads, and what its results are called."""

    path: Path
    source: ImageSource | None = None
    """What it is made of; None where only the bundle's own reader knows the format."""

    @property
    def name(self) -> str:
        """What MONAI calls its results: the file's name up to the last dot."""
        before, end = os.path.splitext(self.path.name)
        return os.path.splitext(before)[0] if end == ".gz" else before


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceInputs:
    """All images of a folder, and what is left out of it."""

    images: Sequence[InferenceInput]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dropped: Sequence[str] = ()
    refused: Sequence[str] = ()
    """Why images are left out that cannot be used, in a sentence for each."""


def images_below(folder: Path, scratch: Path, reading: Reading) -> InferenceInputs:
    """Every image below a folder, one for each series of DICOM, which becomes a NIfTI file in `scratch`.

    Raises:
        ConfigError: there is none, training would refuse one, or two results would have one name.
    """
    files = find(folder.resolve())
    found = sort_out(files, reading.terms)
    left_out = {kind: names for kind, names in found.left_out.items() if kind != FOREIGN}
    refusals = Refusals(skip=reading.terms.skip_refused, found=dict(found.refused))
    if not found.sources and not files.foreign and not refusals.found:
        beside = "".join(f"; left out, {line}" for line in counted(left_out))
        raise ConfigError(
            f"{folder} holds no images; they are DICOM, NIfTI, PNG, JPEG or the bundle's own kinds{beside}"
        )
    images: list[InferenceInput] = []
    names = _names(found.sources)
    for done, source in enumerate(found.sources):
        if reading.progress is not None:
            reading.progress(done, len(found.sources))
        if (image := refusals.read(source, partial(_written, source, names[source], scratch))) is not None:
            images.append(image)
    images += [InferenceInput(path=path) for path in files.foreign]
    if not images:
        raise refusals.nothing_left(folder)
    _check_names(images)
    refused = list(refusals.found.values())
    return InferenceInputs(images=images, left_out=left_out, dropped=found.dropped, refused=refused)


def images_listed(
    items: Sequence[object], folder: Path, scratch: Path, reading: Reading
) -> tuple[InferenceInputs, Sequence[object] | None] | None:
    """The images of a bundle's own list, and what takes its place where that is not what it says: hidden files, or
    images that have to be written anew. None if it lists nothing, or DICOM, which is read by series.

    Raises:
        ConfigError: training would refuse one.
    """
    images: list[InferenceInput] = []
    seen = [item for item in items if not any(path.name.startswith(".") for path in _paths(item))]
    if not seen or any(_is_dicom(path) for item in seen for path in _paths(item)):
        return None
    taken, refusals = [], Refusals(skip=reading.terms.skip_refused)
    for done, item in enumerate(seen):
        if reading.progress is not None:
            reading.progress(done, len(seen))
        tried = [_taken(path, folder, scratch, refusals) for path in _paths(item)]
        files = [file for file in tried if file is not None]
        if len(files) == len(tried):  # an image of several files is whole, or left out
            images += files
            taken.append([str(file.path) for file in files])
    if not taken:
        raise refusals.nothing_left(folder)
    refused = list(refusals.found.values())
    same = len(seen) == len(items) and taken == [[str(path) for path in _paths(item)] for item in seen]
    if same:
        return InferenceInputs(images=images), None
    return InferenceInputs(images=images, refused=refused), [files[0] if len(files) == 1 else files for files in taken]


def _paths(item: object) -> Iterator[Path]:
    if isinstance(item, Mapping):
        for value in item.values():
            yield from _paths(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _paths(value)
    elif isinstance(item, str | os.PathLike) and os.path.isabs(item):
        yield Path(item)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and kind_of(path) is ImageKind.DICOM)


def _taken(path: Path, folder: Path, scratch: Path, refusals: Refusals) -> InferenceInput | None:
    """A file of the bundle's own list; None if it cannot be used."""
    kind = kind_of(path) if path.is_file() else None
    if kind is None:
        return InferenceInput(path=path)
    name = os.path.relpath(path, folder)
    source = ImageSource(name=name, kind=kind, files=(path,), patient=name, identity=name)
    return refusals.read(source, partial(_written, source, InferenceInput(path=path).name, scratch))


def _written(source: ImageSource, name: str, scratch: Path) -> InferenceInput:
    """An image as the file that it lies in, if that says by itself what it shows, or else as one that does."""
    volume, path = volume_of(source), source.files[0]
    if source.kind is ImageKind.DICOM or not volume.plain:
        scratch.mkdir(exist_ok=True)
        path = save(volume, scratch / name)
    elif (own := InferenceInput(path=path).name) != name:
        scratch.mkdir(exist_ok=True)
        link = scratch / f"{name}{path.name[len(own) :]}"
        link.symlink_to(path)
        path = link
    return InferenceInput(path=path, source=source)


def _names(sources: Sequence[ImageSource]) -> Mapping[ImageSource, str]:
    """What results are called: a file by its name, and a part of a hash of its path where others have that name; a
    series by its modality and a part of a hash of its UID, which says nothing about a patient."""
    hashes = {source: hashlib.sha256(source.identity.encode()).hexdigest() for source in sources}
    length = _DIGITS
    while len({each[:length] for each in hashes.values()}) < len(hashes):
        length += 1
    plain = {
        source: source.modality.lower() or "image"
        if source.kind is ImageKind.DICOM
        else InferenceInput(path=source.files[0]).name
        for source in sources
    }
    often = Counter(plain.values())
    return {
        source: f"{name}-{hashes[source][:length]}" if source.kind is ImageKind.DICOM or often[name] > 1 else name
        for source, name in plain.items()
    }


def _check_names(images: Sequence[InferenceInput]) -> None:
    """Refuse images of which one's result would replace the other's."""
    names: dict[str, InferenceInput] = {}
    for image in images:
        if (other := names.setdefault(image.name, image)) is not image:
            raise ConfigError(
                f"{shown(other.path)} and {shown(image.path)} have the same name, and so would their results; "
                "rename one of them"
            )
