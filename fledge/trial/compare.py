"""What the federation is compared with: the same trainer on one share alone, and on all data in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from fledge.trial.federation import RUN
from fledge.trial.source import seeded
from protocol.cipher import Octets
from protocol.errors import ConfigError, TrainingError
from protocol.messages import Evaluation
from protocol.spec import ModelSpec
from worker.api.trainer import Control, Trainer, training_seed
from worker.api.weights import Array, Weights, write_records
from worker.pipeline.contribute import BaseVersion, evaluate

Records = Callable[[], Iterator[Octets]]


def measure(trainers: Sequence[Trainer], spec: ModelSpec, records: Records) -> Mapping[str, float]:
    """How a model does: the mean over all trainers' held-out examples.

    Raises:
        ConfigError: none of them has anything to evaluate on.
        TrainingError: an evaluation failed.
    """
    found: list[Evaluation] = []
    for trainer in trainers:
        control = Control(run=RUN, version=0)
        found.append(evaluate(trainer, BaseVersion(spec, records), control=control))
    total = sum(each.examples for each in found)
    if total == 0 or not any(each.metrics for each in found):
        raise ConfigError(
            "the trainer evaluates nothing, so that nothing could be compared; give it evaluate_on, or let `evaluate` "
            "say how many examples it looked at and what it found"
        )
    names = [name for name in found[0].metrics if all(name in each.metrics for each in found if each.examples)]
    return {
        name: math.fsum(each.examples * each.metrics[name] for each in found if each.examples) / total for name in names
    }


def train_for(
    trainer: Trainer,
    spec: ModelSpec,
    records: Records,
    steps: int,
    *,
    seed: int,
    on_progress: Callable[[float], None],
) -> list[bytes]:
    """Train from a model for at least so many steps, as a federation of this trainer alone would; gives the records.

    Raises:
        TrainingError: it failed, or takes no steps.
    """
    model, done, version = [bytes(record) for record in records()], 0, 0
    while done < steps:
        on_progress(done / steps)
        control = Control(run=RUN, version=version, seed=training_seed(str(seed).encode(), RUN, version, 1))
        seeded(control.seed)
        base = Weights(spec, partial(iter, model))
        result = trainer.train(base, control)
        if result.steps < 1:
            raise TrainingError("the trainer took no step; it has too few examples for a batch")
        model = list(write_records(spec, _reader(result.weights, base)))
        done, version = done + result.steps, version + 1
    on_progress(1.0)
    return model


def _reader(trained: Mapping[str, Array], base: Weights) -> Callable[[str], Array]:
    """Tensors that are not floating may be missing from what was trained: they stay as they were."""
    kept: dict[str, Array] = {}

    def read(name: str) -> Array:
        if name in trained:
            return trained[name]
        if not kept:
            kept.update((each, array.copy()) for each, array in base.tensors() if each not in trained)
        return kept[name]

    return read
