"""A trainer for plain torch: a model, a dataset and a loss; and how any torch module is read and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from protocol.errors import ConfigError, Diverged, TrainingError
from protocol.messages import Fingerprint
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from worker.api.division import Holdings
from worker.api.fingerprint import fingerprint as fingerprint_of
from worker.api.processes import start_by_forking
from worker.api.trainer import Control, EvaluationResult, TrainResult, overrides
from worker.api.weights import Array, Piece, Weights, check_names, store, write_records
from worker.trainers.dividing import classes_of, groups_of

Batch = Any  # whatever the site's own dataset gives
"""Examples or targets, one or many: a tensor, or tuples, lists and mappings of them."""
Loss = Callable[[Batch, Batch], Tensor]
"""Of the model's outputs and a batch's targets: one number, the mean over the batch."""
Metric = Callable[[Batch, Batch], Tensor | float]
"""Likewise, without gradients."""
OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""Called with the parameters and `lr=`, as every class in `torch.optim` can be."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_REPORTS = 100
"""How often a training looks at its loss, at most: on a GPU every look waits for the steps before it."""


class Examples(Protocol):
    """A dataset with a length, such as every map-style `torch.utils.data.Dataset`; gives (inputs, targets)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class TorchTrainer:
    """Trains a module in place, on one device.

    The module's own tensors are the only copy of the model. The optimizer begins anew with every training, because its
    moments belong to weights that others have moved since; `keep_optimizer` keeps it all the same, in memory only.
    A training sets torch's global seed, so on the CPU the same seed gives the same result, dropout included, as long
    as nothing else in the process draws from it at the same time.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Examples,
        loss: Loss,
        *,
        lr: float = 0.01,
        optimizer: OptimizerFactory = torch.optim.SGD,
        keep_optimizer: bool = False,
        batch_size: int = 32,
        local_steps: int | None = None,
        epochs: int | None = None,
        evaluate_on: Examples | None = None,
        metrics: Mapping[str, Metric] | None = None,
        device: str | torch.device = "cpu",
        loaders: int = 0,
        fingerprint: bool = False,
    ) -> None:
        """
        Args:
            dataset: its length is the update's number of examples.
            local_steps: optimizer steps for each update; or `epochs`, passes over the dataset; one epoch by default.
            evaluate_on: what versions are evaluated on; without it nothing is.
            metrics: reported besides the loss when a version is evaluated; by default the accuracy, where the model
                gives scores of classes and the targets are numbers of classes.
            loaders: processes that load data; 0 loads in the training thread.
            fingerprint: whether updates carry a keyed fingerprint of the dataset, which is read once in full for it.

        A run's task may set `lr`, `local_steps` and `batch_size`, and nothing else here.

        Raises:
            ConfigError: the dataset is empty, or both steps and epochs are given.
        """
        if local_steps is not None and epochs is not None:
            raise ConfigError("give local_steps or epochs, not both")
        if len(dataset) < 1:
            raise ConfigError("the training dataset is empty")
        start_by_forking()
        self.model = model.to(device)
        self._dataset, self._evaluate_on = dataset, evaluate_on
        self._loss, self._metrics = loss, None if metrics is None else dict(metrics)
        self._lr, self._make_optimizer, self._keep_optimizer = lr, optimizer, keep_optimizer
        self._optimizer: torch.optim.Optimizer | None = None
        self._batch_size, self._local_steps, self._epochs = batch_size, local_steps, epochs or 1
        self._device, self._loaders = torch.device(device), loaders
        self._fingerprint = fingerprint
        self._printed: Fingerprint | None = None

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        return model_spec(self.model)

    def initial(self) -> Iterator[bytes]:
        """The payload of the model as it stands: version 0 of a run that begins with it."""
        return model_payload(self.model, self.spec)

    def train(self, base: Weights, control: Control) -> TrainResult:
        wanted = overrides(control.task)
        tensors = load(self.model, base)
        torch.manual_seed(control.seed)
        batches = self._batches(self._dataset, wanted.batch_size or self._batch_size, seed=control.seed)
        steps = wanted.local_steps or self._local_steps or self._epochs * len(batches)
        optimizer = self._begin(wanted.lr or self._lr)
        losses: list[float] = []
        self.model.train()
        try:
            for step, (inputs, targets) in enumerate(_endless(batches, steps), 1):
                control.check()
                optimizer.zero_grad(set_to_none=True)
                loss = self._loss(self.model(_moved(inputs, self._device)), _moved(targets, self._device))
                torch.autograd.backward(loss)
                optimizer.step()
                if step % max(1, steps // _REPORTS) == 0:
                    losses.append(_finite(loss, step))
                    control.progress(step / steps, loss=losses[-1])
        finally:
            # Gradients and moments take as much memory as the model, and the update is still to be formed.
            self.model.zero_grad(set_to_none=True)
            self._optimizer = optimizer if self._keep_optimizer else None
        return TrainResult(
            weights=Live(tensors),
            examples=len(self._dataset),
            steps=steps,
            metrics={"loss": math.fsum(losses) / len(losses)} if losses else {},
            fingerprint=self._print(control.fingerprint_key),
            bfloat16=frozenset(name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16),
        )

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        if self._evaluate_on is None or len(self._evaluate_on) == 0:
            return EvaluationResult(examples=0)
        load(self.model, model)
        self.model.eval()
        measures: dict[str, Metric] = {}
        sums: dict[str, float] = {}
        total = 0
        with torch.no_grad():
            for inputs, targets in self._batches(self._evaluate_on, self._batch_size):
                control.check()
                targets = _moved(targets, self._device)
                outputs = self.model(_moved(inputs, self._device))
                size = _size(inputs)
                measures = measures or self._measures(outputs, targets)
                for name, measure in measures.items():
                    sums[name] = sums.get(name, 0.0) + size * float(measure(outputs, targets))
                total += size
                control.progress(total / len(self._evaluate_on))
        return EvaluationResult(examples=total, metrics={name: value / total for name, value in sums.items()})

    def _measures(self, outputs: Batch, targets: Batch) -> dict[str, Metric]:
        """What is measured, once it is known what the model gives."""
        chosen = self._metrics
        if chosen is None:
            chosen = {"accuracy": accuracy} if _are_scores(outputs, targets) else {}
        return {"loss": self._loss, **chosen}

    def holdings(self) -> Holdings:
        """What there is to divide among several sites; a dataset's attribute `groups` tells whose each example is."""
        data, known = self._dataset, self._evaluate_on
        classes = partial(classes_of, data)
        return Holdings(
            examples=len(data), classes=classes, groups=groups_of(data), evaluates=known is not None and len(known) > 0
        )

    def take(self, training: Sequence[int], held_out: Sequence[int]) -> None:
        """From now on train on these examples alone; and evaluate on those others, if there are any."""
        whole = cast(Dataset[Batch], self._dataset)
        self._dataset = Subset(whole, training)
        if held_out:
            self._evaluate_on = Subset(whole, held_out)

    def join(self, others: Sequence[Self]) -> None:
        """From now on train on the examples of these trainers, too."""
        self._dataset = ConcatDataset([cast(Dataset[Batch], each._dataset) for each in (self, *others)])

    def _batches(self, examples: Examples, size: int, *, seed: int | None = None) -> DataLoader[Batch]:
        """Shuffled by `seed`, or all in order without one."""
        leftover = len(examples) % size
        return DataLoader(
            cast(Dataset[Batch], examples),  # torch's stub wants a class of its own; a length and items are enough
            batch_size=size,
            shuffle=seed is not None,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            # BatchNorm cannot train on a batch of one; shuffling leaves out another example each time.
            drop_last=seed is not None and leftover == 1 and len(examples) > size,
            num_workers=self._loaders,
        )

    def _begin(self, lr: float) -> torch.optim.Optimizer:
        if self._optimizer is None:
            return self._make_optimizer([p for p in self.model.parameters() if p.requires_grad], lr=lr)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return self._optimizer

    def _print(self, key: bytes | None) -> Fingerprint | None:
        if self._fingerprint and key is not None and self._printed is None:
            self._printed = fingerprint_of((self._dataset[i] for i in range(len(self._dataset))), key)
        return self._printed


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of examples whose largest output is the target's class."""
    return (outputs.argmax(1) == targets).float().mean()


def _are_scores(outputs: Batch, targets: Batch) -> bool:
    """Whether there is a row of scores, one for each class, for every number of a class."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim != 2 or targets.ndim != 1:
        return False
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    return whole and outputs.shape[1] > 1 and len(outputs) == len(targets)


def model_spec(model: nn.Module) -> ModelSpec:
    """The tensors of a module's state dict; several names of the same tensor are one, under the first of them.

    Raises:
        TrainingError: a tensor has a type that no model can hold.
    """
    return ModelSpec(tuple(_tensor_spec(names[0], tensor) for names, tensor in distinct(model)))


def model_payload(model: nn.Module, spec: ModelSpec) -> Iterator[bytes]:
    """The payload of a module's present values, record by record."""
    return write_records(spec, Live(_named(model, spec)).__getitem__)


def load(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """Overwrite a module's tensors in place; returns them under the names of the specification.

    Raises:
        TrainingError: the module is not the run's model, or a value does not fit its type.
    """
    tensors = _named(model, weights.spec)
    for tensor in weights.spec.tensors:
        found = tensors.get(tensor.name)
        if found is not None and (
            tuple(found.shape) != tensor.shape or found.is_floating_point() == (tensor.kind == TensorKind.OTHER)
        ):
            raise TrainingError(
                f"tensor {tensor.name!r} is {list(found.shape)} {found.dtype} in this model and {list(tensor.shape)} "
                f"{tensor.dtype} in the run's"
            )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if _is_array(tensor)}
    whole: Array = np.empty(0)
    for piece in weights.pieces():
        name = piece.tensor.name
        if name in arrays:
            store(piece, arrays[name])
        elif name in tensors:
            whole = _store_elsewhere(piece, tensors[name], whole)
    return tensors


def _store_elsewhere(piece: Piece, target: Tensor, whole: Array) -> Array:
    """Write a piece of a tensor that numpy cannot see: on a GPU, or bfloat16."""
    if target.is_contiguous():
        stop = piece.offset + piece.values.size
        target.view(-1)[piece.offset : stop].copy_(torch.from_numpy(piece.values.copy()))
        return whole
    if piece.offset == 0:
        whole = np.empty(piece.tensor.shape, piece.values.dtype)
    store(piece, whole)
    if piece.offset + piece.values.size == whole.size:
        target.copy_(torch.from_numpy(whole))
    return whole


class Live(Mapping[str, Array]):
    """Tensors as arrays: views where numpy can see them, else copies made when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def distinct(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every tensor once with all its names: networks that share weights list them several times."""
    found: dict[tuple[object, ...], tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        at = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        # Empty tensors have no place of their own.
        found.setdefault(at if tensor.numel() else (name,), ([], tensor))[0].append(name)
    return list(found.values())


def _named(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    known = {tensor.name for tensor in spec.tensors}
    result: dict[str, Tensor] = {}
    for names, tensor in distinct(model):
        for name in [name for name in names if name in known] or names[:1]:
            result[name] = tensor.detach()
    check_names(spec, result)
    return result


def _tensor_spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TrainingError(f"tensor {name!r}: a model cannot hold tensors of type {tensor.dtype}")
    kind = TensorKind.PARAMETER if isinstance(tensor, nn.Parameter) else TensorKind.BUFFER
    if not tensor.is_floating_point():
        kind = TensorKind.OTHER
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype, kind=kind)


def _is_array(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16


def _endless(batches: DataLoader[Batch], steps: int) -> Iterator[Batch]:
    done = 0
    while True:
        for batch in batches:
            if done == steps:
                return
            done += 1
            yield batch


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} after {step} steps; nothing was sent. Try a smaller learning rate")
    return value


def _moved(value: Batch, device: torch.device) -> Batch:
    """Tensors in tuples, lists and mappings, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        moved = [_moved(item, device) for item in value]
        return tuple(moved) if isinstance(value, tuple) else moved
    return value


def _size(inputs: Batch) -> int:
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
    return len(inputs)
