"""MONAI bundles as trainers: those of the public zoo's shapes run as they are, and leave nothing behind."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch
from monai.data import Dataset
from structlog.testing import capture_logs

from protocol.errors import Aborted, ConfigError, DataError, TrainingError
from protocol.spec import ModelSpec, TensorKind
from tests.support import monai_bundles as bundles
from tests.support.monai_marks import MONAI
from tests.support.training import FEDERATION, SITE, control, form
from worker.api.trainer import Control
from worker.api.weights import Records, Weights, write_records
from worker.monai.datalist import listed
from worker.monai.errors import explained
from worker.storage.local_tensors import LocalTensors
from worker.trainers.initial import spec_and_payload
from worker.trainers.monai_bundle import BundleTrainer, batchnorm, bundle_network, bundle_trainer, site_trainer

pytestmark = MONAI

Arrays = dict[str, np.ndarray]


@dataclass
class Place:
    """A site's folder with a bundle and data."""

    bundle: Path
    data: Path

    def trainer(self, **options: Any) -> BundleTrainer:
        """The bundle's trainer."""
        return bundle_trainer(self.bundle, dataset_dir=self.data, **options)

    def base(self) -> tuple[ModelSpec, Records]:
        """Version 0, made without data."""
        spec, payload = spec_and_payload(bundle_network(self.bundle))
        recorded = list(payload)
        return spec, lambda: iter(recorded)


def brats_data(folder: Path) -> Path:
    return bundles.volumes(folder, 3, channels=4, classes=5)


SHAPES: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str]] = {
    "spleen": (bundles.spleen, bundles.volumes, "val_mean_dice"),
    "brats": (bundles.brats, brats_data, "val_mean_dice_all"),
    "films": (bundles.films, bundles.pictures, "val_accu"),
    "scripted": (bundles.scripted, bundles.volumes, "val_mean_dice"),
    "aliased": (bundles.aliased, bundles.volumes, "val_mean_dice"),
}


def place(tmp_path: Path, shape: str) -> Place:
    bundle, data, _ = SHAPES[shape]
    return Place(bundle(tmp_path / "bundle"), data(tmp_path / "data"))


@pytest.fixture
def spleen(tmp_path: Path) -> Place:
    return place(tmp_path, "spleen")


@pytest.fixture
def films(tmp_path: Path) -> Place:
    return place(tmp_path, "films")


def copied(arrays: Mapping[str, Any]) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def same(first: Arrays, second: Arrays) -> bool:
    return all(np.array_equal(array, second[name]) for name, array in first.items())


def trained(trainer: BundleTrainer, spec: ModelSpec, records: Records, **changes: Any) -> Arrays:
    return copied(trainer.train(Weights(spec, records), control(**changes)).weights)


# ---- as they are


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bundle_runs_without_a_line_changed_and_its_loss_falls(tmp_path: Path, shape: str) -> None:
    site = place(tmp_path, shape)
    before = sorted(tmp_path.rglob("*"))
    spec, records = site.base()
    trainer = site.trainer(local_epochs=2)
    assert trainer.spec == spec
    losses = []
    for version in range(3):
        weights = Weights(spec, records)
        found = trainer.evaluate(weights, control(version=version))
        assert found.examples > 0
        assert 0 <= found.metrics[SHAPES[shape][2]] <= 1
        result = trainer.train(weights, control(version=version, seed=version))
        losses.append(result.metrics["loss"])
        payload = list(write_records(spec, result.weights.__getitem__))
        records = lambda payload=payload: iter(payload)  # noqa: E731
    assert losses[-1] < losses[0]
    assert result.examples == {"brats": 2, "films": 10}.get(shape, 4)
    assert result.steps == 2 * {"brats": 2, "films": 3}.get(shape, 4)
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


def test_every_iteration_is_told_and_metrics_come_with_the_result(spleen: Place) -> None:
    told: list[tuple[float, Mapping[str, float]]] = []
    spec, records = spleen.base()
    result = spleen.trainer().train(Weights(spec, records), control(on_progress=lambda *said: told.append(said)))
    assert [fraction for fraction, _ in told] == [0.25, 0.5, 0.75, 1.0]
    assert all("loss" in metrics for _, metrics in told)
    assert set(result.metrics) == {"loss", "train_accuracy"}


def test_metrics_that_an_update_cannot_say_get_names_that_it_can(spleen: Place) -> None:
    metric = {"train accuracy (%)": {"_target_": "ignite.metrics.Accuracy"}}
    metric["train accuracy (%)"]["output_transform"] = f"{bundles.FROM_ENGINE}(['pred', 'label'])"
    trainer = spleen.trainer(overrides={"train#key_metric": metric})
    assert set(form(trainer, *spleen.base()).update.metrics) == {"loss", "train_accuracy____"}


def test_weights_are_the_networks_own_tensors_and_gradients_are_gone(spleen: Place) -> None:
    trainer = spleen.trainer()
    result = trainer.train(Weights(*spleen.base()), control())
    for name, tensor in trainer.model.state_dict().items():
        assert result.weights[name].__array_interface__["data"][0] == tensor.data_ptr()
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    ready = trainer._ready(None)
    assert not ready.trainer.engine.optimizer.state
    assert ready.evaluator is not None
    assert ready.evaluator.engine.network is ready.trainer.engine.network is trainer.model


def test_aliased_tensors_are_sent_once(tmp_path: Path) -> None:
    site = place(tmp_path, "aliased")
    spec, records = site.base()
    network = bundle_network(site.bundle)
    assert len(spec.tensors) < len(network.state_dict())
    assert sum(tensor.elements for tensor in spec.tensors) == sum(each.numel() for each in network.parameters())
    assert set(form(site.trainer(local_steps=1), spec, records).delta) == spec.names


# ---- repeatable, exact, stopped at once


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_weights_also_after_a_training_was_stopped(spleen: Place, workers: int) -> None:
    loading = {"train#dataloader#num_workers": workers}
    trainer = spleen.trainer(overrides=loading)
    spec, records = spleen.base()
    once = trained(trainer, spec, records, seed=11)
    abort = threading.Event()
    told: list[float] = []

    def stop(fraction: float, _: Mapping[str, float]) -> None:
        told.append(fraction)
        if len(told) == 2:
            abort.set()

    with pytest.raises(Aborted):
        trained(trainer, spec, records, seed=12, abort=abort, on_progress=stop)
    assert len(told) == 2
    again = trainer.train(Weights(spec, records), control(seed=11))
    assert again.steps == 4
    assert same(once, copied(again.weights))
    assert not same(once, trained(trainer, spec, records, seed=12))
    other = spleen.trainer(overrides=loading)
    assert same(once, trained(other, spec, records, seed=11))


def test_a_training_that_is_stopped_before_it_begins_does_nothing(spleen: Place) -> None:
    abort = threading.Event()
    abort.set()
    spec, records = spleen.base()
    trainer = spleen.trainer()
    with pytest.raises(Aborted):
        trained(trainer, spec, records, abort=abort)
    with pytest.raises(Aborted):
        trainer.evaluate(Weights(spec, records), control(abort=abort))


def test_as_many_iterations_as_asked_for(spleen: Place) -> None:
    weights = Weights(*spleen.base())
    epochs, steps = spleen.trainer(local_epochs=2), spleen.trainer(local_steps=3)
    for trainer, task, done in (
        (steps, {}, 3),
        (steps, {}, 3),
        (steps, {"local_epochs": 1}, 4),
        (steps, {"local_steps": 6}, 6),
        (epochs, {}, 8),
        (epochs, {"local_steps": 1}, 1),
        (epochs, {"local_steps": 4}, 4),
        (epochs, {"batch_size": 4}, 2),
        (epochs, {"local_epochs": 1}, 4),
    ):
        assert trainer.train(weights, control(task=task)).steps == done


def test_optimizer_and_schedule_begin_anew_unless_they_are_kept(tmp_path: Path) -> None:
    site = place(tmp_path, "brats")
    spec, records = site.base()
    fresh, kept = site.trainer(), site.trainer(momentum="keep")
    first = trained(fresh, spec, records)
    assert same(first, trained(kept, spec, records))
    assert same(first, trained(fresh, spec, records))
    assert not same(first, trained(kept, spec, records))
    group = kept._ready(None).trainer.engine.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0, abs=1e-9)
    assert fresh._ready(None).trainer.engine.optimizer.param_groups[0]["lr"] == 0.01
    assert not same(first, trained(fresh, spec, records, task={"lr": 0.1}))
    assert same(first, trained(fresh, spec, records))


# ---- what stays at the site


def test_batchnorm_stays_at_the_site_by_the_type_of_its_layers(spleen: Place, tmp_path: Path) -> None:
    spec, records = spleen.base()
    trainer = spleen.trainer(keep_local="batchnorm")
    network = bundle_network(spleen.bundle)
    norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm3d)}
    wanted = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias", "running_mean", "running_var")}
    assert trainer.keeps == wanted == batchnorm(network)
    own = LocalTensors(tmp_path / "own", SITE, FEDERATION)
    formed = form(trainer, spec, records, own=own)
    assert set(formed.update.absent) == wanted
    assert all(not formed.delta[name].any() for name in wanted)
    kept = copied({name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()})
    seen: list[Arrays] = []
    real = trainer.train

    def watched(base: Weights, training: Control) -> Any:
        seen.append({name: array.copy() for name, array in base.tensors()})
        return real(base, training)

    trainer.train = watched
    form(trainer, spec, records, own=own)
    assert all(np.array_equal(seen[0][name], kept[name]) for name in wanted)


def test_statistics_are_buffers_and_counters_stay(spleen: Place) -> None:
    kinds = {tensor.name.rpartition(".")[2]: tensor.kind for tensor in spleen.base()[0].tensors}
    assert kinds["running_mean"] == kinds["running_var"] == TensorKind.BUFFER
    assert kinds["num_batches_tracked"] == TensorKind.OTHER


def test_a_fingerprint_covers_the_files_of_the_list_wherever_they_lie(tmp_path: Path, spleen: Place) -> None:
    def printed(data: Path, **options: Any) -> Any:
        trainer = bundle_trainer(spleen.bundle, dataset_dir=data, local_steps=1, **options)
        return trainer.train(Weights(*spleen.base()), control(fingerprint_key=bytes(32))).fingerprint

    assert printed(spleen.data) is None
    first = printed(spleen.data, fingerprint=True)
    assert first.count == 4
    moved = Path(shutil.copytree(spleen.data, tmp_path / "moved"))
    assert printed(moved, fingerprint=True) == first
    shutil.copy(moved / "labels" / "case1.nii.gz", moved / "labels" / "case0.nii.gz")
    assert printed(moved, fingerprint=True).root != first.root


def test_a_fingerprint_needs_a_list(tmp_path: Path) -> None:
    assert list(listed(Dataset([{"image": "a word", "label": 3}]))) == [{"image": "a word", "label": 3}]
    with pytest.raises(ConfigError, match="the bundle's object has no list of data to make a fingerprint of"):
        listed(object())
    with pytest.raises(DataError, match="cannot be read for the fingerprint"):
        list(listed(Dataset([{"image": str(tmp_path)}])))


# ---- version 0


def test_version_0_follows_from_the_seed_or_from_trained_weights(spleen: Place, tmp_path: Path) -> None:
    one, other = bundle_network(spleen.bundle), bundle_network(spleen.bundle, seed=1)
    assert same(*(copied(bundle_network(spleen.bundle).state_dict()) for _ in range(2)))
    assert not same(copied(one.state_dict()), copied(other.state_dict()))
    torch.save({"model": other.state_dict()}, tmp_path / "model.pt")
    safetensors.torch.save_file(other.state_dict(), tmp_path / "model.safetensors")
    torch.save(torch.nn.DataParallel(other).state_dict(), tmp_path / "parallel.pt")
    for name in ("model.pt", "model.safetensors", "parallel.pt"):
        given = bundle_network(spleen.bundle, weights=tmp_path / name)
        assert same(copied(given.state_dict()), copied(other.state_dict()))
    torch.save({"first.weight": torch.ones(3)}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    shutil.copy(tmp_path / "model.pt", tmp_path / "renamed.safetensors")
    told = {"other.pt": "does not hold the weights", "list.pt": "does not hold the weights", "none.pt": "is not there"}
    for file, text in {**told, "renamed.safetensors": "holds no plain weights"}.items():
        with pytest.raises(ConfigError, match=text):
            bundle_network(spleen.bundle, weights=tmp_path / file)


WRAPPED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "checkpoint": lambda saved: {"model": saved, "optimizer": {"state": {}, "param_groups": []}},
    "parallel": lambda saved: {f"module.{name}": value for name, value in saved.items()},
    "compiled": lambda saved: {"network": {f"_orig_mod.{name}": value for name, value in saved.items()}},
    "lightning": lambda saved: {
        "epoch": 3,
        "state_dict": {**{f"net.{name}": value for name, value in saved.items()}, "loss.weight": torch.ones(2)},
    },
    "half": lambda saved: {name: value.half() for name, value in saved.items()},
    "mean beside it": lambda saved: {"ema": {n: 0 * value for n, value in saved.items()}, "model": saved},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_trained_weights_are_found_however_they_were_saved(spleen: Place, tmp_path: Path, form: str) -> None:
    trained_ones = bundle_network(spleen.bundle, seed=5).state_dict()
    torch.save(WRAPPED[form](trained_ones), tmp_path / "model.pt")
    found = bundle_network(spleen.bundle, weights=tmp_path / "model.pt").state_dict()
    for name, value in trained_ones.items():
        assert torch.allclose(found[name], value, atol=1e-3), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda saved: dict(list(saved.items())[1:]),
            "does not hold the weights of .*Missing key",
        ),
        (lambda saved: {**saved, "more": torch.ones(1)}, "Unexpected key"),
        (lambda saved: {"a": saved, "b": saved}, "Missing key"),
        (lambda saved: torch.nn.Linear(1, 1), "holds no plain weights .*save the network's state_dict\\(\\) alone"),
    ],
)
def test_a_file_without_the_networks_weights_is_refused(
    spleen: Place, tmp_path: Path, change: Callable[[Mapping[str, Any]], Any], told: str
) -> None:
    torch.save(change(bundle_network(spleen.bundle).state_dict()), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=told):
        bundle_network(spleen.bundle, weights=tmp_path / "model.pt")


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"momentum": "some"}, "momentum"),
        ({"keep_local": "groupnorm"}, "keep_local"),
        ({"device": "__import__('os')"}, "device"),
        ({"local_epochs": 1, "local_steps": 1}, "not both"),
        ({"local_steps": 0}, "local_steps is 0"),
        ({"amp": "no"}, "amp is 'no'; it has to be true or false"),
        ({"fingerprint": 1}, "fingerprint is 1"),
        ({"gpus": 0}, "gpus is 0; it has to be a list"),
        ({"gpus": "01"}, "gpus is '01'"),
        ({"device": 0}, "device is 0"),
        ({"overrides": ["amp"]}, "overrides is"),
        ({"overrides": {"train#dataloadr#batch_size": 2}}, "has no 'train#dataloadr#batch_size'"),
        ({"overrides": {"train#inferer#_target_": "NoSuchInferer"}}, "NoSuchInferer"),
    ],
)
def test_a_wrong_option_is_named(spleen: Place, options: dict[str, Any], text: str) -> None:
    with pytest.raises((ConfigError, TrainingError), match=text):
        spleen.trainer(**options)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    data = bundles.volumes(tmp_path / "data", 2)
    with pytest.raises(ConfigError, match="not a folder here"):
        bundle_trainer(tmp_path, dataset_dir=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"configs/train\.json is not there"):
        bundle_trainer(tmp_path, dataset_dir=data)
    config = bundles.base(bundles.unet())
    del config["dataset_dir"], config["train"]["inferer"]
    with pytest.raises(ConfigError, match=r"lacks the required dataset_dir, train#inferer in train\.json"):
        bundle_trainer(bundles.write(tmp_path / "less", config), dataset_dir=data)
    config = bundles.base({"_target_": "nobody.has.Net"})
    with pytest.raises(TrainingError, match="nobody"):
        bundle_trainer(bundles.write(tmp_path / "net", config), dataset_dir=data)


def test_a_folder_without_data_is_told(spleen: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="finds no training data below dataset_dir"):
        bundle_trainer(spleen.bundle, dataset_dir=tmp_path / "empty")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    site = place(tmp_path, "brats")
    (site.data / "images" / "case0.nii.gz").unlink()
    spec, records = site.base()
    for workers in (0, 1):
        trainer = site.trainer(overrides={"train#dataloader#num_workers": workers})
        with pytest.raises(TrainingError, match=r"case0\.nii\.gz cannot be read, and the bundle's list of data"):
            trained(trainer, spec, records)


def test_images_with_other_channels_are_told(tmp_path: Path) -> None:
    site = Place(bundles.spleen(tmp_path / "bundle"), bundles.volumes(tmp_path / "data", channels=3))
    with pytest.raises(TrainingError, match="takes images with 1 channels, and an image here has 3"):
        trained(site.trainer(), *site.base())


def test_labels_outside_the_classes_are_told(tmp_path: Path, films: Place) -> None:
    site = Place(bundles.spleen(tmp_path / "volumes"), bundles.volumes(tmp_path / "more", classes=6))
    with pytest.raises(TrainingError, match=r"a label here has (the value 5|a value) .*none of the classes"):
        trained(site.trainer(), *site.base())
    (films.data / "1").rename(films.data / "4")
    with pytest.raises(TrainingError, match=r"a label here has the value 4.*none of the classes"):
        trained(films.trainer(), *films.base())


def test_a_site_with_fewer_images_than_a_batch_says_so_and_trains_nothing(spleen: Place) -> None:
    """Where incomplete batches are dropped, there is none at all."""
    trainer = spleen.trainer(overrides={"train#dataloader#drop_last": True, "train#dataloader#batch_size": 8})
    told = r"makes batches of 8, drops incomplete ones, and has only 4 to train on here; add images, or set overrides"
    with pytest.raises(DataError, match=told):
        trained(trainer, *spleen.base())
    with pytest.raises(DataError, match=told):
        trainer.rehearse()


def test_a_dice_without_foreground_anywhere_is_no_metric_and_named_once(spleen: Place) -> None:
    trainer = spleen.trainer()
    spec, records = spleen.base()
    assert "val_mean_dice" in trainer.evaluate(Weights(spec, records), control()).metrics
    for label in (spleen.data / "labels").iterdir():
        nibabel.save(nibabel.Nifti1Image(np.zeros((bundles.SIZE,) * 3, np.uint8), np.eye(4)), label)
    trainer = spleen.trainer()
    with capture_logs() as logged:
        found = [trainer.evaluate(Weights(spec, records), control()) for _ in range(2)]
    assert [(each.examples, "val_mean_dice" in each.metrics) for each in found] == [(1, False)] * 2
    assert [each["metric"] for each in logged if each["event"] == "metric.left_out"] == ["val_mean_dice"]


def test_a_single_value_per_channel_is_no_batch_for_a_norm() -> None:
    error = ValueError("Expected more than 1 value per channel when training, got input size torch.Size([1, 8])")
    assert isinstance(explained(error, "the bundle's training"), DataError)
    assert "make the batch or the crop larger" in str(explained(error, "the bundle's training"))


def test_a_loss_that_is_not_finite_is_told(spleen: Place) -> None:
    with pytest.raises(TrainingError, match="the loss is nan after"):
        trained(spleen.trainer(overrides={"loss": "$lambda p, t: (p.sum() * float('nan'))"}), *spleen.base())


def test_memory_that_does_not_suffice_is_told(spleen: Place) -> None:
    spec, records = spleen.base()
    full = "$lambda p, t: (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory'))"
    huge = "$lambda p, t: torch.empty(2**60)"
    for loss in (full, huge):
        trainer = spleen.trainer(overrides={"loss": loss})
        with pytest.raises(TrainingError, match="memory did not suffice for the bundle's training"):
            trained(trainer, spec, records)


def test_after_an_error_the_next_training_is_as_if_nothing_had_been(spleen: Place) -> None:
    spec, records = spleen.base()
    trainer = spleen.trainer(momentum="keep")
    first = trained(trainer, spec, records)
    engine = trainer._ready(None).trainer.engine
    loss, engine.loss_function = engine.loss_function, lambda p, t: p.sum() * float("nan")
    with pytest.raises(TrainingError):
        trained(trainer, spec, records)
    engine.loss_function = loss
    assert same(first, trained(trainer, spec, records))


def test_data_that_were_corrected_are_read_again(tmp_path: Path) -> None:
    """Also those that a `CacheDataset` had in memory."""
    site = Place(bundles.spleen(tmp_path / "bundle"), bundles.volumes(tmp_path / "data", classes=6))
    trainer = site.trainer()
    with pytest.raises(DataError):
        trained(trainer, *site.base())
    shutil.rmtree(site.data)
    bundles.volumes(site.data)
    assert same(trained(trainer, *site.base()), trained(site.trainer(), *site.base()))


def test_what_stands_in_a_sites_options_is_checked_before_anything_is_made(spleen: Place) -> None:
    with pytest.raises(ConfigError, match="no option 'momentm' for a MONAI bundle; there are dataset_dir, overrides"):
        site_trainer(spleen.bundle, {"dataset_dir": str(spleen.data), "momentm": "keep"})
    with pytest.raises(ConfigError, match="no option 'bundle_root'"):
        site_trainer(spleen.bundle, {"dataset_dir": str(spleen.data), "bundle_root": "elsewhere"})
    with pytest.raises(ConfigError, match="add dataset_dir"):
        site_trainer(spleen.bundle, {})
    with pytest.raises(ConfigError, match="dataset_dir is 7; it has to be the path of a folder"):
        site_trainer(spleen.bundle, {"dataset_dir": 7})
