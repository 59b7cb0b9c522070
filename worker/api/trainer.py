"""What a site's own training code has to do, and what it is given: `Trainer`, `Control` and the two results.

A trainer holds its model in memory and trains it in place. It is called by one thread at a time, never by two at once.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from protocol.codec import Value
from protocol.errors import Aborted, TrainingError
from protocol.messages import Fingerprint
from worker.api.weights import Array, Weights

Progress = Callable[[float, Mapping[str, float]], None]
"""Takes how much of a training is done, in [0, 1], and the metrics so far."""
_UNNAMED = re.compile(r"[^A-Za-z0-9._:+-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    weights: Mapping[str, Array]
    """The trained values under the names of the specification: live arrays, read before the trainer is called again.

    A trainer whose arrays lie elsewhere (on a GPU) gives a mapping that fetches one when it is asked for.
    """
    examples: int
    """How many examples the training set has (not how often they were shown); the update's weight follows from it."""
    steps: int
    """Optimizer steps taken."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None
    bfloat16: frozenset[str] = frozenset()
    """Tensors that are bfloat16 where they are trained; numpy has no such type, so their arrays are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """How a model did on the site's own data; `examples` is 0 where there is nothing to evaluate on."""

    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Control:
    """What a training runs under: its task, its dice, a place to report to, and the order to stop."""

    def __init__(
        self,
        *,
        run: str,
        version: int,
        task: Mapping[str, Value] = MappingProxyType({}),
        seed: int = 0,
        on_progress: Progress | None = None,
        abort: threading.Event | None = None,
        fingerprint_key: bytes | None = None,
    ) -> None:
        """`abort` may be set by any thread; `on_progress` is called by the training thread."""
        self.run = run
        self.version = version
        """The base version."""
        self.task = task
        """The run's plain parameters for trainers; never code."""
        self.seed = seed
        """In [0, 2**63), another one for each training (`training_seed`)."""
        self.fingerprint_key = fingerprint_key
        """For `worker.api.fingerprint`; never leaves the site."""
        self.reported: dict[str, float] = {}
        """What was said of each metric last; goes into the update of a trainer whose result names none."""
        self._on_progress = on_progress
        self._abort = abort or threading.Event()

    @property
    def aborted(self) -> bool:
        """Whether the training was told to stop."""
        return self._abort.is_set()

    def check(self) -> None:
        """Call this between steps.

        Raises:
            Aborted: the training was told to stop.
        """
        if self._abort.is_set():
            raise Aborted(f"training of run {self.run} from version {self.version} was told to stop")

    def wait(self, seconds: float) -> None:
        """Do nothing for `seconds`, or until the training is told to stop.

        Raises:
            Aborted: it was told to stop.
        """
        self._abort.wait(max(0.0, seconds))
        self.check()

    def progress(self, fraction: float, **metrics: float) -> None:
        """Say how much is done, in [0, 1]; cheap enough for every step. Values that are not finite are left out."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self.reported |= finite
        if self._on_progress is not None:
            share = min(1.0, max(0.0, fraction)) if math.isfinite(fraction) else 0.0
            self._on_progress(share, finite)


class Trainer(Protocol):
    """A site's training code.

    A trainer may have an attribute `keeps`: the names of floating tensors that stay at the site, like those of
    `exclude`; and `key_metric`: the name of the metric by which it compares versions, or `-name` if smaller is
    better.
    """

    def train(self, base: Weights, control: Control) -> TrainResult:
        """Train from `base` on the site's own data.

        Raises:
            Aborted: `control` said so.
            TrainingError: training failed; any other exception becomes one.
        """

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        """Evaluate `model` on the site's own data."""


def training_seed(site_seed: bytes, run: str, version: int, count: int) -> int:
    """The seed of the `count`-th training that a site begins from a version, in [0, 2**63)."""
    text = b"fledge/v1/training\0" + hashlib.sha256(site_seed).digest() + f"{version}/{count}/{run}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What a run's task may change in every trainer; None leaves the trainer's own setting."""

    lr: float | None = None
    local_steps: int | None = None
    batch_size: int | None = None


def overrides(task: Mapping[str, Value]) -> Overrides:
    """Read the parameters a task may set in every trainer; others are for trainers that know them.

    Raises:
        TrainingError: a parameter is not a positive number.
    """
    lr, steps, batch = (_positive(task, name) for name in ("lr", "local_steps", "batch_size"))
    return Overrides(lr=lr, local_steps=_whole("local_steps", steps), batch_size=_whole("batch_size", batch))


def metric_name(said: str) -> str:
    """A library's name of a metric as an update can carry it."""
    return _UNNAMED.sub("_", said)[:64]


def positive_whole(task: Mapping[str, Value], name: str) -> int | None:
    """A parameter of a run's task that has to be a positive whole number; None if it is not set.

    Raises:
        TrainingError: it is something else.
    """
    return _whole(name, _positive(task, name))


def _positive(task: Mapping[str, Value], name: str) -> float | None:
    value = task.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise TrainingError(f"the run's task sets {name} to {value!r}; it has to be a positive number")
    return value


def _whole(name: str, value: float | None) -> int | None:
    if isinstance(value, float):
        raise TrainingError(f"the run's task sets {name} to {value!r}; it has to be a whole number")
    return value
