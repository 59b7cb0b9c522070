"""From a batch to its loss: how a model is called, and how its loss, whatever `TorchTrainer` is given."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat, cast, runtime_checkable

import structlog
import torch
from torch import Tensor, nn

from protocol.errors import ConfigError, TrainingError
from worker.api.trainer import metric_name
from worker.trainers.batches import Batch
from worker.trainers.modules import unwrapped

Loss = Callable[[Batch, Batch], Tensor]
"""Of the model's outputs and a batch's targets: one number, the mean over the batch."""
Metric = Callable[[Batch, Batch], Tensor | float]
"""Likewise, without gradients; or one number for each class, of which those that are not finite are left out."""
Prepare = Callable[[Batch], tuple[Batch, Batch]]
"""Of a batch: what the model is called with, and the targets."""
Optimizer = torch.optim.Optimizer

TARGETS = ("labels", "label", "targets", "target", "y")
"""What the targets are called in a batch that is a mapping."""
_UNATTACHED = "is not attached to a"
"""What a LightningModule says when it is asked for a trainer that it has not."""
_CHANGING = (
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "configure_gradient_clipping",
    "training_step_end",
    "validation_step_end",
    "validation_epoch_end",
)
"""Hooks of a LightningModule that may change gradients, steps or results, and that nothing calls here."""
_LIGHTNING = frozenset({"lightning", "pytorch_lightning"})
_REDUCTIONS: Mapping[str, Callable[[tuple[float, float]], float]] = {"sum": sum, "min": min, "max": max}
"""How a LightningModule may want what it logs of each batch to become one number, other than as a mean."""
_IGNORED = -100
_ALIKE = 1e-4
_log = structlog.get_logger(__name__)


class Objective(Protocol):
    """What a training minimises."""

    def loss(self, batch: Batch, index: int) -> Tensor | None:
        """The loss of a batch; None if the model wants to leave this batch out."""

    def measures(self, batch: Batch, index: int) -> Mapping[str, Tensor | float]:
        """What a batch of an evaluation comes to."""

    def optimizer(self) -> Optimizer | None:
        """The model's own optimizer, made anew; None if it has none."""

    def stepped(self, batch: Batch, index: int) -> None:
        """Told after each step of the optimizer."""

    def finish(self) -> Mapping[str, float]:
        """What only a whole evaluation gives."""


@runtime_checkable
class _Accumulating(Protocol):
    """A metric that keeps count itself, such as torchmetrics'."""

    def compute(self) -> object:
        """What it has come to."""

    def reset(self) -> None:
        """Begin anew."""


@dataclass(frozen=True, slots=True)
class _Called:
    """A batch taken apart."""

    arguments: tuple[Batch, ...]
    keywords: Mapping[str, Batch]
    targets: Batch
    """None: it has none."""


class Outputs:
    """The objective of a module that is called: a loss of its outputs and the targets, or its own."""

    def __init__(
        self, model: nn.Module, loss: Loss | None, prepare: Prepare | None, metrics: Mapping[str, Metric] | None
    ) -> None:
        """Without `metrics` the accuracy is measured, where there are scores of classes."""
        self._model, self._loss, self._prepare, self._metrics = model, loss, prepare, metrics
        self._paired = False

    def loss(self, batch: Batch, index: int) -> Tensor | None:
        called = self._taken_apart(batch)
        return self._loss_of(self._model(*called.arguments, **called.keywords), called.targets)

    def measures(self, batch: Batch, index: int) -> Mapping[str, Tensor | float]:
        called = self._taken_apart(batch)
        outputs = self._model(*called.arguments, **called.keywords)
        found: dict[str, Tensor | float] = {"loss": self._loss_of(outputs, called.targets)}
        metrics = self._metrics
        if metrics is None:
            metrics = {"accuracy": accuracy} if _are_scores(_logits(outputs), called.targets) else {}
        if metrics and called.targets is None:
            raise TrainingError(
                f"the batches name no targets for the metrics; call them one of {', '.join(TARGETS)}, "
                "or give TorchTrainer a prepare_batch"
            )
        return found | {name: each(outputs, called.targets) for name, each in metrics.items()}

    def optimizer(self) -> Optimizer | None:
        return None

    def stepped(self, batch: Batch, index: int) -> None:
        """Nothing: a module that is called has no hooks."""

    def finish(self) -> Mapping[str, float]:
        return {}

    def _loss_of(self, outputs: Batch, targets: Batch) -> Tensor:
        if self._loss is not None:
            if not self._paired:
                _check_paired(self._loss, outputs, targets)
                self._paired = True
            return self._loss(outputs, targets)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if not isinstance(loss, Tensor):
            raise TrainingError(
                f"{type(self._model).__name__} gives a {type(outputs).__name__} without a `loss`; give TorchTrainer a "
                "loss, or the batch what the model needs to tell its own (such as `labels`)"
            )
        return loss

    def _taken_apart(self, batch: Batch) -> _Called:
        if self._prepare is not None:
            inputs, targets = self._prepare(batch)
            if isinstance(inputs, Mapping):
                return _Called((), inputs, targets)
            return _Called(tuple(inputs) if isinstance(inputs, tuple) else (inputs,), {}, targets)
        if isinstance(batch, Mapping):
            return self._by_name(batch)
        if isinstance(batch, tuple | list) and len(batch) > 1:
            return _Called(tuple(batch[:-1]), {}, batch[-1])
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        return _Called((inputs,), {}, inputs)

    def _by_name(self, batch: Mapping[str, Batch]) -> _Called:
        named = [name for name in TARGETS if name in batch]
        targets = batch[named[0]] if named else None
        if self._loss is None:
            return _Called((), self._fitting(batch), targets)
        if len(named) != 1:
            raise TrainingError(
                f"a batch has the keys {sorted(map(str, batch))}, of which exactly one of {', '.join(TARGETS)} would "
                "be the targets; give TorchTrainer a prepare_batch that returns inputs and targets"
            )
        rest = {name: value for name, value in batch.items() if name != named[0]}
        return (
            _Called((), self._fitting(rest), targets) if len(rest) > 1 else _Called(tuple(rest.values()), {}, targets)
        )

    def _fitting(self, keywords: Mapping[str, Batch]) -> Mapping[str, Batch]:
        """The same, if the model takes them."""
        try:
            inspect.signature(self._model.forward).bind(**keywords)
        except TypeError as error:
            raise TrainingError(
                f"{type(self._model).__name__} is called with {', '.join(map(str, keywords))} of a batch: {error}; "
                "leave out of the examples what it does not take, or give TorchTrainer a prepare_batch"
            ) from error
        return keywords


class Steps:
    """The objective of a LightningModule, known by its methods: its own steps, its own optimizer, what it logs."""

    def __init__(self, model: nn.Module, metrics: Mapping[str, Metric] | None) -> None:
        # a LightningModule, whose library is not needed
        self._model: Any = unwrapped(model)
        name = type(self._model).__name__
        if not getattr(self._model, "automatic_optimization", True):
            raise ConfigError(
                f"{name} steps its optimizers itself (automatic_optimization = False); write a trainer for it"
            )
        if metrics:
            raise ConfigError(f"{name} has metrics of its own (self.log in validation_step); give none beside them")
        if changing := [hook for hook in _CHANGING if _is_overridden(self._model, hook)]:
            raise ConfigError(
                f"{name}.{changing[0]} has its part in training or evaluation, and only Lightning's Trainer calls it, "
                "which is not here; move it into training_step or on_train_batch_end, or write a trainer"
            )
        self._logged: dict[str, object] = {}
        self._reductions: dict[str, str] = {}
        self._reduced: dict[str, float] = {}
        self._told = False

    def loss(self, batch: Batch, index: int) -> Tensor | None:
        with self._logging():
            return self._loss_of(self._call("training_step", self._arrived(batch), index))

    def stepped(self, batch: Batch, index: int) -> None:
        if callable(hook := getattr(self._model, "on_train_batch_end", None)):
            with self._logging():
                hook(None, batch, index)

    def measures(self, batch: Batch, index: int) -> Mapping[str, Tensor | float]:
        with self._logging():
            if index == 0:
                self._reduced.clear()
                self._hook("on_validation_epoch_start")
            batch = self._arrived(batch)
            given = self._call("validation_step", batch, index) if hasattr(self._model, "validation_step") else None
            found = {metric_name(name): value for name, value in self._logged.items() if _is_number(value)}
            loss = self._loss_of(given) if given is not None else None
            if loss is None and not self._logged:
                loss = self._loss_of(self._call("training_step", batch, index))
        for name, value in self._logged.items():
            if (reduction := self._reductions.get(name)) and found.pop(metric_name(name), None) is not None:
                self._reduce(metric_name(name), float(cast(SupportsFloat, value)), reduction)
        measures = {name: float(cast(SupportsFloat, value)) for name, value in found.items()}
        return measures if loss is None else {"loss": float(loss), **measures}

    def optimizer(self) -> Optimizer | None:
        made = self._model.configure_optimizers()
        optimizers, schedules = _optimizers(made)
        if len(optimizers) != 1:
            raise ConfigError(
                f"{type(self._model).__name__}.configure_optimizers gives {len(optimizers)} optimizers; fledge takes "
                "one, or write a trainer"
            )
        if schedules and not self._told:
            self._told = True
            _log.warning("schedule.left_out", model=type(self._model).__name__, reason="every training begins anew")
        return optimizers[0]

    def finish(self) -> Mapping[str, float]:
        """Metrics with a state of their own, such as torchmetrics', and what the end of an epoch logs."""
        pending: dict[str, object] = {n: value for n, value in self._logged.items() if isinstance(value, _Accumulating)}
        with self._logging():
            self._hook("on_validation_epoch_end")
            pending |= self._logged
        found = dict(self._reduced)
        for name, value in pending.items():
            come_to = value.compute() if isinstance(value, _Accumulating) else value
            if isinstance(value, _Accumulating):
                value.reset()
            if _is_number(come_to):
                found[metric_name(name)] = float(cast(SupportsFloat, come_to))
        return found

    def _call(self, name: str, batch: Batch, index: int) -> object:
        step = getattr(self._model, name)
        try:
            inspect.signature(step).bind(batch, index)
        except TypeError:
            return step(batch)
        return step(batch, index)

    def _hook(self, name: str) -> None:
        hook = getattr(self._model, name, None)
        if callable(hook):
            hook()

    def _loss_of(self, given: object) -> Tensor | None:
        loss = given.get("loss") if isinstance(given, Mapping) else given
        if loss is None or isinstance(loss, Tensor):
            return loss
        raise TrainingError(
            f"{type(self._model).__name__} gives a {type(given).__name__} for a batch; "
            "its steps have to return the loss, or a mapping with it as `loss`"
        )

    def _arrived(self, batch: Batch) -> Batch:
        """A batch as the module's own hooks make it; it is on the device already."""
        for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
            if callable(hook := getattr(self._model, name, None)):
                batch = hook(batch, 0)
        return batch

    def _log(self, name: object, value: object, *_: object, reduce_fx: object = "mean", **__: object) -> None:
        self._logged[str(name)] = value
        how = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
        if how in _REDUCTIONS:
            self._reductions[str(name)] = how

    def _log_all(self, values: Mapping[object, object], *_: object, **how: object) -> None:
        for name, value in values.items():
            self._log(name, value, **how)

    def _reduce(self, name: str, value: float, how: str) -> None:
        self._reduced[name] = _REDUCTIONS[how]((self._reduced[name], value)) if name in self._reduced else value

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Take what the module logs: its own `log` wants the library's trainer."""
        self._logged = {}
        self._model.log = self._log
        self._model.log_dict = self._log_all
        try:
            yield
        except RuntimeError as error:
            if _UNATTACHED not in str(error):
                raise
            raise TrainingError(
                f"{type(self._model).__name__} asks for Lightning's Trainer, and there is none here; let its steps do "
                "without self.trainer, or write a trainer for it"
            ) from error
        finally:
            del self._model.log, self._model.log_dict


def accuracy(outputs: Batch, targets: Tensor) -> Tensor:
    """The share of examples whose largest output is the target's class; targets of -100 are left out, as by losses."""
    scores: Tensor = _logits(outputs)
    counted = targets != _IGNORED
    return (scores.argmax(1) == targets)[counted].float().mean()


def objective(
    model: nn.Module, loss: Loss | None, prepare: Prepare | None, metrics: Mapping[str, Metric] | None
) -> Objective:
    """What a model is trained by: the loss that is given, or the one that it brings.

    Raises:
        ConfigError: it is a LightningModule that cannot be trained here.
    """
    inner = unwrapped(model)
    if loss is None and all(callable(getattr(inner, name, None)) for name in ("training_step", "configure_optimizers")):
        return Steps(inner, metrics)
    return Outputs(model, loss, prepare, metrics)


def _optimizers(made: object) -> tuple[list[Optimizer], bool]:
    """What `configure_optimizers` gave, in any of its forms; and whether there are schedules."""
    if isinstance(made, Optimizer):
        return [made], False
    if isinstance(made, Mapping):
        return [made["optimizer"]], "lr_scheduler" in made
    if isinstance(made, tuple | list):
        if len(made) == 2 and isinstance(made[0], list | tuple):
            return list(made[0]), bool(made[1])
        parts = [_optimizers(each) for each in made]
        return [each for found, _ in parts for each in found], any(schedules for _, schedules in parts)
    return [], False


def _is_overridden(model: object, hook: str) -> bool:
    """Whether a hook is the module's own rather than Lightning's."""
    owner = next((each for each in type(model).__mro__ if hook in vars(each)), None)
    return owner is not None and owner.__module__.partition(".")[0] not in _LIGHTNING


def _check_paired(loss: Loss, outputs: Batch, targets: Batch) -> None:
    """Refuse a loss that compares each example with each, because outputs and targets differ in shape.

    Raises:
        TrainingError: of two examples it gives another mean than of each by itself, and in one shape it does not.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape == targets.shape:
        return
    if outputs.numel() != targets.numel() or outputs.shape[:1] != targets.shape[:1] or outputs.shape[:1] < (2,):
        return
    one, other = outputs.detach()[:2], targets[:2]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = sum(float(loss(one[row : row + 1], other[row : row + 1])) for row in range(2)) / 2
            both, alike = float(loss(one, other)), float(loss(one.reshape(other.shape), other))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return  # a loss that heeds shapes itself
    if math.isclose(alike, alone, rel_tol=_ALIKE) and not math.isclose(both, alone, rel_tol=_ALIKE):
        raise TrainingError(
            f"the model gives {list(outputs.shape)} and the targets are {list(targets.shape)}, so that the loss "
            "compares each example with each; give both one shape, such as outputs.squeeze(1)"
        )


def _is_number(value: object) -> bool:
    return (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, int | float)


def _logits(outputs: Batch) -> Batch:
    """Of an output object as Hugging Face's models give it: its logits."""
    return outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)


def _are_scores(outputs: Batch, targets: Batch) -> bool:
    """Whether there is a row of scores, one for each class, for every number of a class."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim != 2 or targets.ndim != 1:
        return False
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    return whole and outputs.shape[1] > 1 and len(outputs) == len(targets)
