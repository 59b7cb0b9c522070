"""From what a hospital has to what MONAI reads: one folder, made completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import ConfigError, StateError
from worker.data.classes import check_renamed, check_seen, numbered, plain, read_classes
from worker.data.datalist import DATASET, Datalist, DatalistEntry, Task
from worker.data.dicom_kinds import Beside
from worker.data.discovery import find
from worker.data.gatekeeper import admit
from worker.data.image_writer import IMAGES, LABELS, ImageWriter
from worker.data.matching import classes_by_folder, pair
from worker.data.pseudonyms import KEY_BYTES, Pseudonyms
from worker.data.sources import PICTURES, Admission, FoundImages, ImageKind, ImageSource, Refusals, counted, few
from worker.data.splits import Shares, split
from worker.data.text import write_private_table

KEY = ".patients.key"
UNFINISHED = ".unfinished"
Progress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest:
    """What was asked for."""

    images: Path
    out: Path
    labels: Path | None = None
    """A folder of labels, or a list of classes (CSV); None: labels lie beside the images, classes are folders."""
    task: Task = Task.SEGMENTATION
    shares: Shares = field(default_factory=Shares)
    patients: re.Pattern[str] | None = None
    classes: Sequence[str] = ()
    """All classes of the federation in the order of their numbers."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Other names of classes."""
    modality: str = ""
    link: bool = False
    """Share files with the images' folder instead of copying them."""
    drop_duplicates: bool = False
    also: frozenset[Beside] = frozenset()
    """What is taken for images although it is left out by itself."""
    skip_unlabelled: bool = False
    skip_refused: bool = False
    """Leave out images that cannot be used."""
    key: Path | None = None
    """The key of an earlier folder, so that patients are called the same."""
    mapping: Path | None = None
    """Where to write which case is which image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """What was made."""

    datalist: Datalist
    left_out: Mapping[str, Sequence[str]]
    """Files that are not taken, by what they are."""
    dropped: Sequence[str]
    """Repeated images."""
    refused: Sequence[str]
    """Why images are left out that cannot be used, in a sentence for each."""
    unlabelled: int
    missing: Sequence[str]
    """Classes that no image here has."""
    white: bool
    """Whether labels were black and white, so that white became class 1."""
    patients_said: bool
    """Whether files or paths said who the patients are; otherwise each image was taken for one."""


def prepare(wanted: PrepareRequest, progress: Progress) -> PreparedData:
    """Make the folder; images are read one at a time.

    Raises:
        ConfigError: something about the images or labels is wrong, or the folder is there already.
        StateError: the folder cannot be written.
    """
    images, label_files = _folders(wanted)
    _check_free(wanted)
    pseudonyms = Pseudonyms(_read_key(wanted.key)) if wanted.key else Pseudonyms.new()
    found = admit(images, _terms(wanted))
    sources, refusals = found.sources, Refusals(skip=wanted.skip_refused, found=dict(found.refused))
    if not sources:
        raise refusals.nothing_left(images) if refusals.found else _no_image(images, found.left_out)
    pairs, names = _labelled(found, label_files, wanted)
    if not pairs:
        raise ConfigError(f"{wanted.images} holds no image with a label; name the labels as their images")
    _check_units([source for source, _ in pairs])
    named = pseudonyms.names([source for source, _ in pairs])
    splits = split({source.patient for source, _ in pairs}, wanted.shares)
    labels = dict(pairs)
    entries, present = [], set[int]()
    with _all_or_nothing(wanted.out) as place:
        writer = ImageWriter.of(labels, place, wanted.link, wanted.drop_duplicates, refusals)
        for done, (name, source) in enumerate(named.items()):
            progress(done, len(named))
            placed = writer.put(name, source, labels[source])
            if placed is not None:
                check_seen(source.name, placed.classes, wanted.classes)
                present |= set(placed.classes)
                patient, part = pseudonyms.patient(source.patient), splits[source.patient]
                entries.append(DatalistEntry(image=placed.image, label=placed.label, patient=patient, split=part))
        progress(len(named), len(named))
        if not entries:
            raise refusals.nothing_left(images)
        named = {name: source for name, source in named.items() if source not in refusals.found}
        split({source.patient for source in named.values()}, wanted.shares)
        datalist = Datalist(
            entries=sorted(entries, key=lambda entry: entry.image),
            labels={number: _class_name(number, names, wanted) for number in sorted({*names, *present})},
            name=wanted.out.resolve().name,
            description=f"{wanted.task.value}, split by patient with seed {wanted.shares.seed}",
            modality=wanted.modality or ", ".join(sorted({source.modality for source in named.values()} - {""})),
        )
        (place / DATASET).write_text(datalist.text(), encoding="utf-8")
        _write_private(place / KEY, pseudonyms.key)
        if wanted.mapping is not None:
            _write_mapping(wanted.mapping, named)
    return PreparedData(
        datalist=datalist,
        left_out=found.left_out,
        dropped=[*found.dropped, *writer.duplicates.dropped],
        refused=list(refusals.found.values()),
        unlabelled=len(sources) - len(pairs),
        missing=[name for number, name in sorted(datalist.labels.items()) if number not in present],
        white=writer.white,
        patients_said=wanted.patients is not None or sources[0].kind is ImageKind.DICOM,
    )


# ---- what there is


def _folders(wanted: PrepareRequest) -> tuple[Path, Path | None]:
    """Where images and labels lie: also in one folder as the Decathlon has it."""
    if wanted.labels is None and wanted.task is Task.SEGMENTATION:
        both = wanted.images / IMAGES, wanted.images / LABELS
        if not all(each.is_dir() for each in both):
            raise ConfigError(
                f"{wanted.images} has no {IMAGES} and {LABELS} in it; name the folder of the labels with --labels, "
                "or say --task classification"
            )
        return both
    return wanted.images, wanted.labels


def _check_free(wanted: PrepareRequest) -> None:
    unfinished = wanted.out.with_name(wanted.out.name + UNFINISHED)
    for path in (wanted.out, unfinished, *([wanted.mapping] if wanted.mapping else ())):
        if os.path.lexists(path):
            why = " and was not finished, or is being written" if path == unfinished else ""
            raise ConfigError(
                f"{path} is there already{why}; nothing is overwritten: remove it, or choose another name"
            )
    for source in filter(None, (wanted.images, wanted.labels)):
        if wanted.out.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"{wanted.out} would lie inside {source}; choose a place outside")


def _no_image(folder: Path, left_out: Mapping[str, Sequence[str]]) -> ConfigError:
    beside = "".join(f"; left out, {line}" for line in counted(left_out))
    return ConfigError(f"{folder} holds no image that can be used; those are DICOM, NIfTI, PNG or JPEG files{beside}")


def _terms(wanted: PrepareRequest) -> Admission:
    return Admission(
        patients=wanted.patients,
        drop_duplicates=wanted.drop_duplicates,
        skip_refused=wanted.skip_refused,
        also=wanted.also,
    )


def _labelled(
    images: FoundImages, labels: Path | None, wanted: PrepareRequest
) -> tuple[Sequence[tuple[ImageSource, Path | int]], Mapping[int, str]]:
    """Images with their labels, and for a classification the classes by number.

    What is refused is no image here, but its label is no other image's, and its class keeps its number.
    """
    sources, refused = [*images.sources, *images.refused], images.refused
    if wanted.task is Task.SEGMENTATION:
        found = find(labels or wanted.images)
        if found.files[ImageKind.DICOM]:
            raise ConfigError(f"{labels} holds DICOM files; labels are NIfTI or PNG files: convert them first")
        files = {found.name(path): path for kind in (ImageKind.NIFTI, *PICTURES) for path in found.files[kind]}
        pairs = pair(sources, files, unlabelled=wanted.skip_unlabelled, refused=refused)
        drawn = [(source, label) for source, label in pairs if source not in refused]
        return drawn, wanted.names or dict(enumerate(wanted.classes))
    if labels is None:
        classes = classes_by_folder([source for source in sources if source not in refused or "/" in source.name])
    else:
        classes = pair(sources, read_classes(labels), unlabelled=wanted.skip_unlabelled, refused=refused)
    numbers = numbered([name for _, name in classes], wanted.classes)
    names = {number: name for name, number in numbers.items()}
    check_renamed(wanted.names, names)
    return [(source, numbers[plain(name)]) for source, name in classes if source not in refused], names


def _check_units(sources: Sequence[ImageSource]) -> None:
    """Refuse images of one modality whose values are in different units, as PET has them by vendor."""
    found: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for source in sources:
        if source.units:
            found[source.modality].setdefault(source.units, []).append(source.name)
    for modality, units in found.items():
        if len(units) > 1:
            told = "; ".join(f"{unit}: {few(names)}" for unit, names in sorted(units.items()))
            raise ConfigError(
                f"the images ({modality}) are in different units ({told}), so the same value does not mean the same; "
                "convert them to one (PET to SUV), or prepare each kind by itself"
            )


# ---- what is made


def _class_name(number: int, names: Mapping[int, str], wanted: PrepareRequest) -> str:
    plain = "background" if number == 0 and wanted.task is Task.SEGMENTATION else str(number)
    return wanted.names.get(number) or names.get(number) or plain


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder that gets its name once everything is in it, and vanishes when something goes wrong."""
    place = out.with_name(out.name + UNFINISHED)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700)
        try:
            for folder in (IMAGES, LABELS):
                (place / folder).mkdir()
            yield place
            place.rename(out)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    except OSError as error:
        raise StateError(f"{out} cannot be written: {error.strerror or error}") from error


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; it lies as {KEY} in an earlier folder") from error


def _write_private(path: Path, raw: bytes) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(raw)


def _write_mapping(path: Path, named: Mapping[str, ImageSource]) -> None:
    rows = [(name, source.patient, source.name) for name, source in sorted(named.items())]
    write_private_table(path, [("case", "patient", "image"), *rows])
