"""The trainer of the pipeline benchmark: a numpy model to which training adds noise; it tells where its time went."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.pipeline_events import tell
from benchmarks.pipeline_model import NoiseModel
from protocol.spec import ModelSpec, TensorKind
from worker.api.trainer import Control, EvaluationResult, TrainResult
from worker.api.weights import Weights, tensor_spec, write_records


class NoiseTrainer:
    """One site."""

    def __init__(self, site: str, size_mb: int, train: bool) -> None:
        self._site = site
        self._train = train
        self._begun = False
        self._model = NoiseModel(size_mb)

    @property
    def spec(self) -> ModelSpec:
        """What the model consists of."""
        weights = self._model.weights.items()
        return ModelSpec(tuple(tensor_spec(name, array, TensorKind.PARAMETER) for name, array in weights))

    def initial(self) -> Iterator[bytes]:
        """Version 0, as a payload."""
        return write_records(self.spec, self._model.weights.__getitem__)

    def train(self, base: Weights, control: Control) -> TrainResult:
        """Load the base and add noise; a trainer that does next to nothing tells its first step only."""
        began = time.perf_counter()
        if self._train or not self._begun:
            tell("step.began", site=self._site, version=control.version)
        self._begun = True
        base.copy_into(self._model.weights)
        loaded = time.perf_counter()
        if self._train:
            self._model.train()
            done = time.perf_counter()
            tell("step.done", site=self._site, version=control.version, load=loaded - began, train=done - loaded)
        else:  # an update that is its base is not sent
            next(iter(self._model.weights.values())).reshape(-1)[0] += 1
        return TrainResult(weights=self._model.weights, examples=100, steps=1)

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        """Nothing to evaluate on."""
        return EvaluationResult(examples=0)


def trainer(size_mb: int, site: str = "", train: bool = True) -> NoiseTrainer:
    """The factory that `init-run` and the workers call; `train` False changes one value of the model."""
    return NoiseTrainer(site, size_mb, train)
