"""`dataset.json` as the Medical Segmentation Decathlon has it, and MONAI's `load_decathlon_datalist` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from worker.data.splits import SPLITS

DATASET = "dataset.json"
LIMIT = 64 * 1024**2
"""Bytes of a datalist."""


class Task(Enum):
    """What a model is to say of an image."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"
    """Any number of classes at once, as lists from elsewhere may say; `prepare` makes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatalistEntry:
    """One image of a list; paths are relative to the list's folder."""

    image: str
    label: str | int | tuple[int, ...] | None
    """A label's path, the number of a class, or a zero or a one for each class."""
    patient: str
    """A pseudonym; where a list names no patients, the image's own path."""
    split: str
    channels: Sequence[str] = ()
    """Further files of the same image, a channel each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datalist:
    """What a list says."""

    entries: Sequence[DatalistEntry]
    labels: Mapping[int, str]
    name: str = ""
    description: str = ""
    modality: str = ""
    patients_known: bool = True
    cautions: Sequence[str] = ()
    """What is understood here and not by MONAI, and what to do about it."""

    def text(self) -> str:
        """The list as JSON."""
        splits = {split: [_item(entry) for entry in self.entries if entry.split == split] for split in SPLITS}
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


def _item(entry: DatalistEntry) -> dict[str, object]:
    return {"image": [entry.image, *entry.channels] if entry.channels else entry.image, "label": entry.label}
