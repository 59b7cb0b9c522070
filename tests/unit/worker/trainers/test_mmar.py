"""Clara MMARs of the described shapes train by translation, and train as MONAI does by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, load_decathlon_datalist
from monai.data.utils import set_rnd
from monai.engines import SupervisedTrainer
from monai.networks.nets import UNet

from tests.support import mmars
from tests.support import monai_bundles as bundles
from tests.support.monai_marks import MONAI
from tests.support.training import control
from worker.api.weights import Weights, write_records
from worker.mmar.convert import write
from worker.trainers.initial import spec_and_payload
from worker.trainers.mmar import convert_mmar, mmar_trainer
from worker.trainers.monai_bundle import bundle_network, bundle_trainer

pytestmark = [*MONAI, pytest.mark.filterwarnings("ignore:single channel prediction:UserWarning")]


def spleen(folder: Path) -> Path:
    return mmars.write(folder, mmars.spleen_config())


def film(folder: Path) -> Path:
    return mmars.write(folder, mmars.film_config(), mmars.environment("classification"))


def older(folder: Path) -> Path:
    return mmars.write(folder, mmars.older_config(), mmars.environment(PRETRAIN_WEIGHTS_FILE=""))


SHAPES: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str]] = {
    "spleen": (spleen, bundles.volumes, "val_mean_dice"),
    "film": (film, mmars.films, "Average_AUC"),
    "older": (older, mmars.slices, "mean_dice"),
    "own": (mmars.own, bundles.volumes, "val_mean_dice"),
}


def shrunk(root: Path) -> None:
    """AHNet with one block for each layer, which its 3.1 name has no argument for."""
    path = root / "configs" / "train.json"
    config = json.loads(path.read_text())
    if config["network_def"]["_target_"] == "AHNet":
        config["network_def"]["layers"] = [1, 1, 1, 1]
        path.write_text(json.dumps(config))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_mmar_trains_and_its_loss_falls(tmp_path: Path, shape: str) -> None:
    make, images, metric = SHAPES[shape]
    write(convert_mmar(make(tmp_path / "mmar")), tmp_path / "bundle")
    shrunk(tmp_path / "bundle")
    spec, payload = spec_and_payload(bundle_network(tmp_path / "bundle"))
    records = list(payload)
    trainer = bundle_trainer(tmp_path / "bundle", dataset_dir=images(tmp_path / "data"), local_epochs=1)
    losses = []
    for version in range(2):
        weights = Weights(spec, records.__iter__)
        found = trainer.evaluate(weights, control(version=version))
        assert found.examples > 0
        assert 0 <= found.metrics[metric] <= 1
        result = trainer.train(weights, control(version=version, seed=version))
        losses.append(result.metrics["loss"])
        records = list(write_records(spec, result.weights.__getitem__))
    assert losses[-1] < losses[0]


def test_the_translated_mmar_gives_the_weights_of_a_script_by_hand(tmp_path: Path) -> None:
    images = bundles.volumes(tmp_path / "data")
    write(convert_mmar(spleen(tmp_path / "mmar")), tmp_path / "bundle")
    spec, payload = spec_and_payload(bundle_network(tmp_path / "bundle"))
    records = list(payload)
    trainer = mmar_trainer(tmp_path / "mmar", dataset_dir=images, local_epochs=2)
    result = trainer.train(Weights(spec, lambda: iter(records)), control(seed=5))
    expected = by_hand(images, bundle_network(tmp_path / "bundle").state_dict(), seed=5, epochs=2)
    assert result.steps == 4
    moved = 0.0
    for name, before in Weights(spec, lambda: iter(records)).tensors():
        np.testing.assert_allclose(result.weights[name], expected[name].numpy(), rtol=0, atol=1e-6)
        moved += float(np.abs(expected[name].numpy() - before).sum())
    assert moved > 1


def by_hand(images: Path, begin: Mapping[str, Any], *, seed: int, epochs: int) -> Mapping[str, torch.Tensor]:
    """The spleen MMAR as somebody writes it with today's MONAI, without any configuration."""
    from monai import transforms as t

    both = ["image", "label"]
    steps = t.Compose(
        [
            t.LoadImaged(both),
            t.EnsureChannelFirstd(both, channel_dim="no_channel"),
            t.ScaleIntensityRanged("image", -0.5, 1.5, 0.0, 1.0, clip=True),
            t.RandCropByPosNegLabeld(both, "label", [8, 8, 8], 1, 1, 2),
            t.RandShiftIntensityd("image", 0.1, prob=0.5),
            t.EnsureTyped(both),
        ]
    )
    listed = load_decathlon_datalist(images / "dataset.json", True, "training", images)
    dataset = CacheDataset(listed, steps, progress=False)
    network = UNet(3, 1, 2, [4, 8], [2], num_res_units=1, norm="batch")
    network.load_state_dict(begin)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(dataset, batch_size=2, shuffle=True, num_workers=0),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.01),
        loss_function=monai.losses.DiceLoss(to_onehot_y=True, softmax=True),
    )
    monai.utils.set_determinism(seed)
    set_rnd(dataset, seed)
    trainer.run()
    return network.state_dict()


def test_options_of_bundles_are_options_of_mmars(tmp_path: Path) -> None:
    images = bundles.volumes(tmp_path / "data")
    (images / "dataset.json").rename(images / "list.json")
    trainer = mmar_trainer(
        spleen(tmp_path / "mmar"), dataset_dir=images, local_steps=1, overrides={"dataset_json": "list.json"}
    )
    result = trainer.train(Weights(trainer.spec, lambda: iter(list(trainer.initial()))), control())
    assert result.steps == 1
    assert result.examples == 4
