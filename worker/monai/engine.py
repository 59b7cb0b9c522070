"""A training or evaluation on an ignite engine: begun afresh, counted, watched in every iteration, stopped at once."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, SupportsFloat, TypeVar

import structlog
import torch
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.engines.workflow import Workflow
from monai.utils.misc import set_determinism
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from protocol.errors import Diverged
from worker.api.trainer import Control, metric_name
from worker.monai.configs import LEFT_OUT

_REPORTS = 100
"""How often a training looks at its loss, at most: on a GPU every look waits for the iterations before it."""
_SEEDS = 2**32
_E = TypeVar("_E", bound=Workflow)
_log = structlog.get_logger(__name__)
_quiet = logging.getLogger(f"{__name__}.quiet")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False
_quiet.setLevel(logging.CRITICAL + 1)


@dataclass(slots=True)
class _Run:
    """What is going on."""

    control: Control
    total: int | None
    """Iterations, if that can be known beforehand."""
    stop_after: int | None = None
    losses: float = 0.0
    looks: int = 0
    error: BaseException | None = None


class Engine(Generic[_E]):
    """A trainer or evaluator of a bundle, run under a `Control`."""

    def __init__(self, engine: _E) -> None:
        self.engine = engine
        self._run: _Run | None = None
        self.loss: float | None = None
        """The mean of the losses that the last run looked at."""
        self._unsaid: set[str] = set()
        # Its messages quote errors, which may name a patient; what a training says goes into the site's case alone.
        engine.logger = _quiet
        _drop_handlers(engine)
        engine.add_event_handler(Events.ITERATION_STARTED, self._before)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after)

    @property
    def length(self) -> int | None:
        """Iterations of an epoch, if the bundle's data have a length."""
        length = self.engine.state.epoch_length
        return None if length is None else int(length)

    def run(self, control: Control, *, epochs: int = 1, steps: int | None = None) -> int:
        """Run from the beginning, for so many epochs or exactly so many iterations; returns how many it were.

        Raises:
            Aborted: `control` said so; nothing of what was begun goes on later.
            Diverged: the loss is not finite.
        """
        length = self.length
        if steps is not None:
            epochs = -(-steps // length) if length else steps
        run = _Run(control, steps or (epochs * length if length else None), steps)
        self._rewind(epochs)
        self.engine.state.metrics.clear()
        self.engine.state.metric_details.clear()
        self._run, self.loss = run, None
        try:
            self.engine.run()
            if run.error is not None:  # a handler of the bundle's own may have swallowed it
                raise run.error
        finally:
            self._run = None
            done = int(self.engine.state.iteration)
            self.loss = run.losses / run.looks if run.looks else None
            self._rewind(epochs)
        return done

    @property
    def key_metric(self) -> str:
        """The name of the metric by which it compares models, as `metrics` has it; empty if there is none.

        A minus sign before it: smaller is better.
        """
        name = metric_name(str(getattr(self.engine.state, "key_metric_name", None) or ""))
        return f"-{name}" if name and self.engine.metric_cmp_fn(0.25, 0.75) else name

    def metrics(self) -> dict[str, float]:
        """What the bundle's metrics came to, those that are one number.

        One that had nothing to measure in any image (a Dice without foreground) is left out and named once; MONAI
        says 0 of it.
        """
        details = self.engine.state.metric_details
        empty = {name for name in self.engine.state.metrics if _nothing(details.get(name))}
        for name in sorted(empty - self._unsaid):
            _log.warning("metric.left_out", metric=metric_name(name), reason="no image here has what it measures")
        self._unsaid |= empty
        return numbers({name: value for name, value in self.engine.state.metrics.items() if name not in empty})

    def _rewind(self, epochs: int) -> None:
        """Forget how far the engine came: ignite would go on in the middle of an interrupted epoch."""
        state, engine = self.engine.state, self.engine
        engine._internal_run_generator = engine._dataloader_iter = engine._init_iter = None
        engine.should_terminate = engine.should_terminate_single_epoch = False
        state.iteration = state.epoch = 0
        state.max_epochs = epochs
        state.batch = state.output = None
        loader = engine.data_loader
        if isinstance(loader, DataLoader):  # workers that outlive an epoch keep their dice
            loader._iterator = None

    def _before(self, engine: Workflow) -> None:
        if self._run is not None:
            self._guarded(self._run, self._run.control.check)

    def _after(self, engine: Workflow) -> None:
        run = self._run
        if run is None:
            return
        self._guarded(run, lambda: self._watch(run, int(engine.state.iteration)))
        # At the end of an epoch the engine stops by itself, with the metrics and the schedule of a whole epoch.
        steps, length = run.stop_after, self.length
        if steps is not None and steps == engine.state.iteration and (not length or steps % length):
            engine.terminate()

    def _watch(self, run: _Run, iteration: int) -> None:
        run.control.check()
        fraction = iteration / run.total if run.total else 0.0
        every = max(1, (run.total or 1) // _REPORTS)
        loss = _loss(self.engine.state.output) if iteration % every == 0 or iteration == run.total else None
        if loss is None:
            run.control.progress(fraction)
            return
        value = float(loss)
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} after {iteration} iterations; nothing was sent. Try a smaller learning rate, or "
                "look for images without content"
            )
        run.losses, run.looks = run.losses + value, run.looks + 1
        run.control.progress(fraction, loss=value)

    @staticmethod
    def _guarded(run: _Run, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            run.error = error
            raise


class Beginning:
    """Optimizers and schedules as the bundle made them, and the way back there."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[LRScheduler]) -> None:
        self._optimizers = [(each, _settings(each), copy.deepcopy(dict(each.state))) for each in optimizers]
        self._schedulers = [(each, copy.deepcopy(each.state_dict())) for each in schedulers]

    def restore(self) -> None:
        """Begin anew: no moments, the first learning rate; releases the memory of the moments."""
        for optimizer, settings, state in self._optimizers:
            for group, values in zip(optimizer.param_groups, settings, strict=True):
                group.update(copy.deepcopy(values))
            optimizer.state.clear()
            optimizer.state.update(copy.deepcopy(state))
        for scheduler, saved in self._schedulers:
            scheduler.load_state_dict(copy.deepcopy(saved))

    def set_rate(self, lr: float) -> None:
        """Begin with another learning rate."""
        for optimizer, _, _ in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
                if "initial_lr" in group:
                    group["initial_lr"] = lr
        for scheduler, _ in self._schedulers:
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [lr] * len(scheduler.base_lrs)


def seed(number: int, loaders: Iterable[object], datasets: Iterable[object]) -> None:
    """Let everything that throws dice begin from one number: torch, numpy, Python, loaders and random transforms.

    The random transforms keep dice of their own, which `set_determinism` does not reach.
    """
    set_determinism(seed=number % _SEEDS)
    for loader in loaders:
        generator = getattr(loader, "generator", None)
        if generator is not None:
            generator.manual_seed(number)
    for dataset in datasets:
        set_rnd(dataset, seed=number % _SEEDS)


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """The entries that are single finite numbers; names are made such that an update can say them."""
    found = {}
    for name, value in metrics.items():
        if not isinstance(value, SupportsFloat | str):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            continue
        if math.isfinite(number):
            found[metric_name(str(name))] = number
    return found


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def _loss(output: object) -> Tensor | float | None:
    """The loss among an iteration's outputs, whether or not they were taken apart into examples."""
    if isinstance(output, list | tuple) and output:
        output = output[0]
    if isinstance(output, Mapping):
        output = output.get("loss")
    if isinstance(output, Tensor):
        return output.detach().float().mean()
    return float(output) if isinstance(output, int | float) else None


def _nothing(detail: object) -> bool:
    """Whether a metric has no number for any image and class."""
    return isinstance(detail, Tensor) and detail.numel() > 0 and bool(detail.isnan().all())


def _drop_handlers(engine: Workflow) -> None:
    """Take handlers out that the configuration did not show, such as a bundle's own kind of checkpoint saver."""
    for event, handlers in engine._event_handlers.items():
        kept = [entry for entry in handlers if not _left_out(entry[0])]
        engine._event_handlers[event] = kept


def _left_out(handler: object) -> bool:
    handler = getattr(handler, "__wrapped__", handler)  # ignite wraps those of every n-th iteration
    handler = getattr(handler, "__self__", handler)
    return any(kind.__name__ in LEFT_OUT for kind in type(handler).__mro__)
