"""A MONAI bundle of any size that trains in no time, and images for it: wide layers, tiny pictures, a MONAI network.

What a bundle costs in memory does not depend on what its network is good for; this one classifies bright and dark
blocks with a `FullyConnectedNet`, whose layers are as many as it takes to reach the wanted size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_SIDE = 8
_INPUTS = _SIDE**3
_WIDE, _NARROW = 4096, 512
_LARGE = 100_000_000
OPTIMIZERS = {"sgd": "torch.optim.SGD", "adam": "torch.optim.Adam"}


def hidden(size: int) -> list[int]:
    """Widths of the hidden layers of a network of `size` bytes; the last one makes up for the rest."""
    width = _WIDE if size > _LARGE else _NARROW
    widths = [width]
    left = size // 4 - _INPUTS * width
    while left >= width:
        widths.append(min(width, left // widths[-1]))
        left -= widths[-1] * width
    return widths


def write_bundle(folder: Path, size: int, *, optimizer: str = "sgd") -> Path:
    """A bundle whose network has about `size` bytes; `optimizer` is one of `OPTIMIZERS`."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(_config(size, OPTIMIZERS[optimizer]), indent=2))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    return folder


def write_images(folder: Path, *, seed: int = 0) -> Path:
    """Four blocks, bright and dark, with the list that the bundle reads."""
    dice = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    listed = []
    for index in range(4):
        image = dice.normal(index % 2, 0.2, (1, _SIDE, _SIDE, _SIDE)).astype(np.float32)
        np.save(folder / f"block{index}.npy", image)
        listed.append({"image": f"block{index}.npy", "label": index % 2})
    (folder / "dataset.json").write_text(json.dumps({"training": listed}))
    return folder


def _config(size: int, optimizer: str) -> dict[str, Any]:
    listed = "$monai.data.load_decathlon_datalist(@dataset_dir + '/dataset.json', False, 'training', @dataset_dir)"
    network = {"_target_": "FullyConnectedNet", "in_channels": _INPUTS, "out_channels": 2}
    return {
        "bundle_root": ".",
        "dataset_dir": "data",
        "device": "$torch.device('cpu')",
        "network_def": {**network, "hidden_channels": hidden(size)},
        "network": "$@network_def.to(@device)",
        "optimizer": {"_target_": optimizer, "params": "$@network.parameters()", "lr": 0.001},
        "train": {
            "dataset": {
                "_target_": "Dataset",
                "data": listed,
                "transform": {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader", "image_only": True},
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 2, "shuffle": True},
            "inferer": {"_target_": "SimpleInferer"},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 1,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": {"_target_": "torch.nn.CrossEntropyLoss"},
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
            },
        },
        "run": ["$@train#trainer.run()"],
    }
