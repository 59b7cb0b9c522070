"""A MONAI bundle for the hippocampus volumes of the Medical Segmentation Decathlon, and their split into hospitals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (32, 48, 32)
CLASSES = 3
BATCH = 4
_FROM_ENGINE = "$monai.handlers.from_engine"


@dataclass(frozen=True, slots=True)
class Volume:
    """An image with its label, as absolute paths."""

    image: Path
    label: Path


def split(data: Path, hospitals: int) -> list[list[Volume]]:
    """The volumes of as many hospitals, by type and brightness, which differ as scanners do.

    Images stored as bytes come first; within a type the 99th percentile of the intensities decides. Within a hospital
    the order is random, by a fixed seed.
    """
    import nibabel

    def key(volume: Volume) -> tuple[str, float]:
        image: Any = nibabel.load(volume.image)
        kind = str(image.get_data_dtype())
        return ("" if kind == "uint8" else kind, float(np.percentile(np.asanyarray(image.dataobj), 99)))

    images = sorted((data / "imagesTr").glob("*.nii.gz"))
    volumes = sorted((Volume(image, data / "labelsTr" / image.name) for image in images), key=key)
    dice = np.random.default_rng(0)
    parts = np.array_split(np.arange(len(volumes)), hospitals)
    return [[volumes[index] for index in dice.permutation(part)] for part in parts]


def write_list(folder: Path, training: Sequence[Volume], validation: Sequence[Volume]) -> Path:
    """A hospital's `dataset_dir`: the list that the bundle reads."""
    folder.mkdir(parents=True)
    listed = {
        name: [{"image": str(each.image.resolve()), "label": str(each.label.resolve())} for each in volumes]
        for name, volumes in (("training", training), ("validation", validation))
    }
    (folder / "dataset.json").write_text(json.dumps(listed))
    return folder


def write_bundle(folder: Path) -> Path:
    """A UNet with instance normalisation, Dice and cross entropy, Adam."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(_config(), indent=2))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    return folder


def _config() -> dict[str, Any]:
    both = ["image", "label"]
    network = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": CLASSES, "norm": "instance"}
    fixed = [
        {"_target_": "LoadImaged", "keys": both},
        {"_target_": "EnsureChannelFirstd", "keys": both},
        {"_target_": "NormalizeIntensityd", "keys": "image"},
        {"_target_": "ResizeWithPadOrCropd", "keys": both, "spatial_size": list(SIZE)},
        {"_target_": "EnsureTyped", "keys": both, "track_meta": False},
    ]
    flip = {"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": 0}
    decided = {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": CLASSES}
    dice = {
        "_target_": "MeanDice",
        "include_background": False,
        "output_transform": f"{_FROM_ENGINE}(['pred', 'label'])",
    }
    return {
        "bundle_root": ".",
        "dataset_dir": "data",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {**network, "channels": [8, 16, 32], "strides": [2, 2], "num_res_units": 1},
        "network": "$@network_def.to(@device)",
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.005},
        "train": {
            "dataset": _dataset("training", [*fixed, flip]),
            "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": BATCH, "shuffle": True},
            "inferer": {"_target_": "SimpleInferer"},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 1,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
            },
        },
        "validate": {
            "dataset": _dataset("validation", fixed),
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": BATCH},
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": {"_target_": "SimpleInferer"},
                "postprocessing": {"_target_": "Compose", "transforms": [decided]},
                "key_val_metric": {"dice": dice},
            },
        },
    }


def _dataset(name: str, transforms: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "_target_": "CacheDataset",
        "data": f"$monai.data.load_decathlon_datalist(@dataset_dir + '/dataset.json', True, '{name}', @dataset_dir)",
        "transform": {"_target_": "Compose", "transforms": transforms},
        "progress": False,
        "num_workers": 1,
    }
