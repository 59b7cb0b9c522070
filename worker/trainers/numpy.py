"""Trainers for models in numpy arrays, such as scikit-learn's; neither torch nor scikit-learn is imported."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol, Self

import numpy as np

from protocol.errors import ConfigError, TrainingError
from protocol.messages import Fingerprint
from protocol.spec import ModelSpec
from worker.api.division import Holdings
from worker.api.fingerprint import fingerprint
from worker.api.trainer import Control, EvaluationResult, TrainResult, overrides
from worker.api.weights import Array, Weights
from worker.trainers.initial import spec_and_payload

Arrays = Mapping[str, Array]


class NumpyTrainer:
    """Trains arrays in place by a function of the site's own."""

    def __init__(
        self,
        arrays: Arrays,
        fit: Callable[[Control], int],
        *,
        examples: int,
        evaluate: Callable[[Control], EvaluationResult] | None = None,
        buffers: Collection[str] = (),
    ) -> None:
        """
        Args:
            arrays: the model by tensor name; written to before each training and read after it.
            fit: trains them in place and returns the number of optimizer steps; calls `control.check()` now and then.
            examples: size of the training set.
            evaluate: evaluates the arrays as they stand.
            buffers: arrays that are statistics rather than parameters.
        """
        self._arrays = arrays
        self._fit = fit
        self._examples = examples
        self._evaluate = evaluate
        self._buffers = buffers

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        return spec_and_payload(self._arrays, buffers=self._buffers)[0]

    def initial(self) -> Iterator[bytes]:
        """The payload of the arrays as they stand: version 0 of a run that begins with them."""
        return spec_and_payload(self._arrays, buffers=self._buffers)[1]

    def train(self, base: Weights, control: Control) -> TrainResult:
        base.copy_into(self._arrays)
        steps = self._fit(control)
        return TrainResult(weights=self._arrays, examples=self._examples, steps=steps)

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        if self._evaluate is None:
            return EvaluationResult(examples=0)
        model.copy_into(self._arrays)
        return self._evaluate(control)


class Estimator(Protocol):
    """What scikit-learn's estimators have that learn from one part of the data after another."""

    @property
    def partial_fit(self) -> Callable[..., object]:
        """Takes features and labels, and `classes` if it classifies."""

    @property
    def score(self) -> Callable[..., float]:
        """Takes features and labels."""


class EstimatorTrainer:
    """Trains an estimator that has `partial_fit`, such as scikit-learn's SGDClassifier or MLPClassifier.

    Its learned attributes are the model: `coef_` and `intercept_`, or the lists `coefs_` and `intercepts_` as
    `coefs_.0`, `coefs_.1`, … What else the estimator keeps (its count of steps, momentum) stays at the site, in memory.
    """

    def __init__(
        self,
        estimator: Estimator,
        features: Array,
        labels: Array,
        *,
        classes: Sequence[object] | Array | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        evaluate_on: tuple[Array, Array] | None = None,
        fingerprint: bool = False,
    ) -> None:
        """
        Args:
            classes: all classes of the federation, whether or not this site has examples of each.
            epochs: passes over the data for each update, unless the task says `local_steps`.
            batch_size: examples for each call of `partial_fit`, which is one step; the task may say otherwise.
            evaluate_on: features and labels; without them nothing is evaluated.
            fingerprint: whether updates carry a keyed fingerprint of the data.

        Raises:
            ConfigError: there is no `partial_fit`, there are no data, or `classes` is missing.
        """
        if not hasattr(estimator, "partial_fit"):
            raise ConfigError(
                f"{type(estimator).__name__} has no partial_fit; federated training continues from given weights"
            )
        if len(features) != len(labels) or len(labels) == 0:
            raise ConfigError(f"there are {len(features)} rows of features and {len(labels)} labels")
        takes_classes = "classes" in inspect.signature(estimator.partial_fit).parameters
        if takes_classes and classes is None:
            raise ConfigError(
                f"{type(estimator).__name__} needs `classes`: all classes of the federation, also those this site lacks"
            )
        self._estimator = estimator
        self._features, self._labels = features, labels
        self._classes = {"classes": np.asarray(classes)} if takes_classes else {}
        self._epochs, self._batch_size = epochs, batch_size
        self._evaluate_on = evaluate_on
        self._fingerprint = fingerprint
        self._allocate()

    def _allocate(self) -> None:
        """Have the estimator make its arrays; linear models begin with zeros, as scikit-learn's own `fit` does."""
        if not self._arrays():
            self._estimator.partial_fit(self._features[:1], self._labels[:1], **self._classes)
            for name, array in self._arrays().items():
                if name in ("coef_", "intercept_"):
                    array[...] = 0
        if not self._arrays():
            raise ConfigError(
                f"{type(self._estimator).__name__} learns neither coef_ nor coefs_; write a NumpyTrainer for it"
            )

    def _arrays(self) -> dict[str, Array]:
        """The learned arrays as they are now: some estimators replace them when they learn."""
        found: dict[str, Array] = {}
        for name in ("coef_", "intercept_", "coefs_", "intercepts_"):
            value = getattr(self._estimator, name, None)
            if isinstance(value, np.ndarray):
                found[name] = value
            elif isinstance(value, list):
                found |= {f"{name}.{index}": array for index, array in enumerate(value)}
        return found

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        return spec_and_payload(self._arrays())[0]

    def initial(self) -> Iterator[bytes]:
        """The payload of the estimator as it stands: version 0 of a run that begins with it."""
        return spec_and_payload(self._arrays())[1]

    def train(self, base: Weights, control: Control) -> TrainResult:
        wanted = overrides(control.task)
        if wanted.lr is not None:
            self._set_rate(wanted.lr)
        base.copy_into(self._arrays())
        batch = min(wanted.batch_size or self._batch_size, len(self._labels))
        steps = wanted.local_steps or self._epochs * -(-len(self._labels) // batch)
        dice = np.random.default_rng(control.seed)
        order = np.empty(0, np.int64)
        for step in range(steps):
            control.check()
            if order.size == 0:
                order = dice.permutation(len(self._labels))
            chosen, order = order[:batch], order[batch:]
            self._estimator.partial_fit(self._features[chosen], self._labels[chosen], **self._classes)
            control.progress((step + 1) / steps)
        return TrainResult(
            weights=self._arrays(),
            examples=len(self._labels),
            steps=steps,
            metrics=self._loss(),
            fingerprint=self._print(control.fingerprint_key),
        )

    def _loss(self) -> dict[str, float]:
        """Of those estimators that tell it, such as MLPClassifier; linear ones do not."""
        loss = getattr(self._estimator, "loss_", None)
        return {"loss": float(loss)} if isinstance(loss, float) and math.isfinite(loss) else {}

    def holdings(self) -> Holdings:
        """What there is to divide among several sites."""
        classes = np.asarray(self._labels).tolist() if self._classes else None
        evaluates = self._evaluate_on is not None and len(self._evaluate_on[1]) > 0
        return Holdings(examples=len(self._labels), classes=lambda: classes, evaluates=evaluates)

    def take(self, training: Sequence[int], held_out: Sequence[int]) -> None:
        """From now on train on these examples alone; and evaluate on those others, if there are any."""
        features, labels, chosen = self._features, self._labels, np.asarray(training)
        self._features, self._labels = features[chosen], labels[chosen]
        if held_out:
            kept = np.asarray(held_out)
            self._evaluate_on = features[kept], labels[kept]

    def join(self, others: Sequence[Self]) -> None:
        """From now on train on the examples of these trainers, too."""
        everybody = (self, *others)
        features = np.concatenate([each._features for each in everybody])
        self._features, self._labels = features, np.concatenate([each._labels for each in everybody])

    def _set_rate(self, rate: float) -> None:
        for name in ("eta0", "learning_rate_init"):
            if hasattr(self._estimator, name):
                setattr(self._estimator, name, rate)
                return
        raise TrainingError(f"the run's task sets lr, which {type(self._estimator).__name__} does not know")

    def _print(self, key: bytes | None) -> Fingerprint | None:
        if not self._fingerprint or key is None:
            return None
        return fingerprint(zip(self._features, self._labels, strict=True), key)

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        if self._evaluate_on is None:
            return EvaluationResult(examples=0)
        model.copy_into(self._arrays())
        features, labels = self._evaluate_on
        name = "accuracy" if self._classes else "r2"
        return EvaluationResult(examples=len(labels), metrics={name: float(self._estimator.score(features, labels))})
