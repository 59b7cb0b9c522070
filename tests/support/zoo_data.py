"""For every starting point of the zoo: synthetic data of its modality, and overrides that make it quick to train."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

FINDINGS = 15
_SIDE = 24
"""Voxels along each edge of a volume."""


@dataclass(frozen=True)
class Sample:
    """What a starting point is tried out with."""

    data: Callable[[Path], Path]
    metric: str
    """Its key metric."""
    narrow: Mapping[str, Any]
    """Overrides of the network and the patch, in training and in inference alike."""
    quick: Mapping[str, Any]
    """Overrides of the training alone."""

    @property
    def overrides(self) -> dict[str, Any]:
        """All of them."""
        return {**self.narrow, **self.quick}


def volumes(
    folder: Path,
    *,
    channels: int = 1,
    values: Sequence[int] = (0, 1),
    dark: float = -50,
    bright: float = 150,
    classes: bool = False,
) -> Path:
    """Four volumes with a bright block for each value of the labels; with `classes`, a class for each volume."""
    dice = np.random.default_rng(0)
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for index in range(4):
        label = np.zeros((_SIDE, _SIDE, _SIDE), np.uint8)
        for place, value in enumerate(values[1:]):
            at = [4, 4, 2 + place * 6]
            label[tuple(slice(a, a + 6) for a in at)] = value
        image = dice.normal(dark, 20, (_SIDE, _SIDE, _SIDE, channels)).astype(np.float32)
        image[label > 0] += bright - dark
        name = f"case{index}.nii.gz"
        item: dict[str, Any] = {"image": f"imagesTr/{name}"}
        _save(folder / "imagesTr" / name, image.squeeze())
        if classes:
            item["label"] = index % 2
        else:
            item["label"] = f"labelsTr/{name}"
            _save(folder / "labelsTr" / name, label)
        lists["validation" if index == 3 else "training"].append(item)
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def films(folder: Path) -> Path:
    """Six pictures in colour with fifteen findings each."""
    dice = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    items = []
    for index in range(6):
        picture = dice.integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"film{index}.png")
        items.append({"image": f"images/film{index}.png", "label": dice.integers(0, 2, FINDINGS).tolist()})
    (folder / "dataset.json").write_text(json.dumps({"training": items[:4], "validation": items[4:]}))
    return folder


def digits(folder: Path) -> Path:
    """Thirty pictures, brighter the higher the digit, in a folder for each digit."""
    dice = np.random.default_rng(0)
    for index in range(30):
        digit = index % 10
        place = folder / ("validation" if index >= 20 else "training") / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        picture = np.clip(dice.normal(20 * digit, 10, (28, 28)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(place / f"{index}.png")
    return folder


def _save(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def _ct(*values: int) -> Callable[[Path], Path]:
    return lambda folder: volumes(folder, values=values)


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
        lambda folder: volumes(folder, channels=4, values=(0, 1, 2, 4), dark=100, bright=500),
        "val_mean_dice",
        _SEGRESNET,
        _ONE,
    ),
    "chest-xray": Sample(
        films, "val_auc", {**_DENSENET, "image_size": [64, 64]}, {**_ONE, "train#dataloader#batch_size": 2}
    ),
    "covid-ct-classification": Sample(
        lambda folder: volumes(folder, classes=True),
        "val_accuracy",
        {**_DENSENET, "image_size": [64, 64, 64]},
        {**_ONE, "train#dataloader#batch_size": 2},
    ),
    "covid-ct-segmentation": Sample(_ct(0, 1), "val_mean_dice", _SEGRESNET, _CROP),
    "digits": Sample(digits, "val_accuracy", {}, {"train#dataloader#batch_size": 10}),
    "heart-aorta-ct": Sample(_ct(0, 1, 2), "val_mean_dice", _DYNUNET, _CROP),
    "hippocampus-mr": Sample(
        lambda folder: volumes(folder, values=(0, 1, 2), dark=100, bright=500),
        "val_mean_dice",
        {"network_def#channels": [4, 8, 8, 8]},
        _ONE,
    ),
    "liver-tumour-ct": Sample(_ct(0, 1, 2), "val_mean_dice", _AHNET, _CROP),
    "spleen-ct-ahnet": Sample(_ct(0, 1), "val_mean_dice", _AHNET, _CROP),
    "spleen-ct-unet": Sample(
        _ct(0, 1), "val_mean_dice", {"patch_size": [32, 32, 32], "network_def#channels": [4, 8, 8, 8, 8]}, _CROP
    ),
}
