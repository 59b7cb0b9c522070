"""Any `monai.fl.client.ClientAlgo` as a trainer: for code that was written for another federation.

Bundles need none of this; `worker.trainers.monai_bundle` trains them with less memory and begins anew every time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from monai.fl.client.client_algo import ClientAlgo
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from protocol.errors import ConfigError, TrainingError
from worker.api.trainer import Control, EvaluationResult, TrainResult
from worker.api.weights import Array, Weights
from worker.monai.engine import numbers, seed

_LOOK = 0.2
"""Seconds between looks at whether to stop: the algorithm runs on this thread and cannot be asked."""


class ClientAlgoTrainer:
    """Hands versions to an algorithm and takes back what it made of them, full weights or differences.

    The algorithm holds a model of its own, so it is in memory up to three times. What it keeps between trainings
    (optimizer state, most of all) is its own affair; after a training that was stopped it is initialised again.
    """

    def __init__(
        self, algo: ClientAlgo, *, examples: int, evaluated: int = 0, extra: Mapping[str, object] | None = None
    ) -> None:
        """
        Args:
            algo: initialised here, with `extra`; paths in it have to be absolute.
            examples: size of the site's training set, which algorithms do not tell.
            evaluated: size of what it evaluates on; 0: versions are not evaluated.

        Raises:
            ConfigError: it is no `ClientAlgo`, or `examples` is not positive.
        """
        if not isinstance(algo, ClientAlgo):
            raise ConfigError(f"a {type(algo).__name__} is no monai.fl.client.ClientAlgo")
        if examples < 1:
            raise ConfigError(f"examples is {examples}; it has to be the size of the site's training set")
        self._algo = algo
        self._examples, self._evaluated = examples, evaluated
        self._extra = dict(extra or {})
        self._algo.initialize(dict(self._extra))
        self._stopped = False

    def train(self, base: Weights, control: Control) -> TrainResult:
        control.check()
        if self._stopped:  # ignite would finish the interrupted epoch first
            self._algo.initialize(dict(self._extra))
            self._stopped = False
        seed(control.seed, (), ())
        with self._stoppable(control):
            self._algo.train(_exchange(base), dict(self._extra))
        control.check()
        trained = self._algo.get_weights(dict(self._extra))
        done = numbers(trained.statistics or {}).get(FlStatistics.NUM_EXECUTED_ITERATIONS)
        weights, metrics = _weights(trained, base), numbers(trained.metrics or {})
        return TrainResult(
            weights=weights, examples=self._examples, steps=1 if done is None else int(done), metrics=metrics
        )

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        if not self._evaluated:
            return EvaluationResult(examples=0)
        with self._stoppable(control):
            found = self._algo.evaluate(_exchange(model), dict(self._extra))
        control.check()
        return EvaluationResult(examples=self._evaluated, metrics=numbers(found.metrics or {}))

    @contextmanager
    def _stoppable(self, control: Control) -> Iterator[None]:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_LOOK):
                if control.aborted:
                    self._stopped = True
                    self._algo.abort(dict(self._extra))
                    return

        watcher = threading.Thread(target=watch, name="worker algorithm", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _exchange(weights: Weights) -> ExchangeObject:
    return ExchangeObject(
        weights={name: torch.from_numpy(array.copy()) for name, array in weights.tensors()},
        weight_type=WeightType.WEIGHTS,
    )


def _weights(trained: ExchangeObject, base: Weights) -> Mapping[str, Array]:
    """Full weights by the specification's names; differences are added to the base."""
    if not isinstance(trained.weights, Mapping):
        raise TrainingError("the algorithm's get_weights gave no weights")
    wanted = {tensor.name for tensor in base.spec.tensors}
    found = {name: _array(value) for name, value in trained.weights.items() if name in wanted}
    if trained.weight_type == WeightType.WEIGHT_DIFF:
        for name, array in base.tensors():
            if name in found:
                found[name] = (array + found[name]).astype(array.dtype, copy=False)
    elif trained.weight_type != WeightType.WEIGHTS:
        raise TrainingError(
            f"the algorithm gave weights of type {trained.weight_type!r}; fledge takes full ones or a diff"
        )
    return found


def _array(value: object) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = (value.float() if value.dtype == torch.bfloat16 else value).cpu().as_subclass(torch.Tensor).numpy()
    array: Array = np.asarray(value)
    return array
