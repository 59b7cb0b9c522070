"""`dataset.json` as the Medical Segmentation Decathlon has it, and MONAI's `load_decathlon_datalist` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from protocol.errors import ConfigError
from worker.data.sources import shown
from worker.data.splits import SPLITS
from worker.data.text import read_text

DATASET = "dataset.json"
LIMIT = 64 * 1024**2
"""Bytes of a datalist."""


class Task(Enum):
    """What a model is to say of an image."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatalistEntry:
    """One image of a list; paths are relative to the list's folder."""

    image: str
    label: str | int | None
    """A label's path, or the number of a class."""
    patient: str
    """A pseudonym; where a list names no patients, the image's own path."""
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Datalist:
    """What a list says."""

    entries: Sequence[DatalistEntry]
    labels: Mapping[int, str]
    name: str = ""
    description: str = ""
    modality: str = ""
    patients_known: bool = True

    def text(self) -> str:
        """The list as JSON."""
        splits = {s: [{"image": e.image, "label": e.label} for e in self.entries if e.split == s] for s in SPLITS}
        patients: dict[str, list[str]] = {}
        for entry in self.entries:
            patients.setdefault(entry.patient, []).append(entry.image)
        document = {
            "name": self.name,
            "description": self.description,
            "modality": {"0": self.modality},
            "labels": {str(number): name for number, name in sorted(self.labels.items())},
            "numTraining": len(splits["training"]),
            "numTest": len(splits["test"]),
            **splits,
            "patients": patients,
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def read_datalist(path: Path) -> Datalist:
    """The datalist in a file.

    Raises:
        ConfigError: there is none.
    """
    text, _ = read_text(path, LIMIT, "the datalist, which `fledge data prepare` makes and --list names")
    return parse(text, path.name)


def parse(text: str, name: str) -> Datalist:
    """The list in a file's text, called `name` in errors.

    Raises:
        ConfigError: it is none, or a path in it leads out of its folder.
    """
    try:
        document = json.loads(text)
        listed = [
            (split, item if isinstance(item, dict) else {"image": item})
            for split in SPLITS
            for item in document.get(split, ())
        ]
        known = {image: patient for patient, images in (document.get("patients") or {}).items() for image in images}
        entries = [_entry(split, item, known) for split, item in listed]
        labels = {int(number): str(label) for number, label in (document.get("labels") or {}).items()}
        modality = str((document.get("modality") or {}).get("0", ""))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ConfigError(
            f"{shown(name)} is no datalist ({type(error).__name__}); it has lists of image and label under "
            "training, validation and test, as `fledge data prepare` writes them"
        ) from error
    for path in _paths(entries):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ConfigError(f"{shown(name)} names {shown(path)}, which lies elsewhere; paths are below its folder")
    if not entries:
        raise ConfigError(f"{shown(name)} lists no image; name another one with --list")
    return Datalist(
        entries=entries,
        labels=labels,
        name=str(document.get("name", "")),
        modality=modality,
        patients_known=all(entry.image in known for entry in entries),
    )


def _entry(split: str, item: Mapping[str, object], known: Mapping[str, str]) -> DatalistEntry:
    image, label = item["image"], item.get("label")
    if isinstance(image, list):  # a file for each channel
        image = image[0]
    if not isinstance(image, str) or isinstance(label, bool) or not isinstance(label, str | int | None):
        raise TypeError
    return DatalistEntry(image=image, label=label, patient=known.get(image, image), split=split)


def _paths(entries: Sequence[DatalistEntry]) -> Iterator[str]:
    for entry in entries:
        yield entry.image
        if isinstance(entry.label, str):
            yield entry.label
