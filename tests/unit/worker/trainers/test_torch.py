"""The torch trainer: in place, repeatable, and true to what torch models really hold."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from protocol.errors import Aborted, ConfigError, NothingLearned, TrainingError
from protocol.spec import ModelSpec, TensorKind
from tests.support.training import FEDERATION, SITE, control, form
from worker.api.trainer import TrainResult
from worker.api.weights import Records, Weights
from worker.storage.local_tensors import LocalTensors
from worker.trainers.initial import spec_and_payload
from worker.trainers.modules import load
from worker.trainers.torch import TorchTrainer, accuracy


def points(count: int = 65, *, seed: int = 3) -> TensorDataset:
    """Points in four dimensions; the class is the sign of the first."""
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


class Normed(nn.Module):
    """Has BatchNorm (running statistics and an int64 counter) and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of the two classes."""
        scores: Tensor = self.layers(inputs)
        return scores


class Tied(nn.Module):
    """Two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Four scores, of which two count."""
        scores: Tensor = self.second(torch.relu(self.first(inputs)))
        return scores


def trainer(model: nn.Module | None = None, **changes: Any) -> TorchTrainer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"lr": 0.1, "batch_size": 8, "epochs": 1, **changes}
    return TorchTrainer(model or Normed(), points(), nn.functional.cross_entropy, **settings)


def start(which: TorchTrainer) -> tuple[ModelSpec, Records]:
    spec, payload = spec_and_payload(which)
    recorded = list(payload)
    return spec, lambda: iter(recorded)


def train(which: TorchTrainer, **changes: Any) -> TrainResult:
    spec, records = start(trainer())
    return which.train(Weights(spec, records), control(**changes))


def copied(result: TrainResult) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in result.weights.items()}


def test_the_specification_tells_parameters_statistics_and_counters_apart() -> None:
    kinds = {tensor.name: tensor.kind for tensor in trainer().spec.tensors}
    assert kinds["layers.0.weight"] == kinds["layers.1.bias"] == TensorKind.PARAMETER
    assert kinds["layers.1.running_mean"] == kinds["layers.1.running_var"] == TensorKind.BUFFER
    assert kinds["layers.1.num_batches_tracked"] == TensorKind.OTHER


def test_the_initial_payload_is_the_state_dict() -> None:
    which = trainer()
    opened = safetensors.numpy.load(b"".join(which.initial()))
    state = which.model.state_dict()
    assert set(opened) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(opened[name], tensor.numpy())


def test_federated_training_learns() -> None:
    which = trainer(evaluate_on=points(200, seed=4), metrics={"accuracy": accuracy}, epochs=8)
    spec, records = start(which)
    before = which.evaluate(Weights(spec, records), control())
    form(which, spec, records)
    trained = list(which.initial())
    after = which.evaluate(Weights(spec, lambda: iter(trained)), control())
    assert before.examples == after.examples == 200
    assert after.metrics["accuracy"] > 0.85 > before.metrics["accuracy"]
    assert after.metrics["loss"] < before.metrics["loss"]


def test_a_training_starts_from_the_base_whatever_the_module_holds() -> None:
    which = trainer()
    first = copied(train(which))
    again = copied(train(which))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_the_seed_decides_batches_and_dropout() -> None:
    same, again, other = (copied(train(trainer(), seed=seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(same["layers.0.weight"], again["layers.0.weight"])
    assert not np.array_equal(same["layers.0.weight"], other["layers.0.weight"])


def test_trained_arrays_are_the_modules_own_memory() -> None:
    which = trainer()
    result = train(which)
    for name, tensor in which.model.state_dict().items():
        assert np.shares_memory(result.weights[name], tensor.numpy())


def test_gradients_and_moments_are_gone_when_the_update_is_formed() -> None:
    which = trainer(optimizer=torch.optim.Adam)
    train(which)
    assert all(parameter.grad is None for parameter in which.model.parameters())
    assert which._optimizer is None


def test_an_optimizer_begins_anew_unless_it_is_kept() -> None:
    fresh = trainer(optimizer=torch.optim.Adam)
    first, second = copied(train(fresh)), copied(train(fresh))
    np.testing.assert_array_equal(first["layers.0.weight"], second["layers.0.weight"])
    keeping = trainer(optimizer=torch.optim.Adam, keep_optimizer=True)
    first, second = copied(train(keeping)), copied(train(keeping))
    assert not np.array_equal(first["layers.0.weight"], second["layers.0.weight"])


def test_running_statistics_are_shared_and_counters_stay(tmp_path: Path) -> None:
    own = LocalTensors(tmp_path / "own", SITE, FEDERATION)
    spec, records = start(trainer())
    for round in (1, 2):
        which = trainer()
        formed = form(which, spec, records, own=own)
        assert formed.delta["layers.1.running_mean"].any()
        assert "layers.1.num_batches_tracked" not in formed.delta
        # 65 examples in batches of 8: the one left over is left out.
        assert int(which.model.state_dict()["layers.1.num_batches_tracked"]) == 8 * round


def test_shared_weights_are_one_tensor() -> None:
    which = trainer(Tied())
    spec, records = start(which)
    assert [tensor.name for tensor in spec.tensors] == ["first.weight", "first.bias", "second.bias"]
    formed = form(which, spec, records)
    np.testing.assert_allclose(
        formed.delta["first.weight"],
        which.model.state_dict()["second.weight"].numpy() - safetensors.numpy.load(b"".join(records()))["first.weight"],
        rtol=1e-6,
    )


def test_shared_weights_may_go_by_another_of_their_names() -> None:
    spec, _ = start(trainer(Tied()))
    renamed = {"first.weight": "second.weight"}
    arrays = {renamed.get(t.name, t.name): np.ones(t.shape, np.float32) for t in spec.tensors}
    other, payload = spec_and_payload(arrays)
    recorded = list(payload)
    formed = form(trainer(Tied()), other, lambda: iter(recorded))
    assert formed.delta["second.weight"].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_send_what_training_changed(dtype: torch.dtype) -> None:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    data = TensorDataset(inputs, torch.zeros(8, dtype=torch.long))

    def which(lr: float) -> TorchTrainer:
        torch.manual_seed(0)
        return TorchTrainer(nn.Linear(4, 2).to(dtype), data, nn.functional.cross_entropy, lr=lr, batch_size=8)

    spec, payload = spec_and_payload({"weight": np.full((2, 4), 0.1, np.float32), "bias": np.zeros(2, np.float32)})
    recorded = list(payload)
    with suppress(NothingLearned):  # where the bias is too coarse for it as well
        assert not form(which(1e-30), spec, lambda: iter(recorded)).delta["weight"].any()
    moved = form(which(0.5), spec, lambda: iter(recorded)).delta
    assert moved["weight"].any()
    assert np.abs(moved["weight"]).max() < 1


def test_specifications_name_the_modules_own_types() -> None:
    for dtype, name in ((torch.float64, "F64"), (torch.float16, "F16"), (torch.bfloat16, "BF16")):
        spec, payload = spec_and_payload(nn.Linear(2, 2).to(dtype))
        assert {tensor.dtype for tensor in spec.tensors} == {name}
        assert len(b"".join(payload)) == spec.model_length


def test_tensors_that_numpy_cannot_see_are_loaded_in_any_layout() -> None:
    # Tensors of several records, in bfloat16 as they would be on a GPU.
    shape = (4, 256, 32, 32)
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    spec, payload = spec_and_payload({"plain": values, "turned": values})
    model = nn.ParameterDict(
        {
            "plain": nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16)),
            "turned": nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)),
        }
    )
    loaded = load(model, Weights(spec, lambda: payload))
    assert not loaded["turned"].is_contiguous()
    for tensor in loaded.values():
        assert torch.equal(tensor, torch.from_numpy(values).bfloat16())


def test_channels_last_weights_are_loaded_and_read_in_place() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    layers(torch.zeros(1, 3, 5, 5))
    data = TensorDataset(torch.randn(16, 3, 5, 5), torch.zeros(16, dtype=torch.long))

    def which(memory_format: torch.memory_format) -> TorchTrainer:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)).to(memory_format=memory_format)
        return TorchTrainer(model, data, nn.functional.cross_entropy, lr=0.1, batch_size=16)

    spec, payload = spec_and_payload(layers)
    recorded = list(payload)
    plain, turned = (
        form(which(layout), spec, lambda: iter(recorded)).delta
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    for name in plain:
        np.testing.assert_allclose(plain[name], turned[name], rtol=1e-3, atol=1e-6)
        assert plain[name].any()


class Computed(TensorDataset):
    """Holds what cannot be sent to a process that begins empty."""

    def __init__(self) -> None:
        super().__init__(*points(16).tensors)
        self.doubled = lambda values: 2 * values

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        inputs, label = super().__getitem__(index)
        return self.doubled(inputs), label


def test_processes_that_load_data_take_any_dataset_on_every_python() -> None:
    which = TorchTrainer(Normed(), Computed(), nn.functional.cross_entropy, lr=0.1, batch_size=8, loaders=1)
    assert train(which).steps == 2


def test_a_task_may_set_rate_steps_and_batch_size_only() -> None:
    result = train(trainer(), task={"local_steps": 3, "batch_size": 4, "lr": 1e-30, "device": "nowhere", "epochs": 99})
    assert result.steps == 3
    assert int(result.weights["layers.1.num_batches_tracked"]) == 3
    base = safetensors.numpy.load(b"".join(trainer().initial()))
    np.testing.assert_array_equal(result.weights["layers.0.weight"], base["layers.0.weight"])


@pytest.mark.parametrize(
    "task", [{"lr": 0}, {"lr": "0.1"}, {"local_steps": 1.5}, {"batch_size": -1}, {"batch_size": True}]
)
def test_task_values_that_make_no_sense_are_refused(task: dict[str, Any]) -> None:
    (name,) = task
    with pytest.raises(TrainingError, match=f"task sets {name}"):
        train(trainer(), task=task)


def test_training_stops_when_it_is_told_to_and_says_how_far_it_is() -> None:
    abort = threading.Event()
    seen: list[tuple[float, dict[str, float]]] = []

    def watch(fraction: float, metrics: Any) -> None:
        seen.append((fraction, dict(metrics)))
        if fraction >= 0.5:
            abort.set()

    which = trainer(local_steps=10, epochs=None)
    with pytest.raises(Aborted):
        train(which, abort=abort, on_progress=watch)
    assert [fraction for fraction, _ in seen] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(np.isfinite(metrics["loss"]) for _, metrics in seen)
    assert all(parameter.grad is None for parameter in which.model.parameters())


def test_a_loss_that_is_not_finite_ends_the_training_at_once() -> None:
    model = nn.Linear(4, 2)
    torch.manual_seed(0)
    which = TorchTrainer(model, points(), lambda out, _: (out * float("nan")).sum(), epochs=50)
    with pytest.raises(TrainingError, match=r"loss is nan after 1 steps"):
        which.train(Weights(*start(which)), control())


def test_evaluation_weighs_the_last_small_batch_by_its_size() -> None:
    which = trainer(batch_size=64, evaluate_on=points(65, seed=9), metrics={"accuracy": accuracy})
    found = which.evaluate(Weights(*start(which)), control())
    inputs, targets = points(65, seed=9).tensors
    with torch.no_grad():
        outputs = which.model.eval()(inputs)
    assert found.metrics["accuracy"] == pytest.approx(float(accuracy(outputs, targets)), abs=1e-6)
    assert found.metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)), rel=1e-5)


def test_evaluation_changes_nothing_in_the_model() -> None:
    which = trainer(evaluate_on=points(10))
    spec, records = start(which)
    which.evaluate(Weights(spec, records), control())
    assert b"".join(which.initial()) == b"".join(records())


def test_without_evaluation_data_nothing_is_evaluated() -> None:
    which = trainer()
    found = which.evaluate(Weights(*start(which)), control())
    assert (found.examples, dict(found.metrics)) == (0, {})


def test_another_model_than_the_runs_is_refused_by_name() -> None:
    spec, records = start(trainer())
    for model, message in (
        (nn.Linear(4, 2), "no tensor 'layers.0.bias'"),
        (
            nn.ModuleDict({"layers": Normed().layers, "more": nn.Linear(1, 1)}),
            "does not know: 'more.bias', 'more.weight'",
        ),
    ):
        with pytest.raises(TrainingError, match=message):
            trainer(model).train(Weights(spec, records), control())
    wider = Normed()
    wider.layers[4] = nn.Linear(8, 3)
    with pytest.raises(TrainingError, match=r"'layers.4.weight' is \[3, 8\].*\[2, 8\]"):
        trainer(wider).train(Weights(spec, records), control())


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="not both"):
        trainer(local_steps=3)
    with pytest.raises(ConfigError, match="empty"):
        TorchTrainer(nn.Linear(1, 1), TensorDataset(torch.zeros(0, 1)), nn.functional.mse_loss)


def test_a_fingerprint_is_made_when_it_is_asked_for_and_there_is_a_key() -> None:
    assert train(trainer(fingerprint=True)).fingerprint is None
    assert train(trainer(), fingerprint_key=bytes(32)).fingerprint is None
    which = trainer(fingerprint=True)
    first = train(which, fingerprint_key=bytes(32)).fingerprint
    assert first is not None
    assert first.count == 65
    assert train(which, fingerprint_key=bytes(32)).fingerprint == first
    assert train(trainer(fingerprint=True), fingerprint_key=bytes([1] * 32)).fingerprint != first


def test_models_of_unknown_types_are_refused() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("phase", torch.zeros(1, dtype=torch.complex64))
    with pytest.raises(TrainingError, match="'phase'"):
        spec_and_payload(model)
    with pytest.raises(ConfigError, match="int is no model"):
        spec_and_payload(3)
