"""Small MONAI bundles in the shapes of the public model zoo, and synthetic images to train them on."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

SIZE = 16
FROM_ENGINE = "$monai.handlers.from_engine"


def volumes(folder: Path, count: int = 5, *, channels: int = 1, classes: int = 2, seed: int = 0) -> Path:
    """Volumes with a bright block, as NIfTI with a label each and a datalist beside them."""
    dice = np.random.default_rng(seed)
    listed = []
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        image = dice.normal(0, 0.2, (SIZE, SIZE, SIZE, channels)).astype(np.float32)
        label = np.zeros((SIZE, SIZE, SIZE), np.uint8)
        at = dice.integers(1, 7, 3)
        label[tuple(slice(a, a + 8) for a in at)] = classes - 1
        image[label > 0] += 1
        nibabel.save(nibabel.Nifti1Image(image.squeeze(), np.eye(4)), folder / "images" / f"case{index}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / "labels" / f"case{index}.nii.gz")
        listed.append({"image": f"images/case{index}.nii.gz", "label": f"labels/case{index}.nii.gz"})
    text = json.dumps({"training": listed[:-1], "validation": listed[-1:]})
    (folder / "dataset.json").write_text(text)
    return folder


def pictures(folder: Path, count: int = 10, *, seed: int = 0) -> Path:
    """Grey pictures, bright or dark, in a folder for each class."""
    dice = np.random.default_rng(seed)
    for index in range(count):
        place = folder / str(index % 2)
        place.mkdir(parents=True, exist_ok=True)
        values = np.clip(dice.normal(80 + 90 * (index % 2), 20, (32, 32)), 0, 255)
        Image.fromarray(values.astype(np.uint8)).save(place / f"film{index}.png")
    return folder


def write(
    folder: Path,
    train: Mapping[str, Any],
    evaluate: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """A bundle's folder, with more files by name."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(train))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    if evaluate is not None:
        (folder / "configs" / "evaluate.json").write_text(json.dumps(evaluate))
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def handlers(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """What the zoo's bundles attach to their trainers: validation, statistics, TensorBoard (which is not installed)."""
    loss = f"{FROM_ENGINE}(['loss'], first=True)"
    return [
        *more,
        {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "epoch_level": True, "interval": 1},
        {"_target_": "StatsHandler", "tag_name": "train_loss", "output_transform": loss},
        {"_target_": "TensorBoardStatsHandler", "log_dir": "@output_dir", "output_transform": loss},
    ]


SAVER = {
    "_target_": "CheckpointSaver",
    "save_dir": "@ckpt_dir",
    "save_dict": {"model": "@network"},
    "save_key_metric": True,
    "key_metric_filename": "model.pt",
}
LOADER = {
    "_target_": "CheckpointLoader",
    "load_path": "$@ckpt_dir + '/model.pt'",
    "load_dict": {"model": "@network"},
}


def base(network: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What all of them have in common; `changes` by id with `__` for `#`."""
    both = ["image", "label"]
    config: dict[str, Any] = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": "/workspace/bundle",
        "ckpt_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "images": "$sorted(glob.glob(@dataset_dir + '/images/*.nii.gz'))",
        "labels": "$sorted(glob.glob(@dataset_dir + '/labels/*.nii.gz'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
        "train": {
            "deterministic_transforms": [
                {"_target_": "LoadImaged", "keys": both},
                {"_target_": "EnsureChannelFirstd", "keys": both},
                {"_target_": "Orientationd", "keys": both, "axcodes": "RAS"},
                {"_target_": "EnsureTyped", "keys": both},
            ],
            "random_transforms": [
                {
                    "_target_": "RandCropByPosNegLabeld",
                    "keys": both,
                    "label_key": "label",
                    "spatial_size": [8, 8, 8],
                    "num_samples": 2,
                },
                {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 0.1, "prob": 0.5},
            ],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[:-1], @labels[:-1])]",
                "transform": "@train#preprocessing",
                "cache_rate": 1.0,
                "num_workers": 1,
                "progress": False,
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@train#dataset",
                "batch_size": 1,
                "shuffle": True,
                "num_workers": 0,
            },
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                    {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
                ],
            },
            "handlers": handlers(),
            "key_metric": {
                "train_accuracy": {
                    "_target_": "ignite.metrics.Accuracy",
                    "output_transform": f"{FROM_ENGINE}(['pred', 'label'])",
                }
            },
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 300,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "postprocessing": "@train#postprocessing",
                "key_train_metric": "@train#key_metric",
                "train_handlers": "@train#handlers",
                "amp": True,
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[-1:], @labels[-1:])]",
                "transform": "@validate#preprocessing",
                "progress": False,
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "num_workers": 0},
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.25},
            "postprocessing": "%train#postprocessing",
            "handlers": [{"_target_": "StatsHandler", "iteration_log": False}, copy.deepcopy(SAVER)],
            "key_metric": {
                "val_mean_dice": {
                    "_target_": "MeanDice",
                    "include_background": False,
                    "output_transform": f"{FROM_ENGINE}(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
                "amp": True,
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }
    for name, value in changes.items():
        place = config
        *above, last = name.split("__")
        for part in above:
            place = place[part]
        place[last] = value
    return config


def unet(**changes: Any) -> dict[str, Any]:
    """A small UNet."""
    settings = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    return {"_target_": "UNet", **settings, "num_res_units": 1, "norm": "batch", **changes}


def spleen(folder: Path, **changes: Any) -> Path:
    """CT segmentation: UNet with BatchNorm, CacheDataset, an evaluation that inverts transforms and saves images."""
    saved = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}
    inverted = {"_target_": "Invertd", "keys": "pred", "transform": "@validate#preprocessing", "orig_keys": "image"}
    evaluate = {
        "validate#dataset#cache_rate": 0,
        "validate#postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {**inverted, "nearest_interp": False, "to_tensor": True},
                {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
                saved,
            ],
        },
        "validate#handlers": [
            LOADER,
            {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": ["val_mean_dice"], "summary_ops": "*"},
        ],
        "run": ["$@validate#evaluator.run()"],
    }
    return write(folder, base(unet(), **changes), evaluate)


def brats(folder: Path) -> Path:
    """MR segmentation: SegResNet, four modalities, three nested regions, a datalist, a schedule of learning rates."""
    network = {"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1], "init_filters": 8}
    listed = "$monai.data.load_decathlon_datalist(@data_list, data_list_key='{}', base_dir=@dataset_dir)"
    transforms = [
        {"_target_": "LoadImaged", "keys": ["image", "label"], "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"},
        {"_target_": "CastToTyped", "keys": "label", "dtype": "$torch.float32"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
    ]
    crop = {"_target_": "RandSpatialCropd", "keys": ["image", "label"], "roi_size": [8, 8, 8], "random_size": False}
    flip = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}
    schedule = {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": False}
    thresholds = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
    ]
    dice = {"_target_": "MeanDice", "output_transform": f"{FROM_ENGINE}(['pred', 'label'])"}
    config = base(
        {**network, "in_channels": 4, "out_channels": 3, "dropout_prob": 0.2},
        data_list="$@dataset_dir + '/dataset.json'",
        loss={"_target_": "DiceLoss", "smooth_nr": 0, "squared_pred": True, "sigmoid": True},
        lr_scheduler={
            "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "optimizer": "@optimizer",
            "T_max": 2,
        },
        train__deterministic_transforms=transforms,
        train__random_transforms=[crop, flip],
        train__dataset={"_target_": "Dataset", "data": listed.format("training"), "transform": "@train#preprocessing"},
        train__handlers=handlers(schedule),
        train__postprocessing={"_target_": "Compose", "transforms": thresholds},
        train__key_metric={"train_mean_dice": dice},
        validate__dataset={
            "_target_": "Dataset",
            "data": listed.format("validation"),
            "transform": "@validate#preprocessing",
        },
        validate__additional_metrics={"val_mean_dice_all": dice},
        validate__evaluator__additional_metrics="@validate#additional_metrics",
    )
    return write(folder, config)


def films(folder: Path) -> Path:
    """Classification of X-rays: DenseNet on PNG, classes by folder, cross entropy."""
    listed = "$[{'image': i, 'label': int(os.path.basename(os.path.dirname(i)))} for i in @images]"
    network = {"_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    accuracy = {"_target_": "ignite.metrics.Accuracy", "output_transform": f"{FROM_ENGINE}(['pred', 'label'])"}
    config = base(
        {**network, "init_features": 8, "growth_rate": 4, "block_config": [2, 2], "bn_size": 2},
        images="$sorted(glob.glob(@dataset_dir + '/*/*.png'))",
        loss={"_target_": "torch.nn.CrossEntropyLoss"},
        train__deterministic_transforms=[
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
        ],
        train__random_transforms=[{"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0}],
        train__dataset={"_target_": "Dataset", "data": listed, "transform": "@train#preprocessing"},
        train__dataloader__batch_size=4,
        train__postprocessing={
            "_target_": "Compose",
            "transforms": [{"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False]}],
        },
        train__key_metric={"train_accu": accuracy},
        validate__dataset={"_target_": "Dataset", "data": listed, "transform": "@validate#preprocessing"},
        validate__inferer={"_target_": "SimpleInferer"},
        validate__key_metric={"val_accu": accuracy},
    )
    config["train"]["postprocessing"]["transforms"][0]["to_onehot"] = [2, 2]
    return write(folder, config)


NET = """\
from torch import nn

from scripts.parts import block


class OwnNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = block(1, width), nn.Conv3d(width, 2, 1)

    def forward(self, images):
        return self.last(self.first(images))
"""
BLOCK = """\
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.PReLU())
"""
PARTS = f"""\
import importlib

{BLOCK}

class Late:
    '''A transform that imports another module of the bundle when the first image comes.'''

    def __call__(self, data):
        return importlib.import_module("scripts.late").same(data)
"""
HANDLERS = """\
from pathlib import Path

from ignite.engine import Events
from monai.handlers import CheckpointSaver


class OwnSaver(CheckpointSaver):
    pass


class Writer:
    def __init__(self, folder):
        self.folder = Path(folder)

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine):
        (self.folder / "image.txt").write_text("of a patient")
"""


def scripted(folder: Path) -> Path:
    """Code in its `scripts` folder: a network, a transform, a handler that writes files, and a saver of its own."""
    own = {"_target_": "scripts.handlers.OwnSaver", "save_dir": "@dataset_dir", "save_dict": {"model": "@network"}}
    own |= {"save_final": True, "save_interval": 1, "epoch_level": False}
    config = base(
        {"_target_": "scripts.net.OwnNet", "width": 4},
        train__handlers=handlers({"_target_": "scripts.handlers.Writer", "folder": "@output_dir"}, own),
    )
    config["train"]["random_transforms"].append({"_target_": "scripts.parts.Late"})
    late = "def same(data):\n    return data\n"
    files = {"net": NET, "parts": PARTS, "handlers": HANDLERS, "late": late, "__init__": ""}
    return write(folder, config, None, {f"scripts/{name}.py": text for name, text in files.items()})


def aliased(folder: Path) -> Path:
    """DynUNet, whose state dict lists most tensors under several names."""
    settings: dict[str, Any] = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    network = {"_target_": "DynUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "filters": [4, 8, 8]}
    return write(folder, base({**network, **settings}), {"run": []})
