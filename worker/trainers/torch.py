"""A trainer for torch: a module, a dataset, and a loss unless the module brings its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Self, cast

import structlog
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from protocol.errors import ConfigError, DataError, Diverged, TrainingError
from protocol.messages import Fingerprint
from protocol.spec import ModelSpec
from worker.api.division import Holdings
from worker.api.fingerprint import fingerprint as fingerprint_of
from worker.api.processes import start_by_forking
from worker.api.trainer import Control, EvaluationResult, Overrides, TrainResult, overrides
from worker.api.weights import Weights
from worker.trainers.batches import Batch, Data, Feed, count, length, moved, passes
from worker.trainers.dataset_metadata import classes_of, groups_of
from worker.trainers.modules import Live, ModuleTensors
from worker.trainers.objectives import Loss, Metric, Prepare, accuracy, objective

__all__ = ["TorchTrainer", "accuracy"]

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""Called with the parameters and `lr=`, as every class in `torch.optim` can be."""

_RATE = 0.01
_REPORTS = 100
"""How often a training looks at its loss, at most: on a GPU every look waits for the steps before it."""
_KNOWN: tuple[tuple[str, type[TrainingError], str], ...] = (
    (
        "Expected more than 1 value per channel",
        DataError,
        "a batch has a single example, by which BatchNorm cannot be trained; add examples, make batches larger, or "
        "take another norm such as GroupNorm",
    ),
    (
        "resize storage that is not resizable",
        TrainingError,
        "the model changes the size of a tensor while it trains, as observers for quantisation do, and only tensors of "
        "a fixed size can be shared; quantise what the federation has trained",
    ),
)
"""What torch says, and what it means."""
_log = structlog.get_logger(__name__)


class TorchTrainer:
    """Trains a module in place, on one device.

    A batch `(inputs, targets)` becomes `loss(model(inputs), targets)`. Of a longer tuple all but the last are the
    model's arguments; a lone tensor is its own target. A mapping's targets are its `labels`, `label`, `targets`,
    `target` or `y`; the rest is the model's argument, or its keyword arguments if there are several. `prepare_batch`
    turns any other batch into inputs (a tuple of arguments, a mapping of keyword arguments, or one) and targets.

    Without a loss the model brings its own: a LightningModule by its steps, its optimizer and what it logs; any other
    is called with the whole mapping and gives an output with a `loss`, as Hugging Face's models do.

    The module's own tensors are the only copy of the model. The optimizer begins anew with every training, because its
    moments belong to weights that others have moved since; `keep_optimizer` keeps it all the same, in memory only.
    A training sets torch's global seed, so on the CPU the same seed gives the same result, dropout included, as long
    as nothing else in the process draws from it at the same time.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Data,
        loss: Loss | None = None,
        *,
        lr: float | None = None,
        optimizer: OptimizerFactory | None = None,
        keep_optimizer: bool = False,
        batch_size: int = 32,
        local_steps: int | None = None,
        epochs: int | None = None,
        evaluate_on: Data | None = None,
        metrics: Mapping[str, Metric] | None = None,
        prepare_batch: Prepare | None = None,
        device: str | torch.device = "cpu",
        loaders: int = 0,
        fingerprint: bool = False,
    ) -> None:
        """
        Args:
            dataset: its length is the update's number of examples; of an iterable one those seen in a pass are counted.
                A DataLoader is used as it is.
            lr: 0.01 by default, or what the model's own optimizer has.
            optimizer: the model's own by default, or SGD.
            local_steps: optimizer steps for each update; or `epochs`, passes over the dataset; one epoch by default.
                A dataset without an end needs `local_steps`.
            evaluate_on: what versions are evaluated on; without it nothing is.
            metrics: reported besides the loss when a version is evaluated; by default the accuracy, where the model
                gives scores of classes and the targets are numbers of classes. One may give a number for each class, of
                which those that are not finite (no such class in the batch) are left out of its mean.
            loaders: processes that load data; 0 loads in the training thread. An iterable dataset has to share out its
                examples among them itself.
            fingerprint: whether updates carry a keyed fingerprint of the dataset, which is read once in full for it.

        A run's task may set `lr`, `local_steps` and `batch_size`, and nothing else here.

        Raises:
            ConfigError: the dataset is empty, both steps and epochs are given, or the model cannot be trained here.
        """
        if local_steps is not None and epochs is not None:
            raise ConfigError("give local_steps or epochs, not both")
        self._feed = Feed(dataset, loaders=loaders)
        if self._feed.size == 0:
            raise ConfigError("the training dataset is empty")
        self._held_out = None if evaluate_on is None else Feed(evaluate_on, loaders=loaders)
        if any(each.is_meta for each in model.parameters()):
            raise ConfigError(f"{type(model).__name__} has no values yet; load or initialise its weights first")
        start_by_forking()
        self.model = model.to(device)
        self._objective = objective(self.model, loss, prepare_batch, metrics)
        self._lr, self._make_optimizer, self._keep_optimizer = lr, optimizer, keep_optimizer
        self._optimizer: torch.optim.Optimizer | None = None
        self._rates: list[float] = []
        self._batch_size, self._local_steps, self._epochs = batch_size, local_steps, epochs or 1
        self._device, self._loaders = torch.device(device), loaders
        self._fingerprint = fingerprint
        self._printed: Fingerprint | None = None
        self._unsaid: set[str] = set()

    @cached_property
    def _tensors(self) -> ModuleTensors:
        return ModuleTensors(self.model)

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        return self._tensors.spec

    def initial(self) -> Iterator[bytes]:
        """The payload of the model as it stands: version 0 of a run that begins with it."""
        self.model.train()  # some adapters fuse weights while they evaluate
        return self._tensors.payload(self.spec)

    def train(self, base: Weights, control: Control) -> TrainResult:
        wanted = overrides(control.task)
        self._feed.check_batch_size(wanted.batch_size)
        self.model.train()  # before weights are written: some adapters fuse theirs while they evaluate
        self._tensors.load(base)
        torch.manual_seed(control.seed)
        optimizer = self._begin(wanted.lr)
        losses: list[float] = []
        try:
            steps, examples = self._train(optimizer, wanted, control, losses)
        except (ValueError, RuntimeError) as error:
            for said, kind, meaning in _KNOWN:
                if said in str(error):
                    raise kind(meaning) from error
            raise
        finally:
            # Gradients and moments take as much memory as the model, and the update is still to be formed.
            self.model.zero_grad(set_to_none=True)
            self._optimizer = optimizer if self._keep_optimizer else None
        trained = Live(self._tensors.named(base.spec))  # anew: some optimizers give parameters another memory
        return TrainResult(
            weights=trained,
            examples=examples,
            steps=steps,
            metrics={"loss": math.fsum(losses) / len(losses)} if losses else {},
            fingerprint=self._print(control.fingerprint_key),
            bfloat16=trained.bfloat16,
        )

    def _train(
        self, optimizer: torch.optim.Optimizer, wanted: Overrides, control: Control, losses: list[float]
    ) -> tuple[int, int]:
        """Take the steps, and note the losses that were looked at; returns how many steps and examples there are."""
        batches = self._feed.batches(wanted.batch_size or self._batch_size, seed=control.seed)
        limit, per_pass = wanted.local_steps or self._local_steps, length(batches)
        total = limit or (None if per_pass is None else self._epochs * per_pass)
        steps = seen = taken = 0
        self.model.train()
        for number, batch in passes(batches, steps=limit, epochs=self._epochs):
            control.check()
            taken += 1
            seen += count(batch) if self._feed.size is None and number == 0 else 0
            optimizer.zero_grad(set_to_none=True)
            batch = moved(batch, self._device)
            loss = self._objective.loss(batch, taken - 1)
            if loss is None:
                continue
            _check(loss)
            torch.autograd.backward(loss)
            optimizer.step()
            self._objective.stepped(batch, taken - 1)
            steps += 1
            if taken % max(1, (total or _REPORTS) // _REPORTS) == 0 or taken == total:
                losses.append(_finite(loss, steps))
                control.progress(taken / total if total else number / self._epochs, loss=losses[-1])
        return steps, self._feed.size or seen

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        if self._held_out is None or self._held_out.size == 0:
            return EvaluationResult(examples=0)
        self.model.train()
        self._tensors.load(model)
        self.model.eval()
        means: dict[str, _Mean] = {}
        total = 0
        with torch.no_grad():
            for index, batch in enumerate(self._held_out.batches(self._batch_size)):
                control.check()
                size = count(batch)
                for name, value in self._objective.measures(moved(batch, self._device), index).items():
                    means.setdefault(name, _Mean(whole="loss" in name)).add(value, size)
                total += size
                control.progress(total / self._held_out.size if self._held_out.size else 0.0)
            metrics = {name: mean.value for name, mean in means.items()} | dict(self._objective.finish())
        return EvaluationResult(examples=total, metrics=self._finite_ones(metrics))

    def _finite_ones(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Those that came to a number; the others are named once."""
        none = {name for name, value in metrics.items() if not math.isfinite(value)}
        for name in sorted(none - self._unsaid):
            _log.warning("metric.left_out", metric=name, reason="no number came of the examples here")
        self._unsaid |= none
        return {name: value for name, value in metrics.items() if name not in none}

    def _begin(self, lr: float | None) -> torch.optim.Optimizer:
        optimizer = self._optimizer or self._made()
        for group, own in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr or own
        return optimizer

    def _made(self) -> torch.optim.Optimizer:
        trained = [each for each in self.model.parameters() if each.requires_grad]
        if not trained:
            raise TrainingError(
                f"{type(self.model).__name__} has no parameter that is trained; set requires_grad of some"
            )
        made = None if self._make_optimizer else self._objective.optimizer()
        if made is None:
            made = (self._make_optimizer or torch.optim.SGD)(trained, lr=self._lr or _RATE)
        self._rates = [self._lr or group["lr"] for group in made.param_groups]
        return made

    def holdings(self) -> Holdings:
        """What there is to divide among several sites; a dataset's attribute `groups` tells whose each example is."""
        data, held_out = self._feed.indexed(), self._held_out
        return Holdings(
            examples=len(data),
            classes=partial(classes_of, data),
            groups=groups_of(data),
            evaluates=held_out is not None and held_out.size != 0,
        )

    def take(self, training: Sequence[int], held_out: Sequence[int]) -> None:
        """From now on train on these examples alone; and evaluate on those others, if there are any."""
        whole = cast(Dataset[Batch], self._feed.indexed())
        self._feed = Feed(Subset(whole, training), loaders=self._loaders)
        if held_out:
            self._held_out = Feed(Subset(whole, held_out), loaders=self._loaders)

    def join(self, others: Sequence[Self]) -> None:
        """From now on train on the examples of these trainers, too."""
        everybody = [cast(Dataset[Batch], each._feed.indexed()) for each in (self, *others)]
        self._feed = Feed(ConcatDataset(everybody), loaders=self._loaders)

    def _print(self, key: bytes | None) -> Fingerprint | None:
        if self._fingerprint and key is not None and self._printed is None:
            self._printed = fingerprint_of(self._feed.examples(), key)
        return self._printed


class _Mean:
    """The mean of a metric over examples, for each class of it; the mean of those is its value."""

    def __init__(self, *, whole: bool) -> None:
        """`whole`: nothing may be left out of it, as of a loss."""
        self._whole = whole
        self._sums: dict[int, float] = {}
        self._sizes: dict[int, int] = {}

    def add(self, given: Tensor | float, size: int) -> None:
        """Count a batch; a class that it has not (no finite number) is left out."""
        for index, value in enumerate(torch.as_tensor(given, dtype=torch.float64).flatten().tolist()):
            if self._whole or math.isfinite(value):
                self._sums[index] = self._sums.get(index, 0.0) + size * value
                self._sizes[index] = self._sizes.get(index, 0) + size

    @property
    def value(self) -> float:
        """Not a number if no class has one."""
        means = [total / self._sizes[index] for index, total in self._sums.items()]
        return sum(means) / len(means) if means else math.nan


def _check(loss: Tensor) -> None:
    if loss.numel() != 1:
        raise TrainingError(
            f"the loss is a tensor of shape {list(loss.shape)}; it has to be one number, the mean over the batch"
        )
    if not loss.requires_grad:
        raise TrainingError(
            "the loss depends on no parameter that is trained; compute it with torch, without detach() or numpy, and "
            "set requires_grad of what is to be trained"
        )


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} after {step} steps; nothing was sent. Try a smaller learning rate")
    return value
