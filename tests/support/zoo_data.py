"""For every starting point of the zoo: what a hospital has of its modality, and overrides that make it quick to train.

What a hospital has is synthetic, and becomes a site's data as at a hospital: by `fledge data prepare`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from worker.data.classes import class_list
from worker.data.datalist import Task
from worker.data.prepare import PrepareRequest, prepare
from worker.data.splits import Shares

_SIDE = 24
"""Voxels along each edge of a volume."""
_PATIENTS = 4
_SHARES = Shares(validation=0.3, seed=28)
"""By which one of four patients is validated with, and ten of thirty."""
_PATIENT = re.compile(r"(\d+)\.")


@dataclass(frozen=True)
class Sample:
    """What a starting point is tried out with."""

    archive: Callable[[Path, Sequence[str]], Path]
    """Makes what a hospital has in a folder; a classification's by the names of its classes."""
    metric: str
    """Its key metric."""
    narrow: Mapping[str, Any]
    """Overrides of the network and the patch, in training and in inference alike."""
    quick: Mapping[str, Any]
    """Overrides of the training alone."""

    classified: bool = False

    @property
    def overrides(self) -> dict[str, Any]:
        """All of them."""
        return {**self.narrow, **self.quick}


def volumes(
    folder: Path, *, channels: int = 1, values: Sequence[int] = (0, 1), dark: float = -50, bright: float = 150
) -> Path:
    """Volumes with a bright block for each value of the labels, and their labels."""
    dice = np.random.default_rng(0)
    for index in range(_PATIENTS):
        image, label = _volume(dice, channels, values, dark, bright)
        name = f"case{index}.nii.gz"
        _save(folder / "imagesTr" / name, image.squeeze())
        _save(folder / "labelsTr" / name, label)
    return folder


def scans(folder: Path, classes: Sequence[str]) -> Path:
    """Volumes in a folder for each class."""
    dice = np.random.default_rng(0)
    for index in range(_PATIENTS):
        image, _ = _volume(dice, 1, (0, 1), -50, 150)
        _save(folder / classes[index % len(classes)] / f"case{index}.nii.gz", image.squeeze())
    return folder


def films(folder: Path, classes: Sequence[str]) -> Path:
    """Pictures in colour, and films of 12 bits as DICOM becomes them, in a folder for each class."""
    dice = np.random.default_rng(0)
    for index in range(_PATIENTS):
        place = folder / classes[index % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        if index % 2:
            _save(place / f"film{index}.nii.gz", dice.integers(0, 4096, (48, 40, 1), np.int16))
        else:
            picture = dice.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(picture).save(place / f"film{index}.png")
    return folder


def digits(folder: Path, classes: Sequence[str]) -> Path:
    """Thirty pictures, brighter the higher the digit, in a folder for each digit."""
    dice = np.random.default_rng(0)
    for index in range(30):
        place = folder / classes[index % 10]
        place.mkdir(parents=True, exist_ok=True)
        picture = np.clip(dice.normal(20 * (index % 10), 10, (28, 28)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(place / f"{index}.png")
    return folder


def prepared(start: str, folder: Path) -> Path:
    """A site's data for a starting point, as `fledge data prepare` makes them of what a hospital has."""
    sample, raw, out = ZOO[start], folder / "archive", folder / "data"
    task = Task.CLASSIFICATION if sample.classified else Task.SEGMENTATION
    listed = str(files("fledge") / "zoo" / start / "docs" / "classes.txt")
    classes = class_list(listed) if sample.classified else ()
    sample.archive(raw, classes)
    wanted = PrepareRequest(images=raw, out=out, task=task, classes=classes, shares=_SHARES, patients=_PATIENT)
    prepare(wanted, lambda done, count: None)
    return out


def _volume(
    dice: np.random.Generator, channels: int, values: Sequence[int], dark: float, bright: float
) -> tuple[Any, Any]:
    label = np.zeros((_SIDE, _SIDE, _SIDE), np.uint8)
    for place, value in enumerate(values[1:]):
        at = [4, 4, 2 + place * 6]
        label[tuple(slice(a, a + 6) for a in at)] = value
    image = dice.normal(dark, 20, (_SIDE, _SIDE, _SIDE, channels)).astype(np.float32)
    image[label > 0] += bright - dark
    return image, label


def _save(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def _drawn(**how: Any) -> Callable[[Path, Sequence[str]], Path]:
    return lambda folder, classes: volumes(folder, **how)


_ONE = {"train#dataloader#batch_size": 1, "train#dataloader#num_workers": 0, "validate#dataloader#num_workers": 0}
_CROP = {**_ONE, "train#random_transforms#0#num_samples": 1}
_AHNET = {"patch_size": [64, 32, 32], "network_def#layers": [1, 1, 1, 1], "network_def#psp_block_num": 0}
_SEGRESNET = {"patch_size": [16, 16, 16], "network_def#init_filters": 8}
_DENSENET = {"network_def#init_features": 8, "network_def#growth_rate": 4, "network_def#block_config": [1, 1, 1, 1]}
_DYNUNET = {
    "patch_size": [16, 16, 16],
    "network_def#filters": [4, 8, 8],
    "network_def#kernel_size": [3, 3, 3],
    "network_def#strides": [1, 2, 2],
    "network_def#upsample_kernel_size": [2, 2],
}

ZOO: Mapping[str, Sample] = {
    "brain-tumour-mr": Sample(
        _drawn(channels=4, values=(0, 1, 2, 4), dark=100, bright=500),
        "val_mean_dice",
        _SEGRESNET,
        _ONE,
    ),
    "chest-xray": Sample(
        films, "val_auc", {**_DENSENET, "image_size": [64, 64]}, {**_ONE, "train#dataloader#batch_size": 2}, True
    ),
    "covid-ct-classification": Sample(
        scans,
        "val_accuracy",
        {**_DENSENET, "image_size": [64, 64, 64]},
        {**_ONE, "train#dataloader#batch_size": 2},
        True,
    ),
    "covid-ct-segmentation": Sample(_drawn(), "val_mean_dice", _SEGRESNET, _CROP),
    "digits": Sample(digits, "val_accuracy", {}, {"train#dataloader#batch_size": 10}, True),
    "heart-aorta-ct": Sample(_drawn(values=(0, 1, 2)), "val_mean_dice", _DYNUNET, _CROP),
    "hippocampus-mr": Sample(
        _drawn(values=(0, 1, 2), dark=100, bright=500),
        "val_mean_dice",
        {"network_def#channels": [4, 8, 8, 8]},
        _ONE,
    ),
    "liver-tumour-ct": Sample(_drawn(values=(0, 1, 2)), "val_mean_dice", _AHNET, _CROP),
    "spleen-ct-ahnet": Sample(_drawn(), "val_mean_dice", _AHNET, _CROP),
    "spleen-ct-unet": Sample(
        _drawn(), "val_mean_dice", {"patch_size": [32, 32, 32], "network_def#channels": [4, 8, 8, 8, 8]}, _CROP
    ),
}
