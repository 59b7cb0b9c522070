"""Trainers for models in numpy arrays, such as scikit-learn's; neither torch nor scikit-learn is imported."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol, Self

import numpy as np

from protocol.errors import ConfigError, Diverged, TrainingError
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
        self._looked = False

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        return spec_and_payload(self._arrays, buffers=self._buffers)[0]

    def initial(self) -> Iterator[bytes]:
        """The payload of the arrays as they stand: version 0 of a run that begins with them."""
        return spec_and_payload(self._arrays, buffers=self._buffers)[1]

    def train(self, base: Weights, control: Control) -> TrainResult:
        if not self._looked:
            _check_live(self._arrays)
            self._looked = True
        base.copy_into(self._arrays)
        steps: object = self._fit(control)
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
            raise TrainingError(f"fit returned {steps!r}; it has to return how many optimizer steps it took")
        return TrainResult(weights=self._arrays, examples=self._examples, steps=int(steps))

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


_LINEAR = ("coef_", "intercept_", "offset_")
_LAYERED = ("coefs_", "intercepts_")
_TRIED = 8
"""By how many examples an estimator is tried."""
_FOLLOWS = 0.5
"""How far apart two trainings have to end, at least in one value of each array, that began 1 apart in all."""


class _Kept:
    """What an estimator keeps besides its learned arrays, as it was at first."""

    def __init__(self, estimator: Estimator) -> None:
        """
        Raises:
            ConfigError: it cannot be copied.
        """
        try:
            self._values = self._copied({n: v for n, v in vars(estimator).items() if not _is_learned(n)}, estimator)
        except TypeError as error:
            raise ConfigError(
                f"{type(estimator).__name__} cannot be copied ({error}), so no training could begin anew; write a "
                "NumpyTrainer for it"
            ) from error

    def restore(self, estimator: Estimator, seed: int) -> None:
        """Let everything but the learned arrays be as it was; dice without a fixed seed begin with this one."""
        values = vars(estimator)
        for name in [name for name in values if not _is_learned(name)]:
            del values[name]
        values.update(self._copied(self._values, estimator))
        values.pop("_optimizer", None)  # a network's moments, which belong to other weights
        if "random_state" in values and not isinstance(values["random_state"], int):
            values["random_state"] = seed % 2**32

    @staticmethod
    def _copied(values: Mapping[str, object], estimator: Estimator) -> dict[str, object]:
        # What refers to the learned arrays goes on referring to them.
        return copy.deepcopy(dict(values), {id(array): array for array in _learned(estimator).values()})


class EstimatorTrainer:
    """Trains an estimator that has `partial_fit`, such as scikit-learn's SGDClassifier or MLPClassifier.

    Its learned attributes are the model: `coef_`, `intercept_` and `offset_`, or the lists `coefs_` and `intercepts_`
    as `coefs_.0`, `coefs_.1`, … What else the estimator keeps (its count of steps, momentum, dice) begins anew with
    every training, so that one follows from its base and its seed alone. One that predicts by more than the model, or
    trains something else, is refused.
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
            ConfigError: there is no `partial_fit`, there are no data, `classes` is missing or lacks a label, or the
                learned attributes are not all of what it learns.
        """
        if not hasattr(estimator, "partial_fit"):
            raise ConfigError(
                f"{type(estimator).__name__} has no partial_fit; federated training continues from given weights"
            )
        features, labels = _rows(features), _rows(labels)
        if features.shape[:1] != labels.shape[:1] or len(labels) == 0:
            raise ConfigError(f"there are {features.shape[0]} rows of features and {len(labels)} labels")
        takes_classes = "classes" in inspect.signature(estimator.partial_fit).parameters
        if takes_classes and classes is None:
            raise ConfigError(
                f"{type(estimator).__name__} needs `classes`: all classes of the federation, also those this site lacks"
            )
        self._estimator = estimator
        self._features, self._labels = features, labels
        self._classes = {"classes": np.asarray(classes)} if takes_classes else {}
        self._epochs, self._batch_size = epochs, batch_size
        self._evaluate_on = None if evaluate_on is None else (_rows(evaluate_on[0]), _rows(evaluate_on[1]))
        if evaluate_on is not None and not hasattr(estimator, "score"):
            raise ConfigError(
                f"{type(estimator).__name__} has no score, so it cannot be evaluated; leave evaluate_on out"
            )
        self._fingerprint = fingerprint
        self._check_labels()
        self._allocate()
        self._kept = _Kept(estimator)
        self._check_complete()

    def _check_labels(self) -> None:
        for where, labels in (("labels", self._labels), ("evaluate_on", (self._evaluate_on or ((), ()))[1])):
            if self._classes and (unknown := set(np.unique(labels).tolist()) - set(self._classes["classes"].tolist())):
                told = ", ".join(sorted(map(repr, unknown))[:_TRIED])
                raise ConfigError(
                    f"{where} holds {told}, and `classes` names no such class; name all classes of the federation, "
                    "numbers as numbers and words as words"
                )

    def _allocate(self) -> None:
        """Have the estimator make its arrays; linear models begin with zeros, as scikit-learn's own `fit` does."""
        if not self._arrays():
            try:
                self._show(self._estimator, slice(1))
            except ValueError as error:
                raise ConfigError(
                    f"{type(self._estimator).__name__} makes no model of a single example: {error}"
                ) from error
            for name, array in self._arrays().items():
                if name in _LINEAR:
                    array[...] = 0
            if hasattr(self._estimator, "t_"):  # it has seen an example, which taught it nothing
                self._estimator.t_ -= 1
        if not self._arrays():
            raise ConfigError(
                f"{type(self._estimator).__name__} learns neither coef_ nor coefs_; write a NumpyTrainer for it"
            )

    def _check_complete(self) -> None:
        """Try with copies whether the arrays are all that predicts, and whether training begins with them.

        Raises:
            ConfigError: they are not, or it does not.
        """
        name, rows = type(self._estimator).__name__, slice(_TRIED)
        arrays = ", ".join(sorted({each.partition(".")[0] for each in self._arrays()}))
        if getattr(self._estimator, "average", False):
            raise ConfigError(
                f"{name}(average=…) trains other weights than those it predicts by, and only {arrays} would be shared; "
                "set average=False, versions are means already"
            )
        used = self._copy()
        for _ in range(2):
            self._show(used, rows)
        fresh = self._copy()
        _write(fresh, _learned(used), 0.0)
        if not _predict_alike(fresh, used, self._features[rows]):
            raise ConfigError(
                f"{name} predicts by more than {arrays}, which alone would be shared; write a NumpyTrainer that shares "
                "the rest, too"
            )
        # Two that begin apart end apart; several examples are tried, because one may happen to undo it.
        if not any(self._follows(slice(row, row + 1)) for row in range(min(_TRIED, len(self._labels)))):
            raise ConfigError(
                f"{name} does not train on from {arrays}, so it keeps elsewhere what it trains; write a NumpyTrainer "
                "for it"
            )

    def _follows(self, rows: slice) -> bool:
        """Whether what training comes to moves with the values that it begins with."""
        came_to = []
        for shift in (0.0, 1.0):
            tried = self._copy()
            _write(tried, self._arrays(), shift)
            self._show(tried, rows)
            came_to.append({name: array.copy() for name, array in _learned(tried).items()})
        first, second = came_to
        return all(np.abs(second[name] - first[name]).max() > _FOLLOWS for name in first if first[name].size)

    def _copy(self) -> Estimator:
        copied = copy.deepcopy(self._estimator)
        if hasattr(copied, "random_state"):
            copied.random_state = 0
        return copied

    def _show(self, estimator: Estimator, rows: slice | Array) -> None:
        """Take one step by these examples."""
        try:
            estimator.partial_fit(self._features[rows], self._labels[rows], **self._classes)
        except ValueError as error:
            if "overflow" not in str(error):
                raise
            raise Diverged(f"{type(estimator).__name__}: {error}; nothing was sent") from error

    def _arrays(self) -> dict[str, Array]:
        return _learned(self._estimator)

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        return spec_and_payload(self._arrays())[0]

    def initial(self) -> Iterator[bytes]:
        """The payload of the estimator as it stands: version 0 of a run that begins with it."""
        return spec_and_payload(self._arrays())[1]

    def train(self, base: Weights, control: Control) -> TrainResult:
        wanted = overrides(control.task)
        self._kept.restore(self._estimator, control.seed)
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
            self._show(self._estimator, chosen)
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
        if getattr(self._estimator, "learning_rate", "") == "optimal":
            raise TrainingError(
                f"the run's task sets lr, and {type(self._estimator).__name__} goes by learning_rate='optimal', which "
                "heeds none; give it learning_rate='constant'"
            )
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


def _check_live(arrays: Arrays) -> None:
    """Whether a mapping gives the arrays themselves: write to the beginning of each, read it back and restore it.

    Raises:
        TrainingError: it gives a copy each time.
    """
    for name in arrays:
        array = arrays[name]
        if array.size and array.flags.writeable:
            at = (0,) * array.ndim
            before = array[at].copy()
            array[at] = not before if array.dtype == np.bool_ else 2 if before == 1 else 1
            reached = bool(arrays[name][at] == array[at])
            array[at] = before
            if not reached:
                raise TrainingError(
                    f"array {name!r}: the trainer's mapping gives a copy each time, so what is written to it is lost; "
                    "give the arrays themselves"
                )


def _is_learned(name: str) -> bool:
    return name in _LINEAR or name in _LAYERED


def _learned(estimator: Estimator) -> dict[str, Array]:
    """The learned arrays as they are now: some estimators replace them when they learn."""
    found: dict[str, Array] = {}
    for name in (*_LINEAR, *_LAYERED):
        value = getattr(estimator, name, None)
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, list):
            found |= {f"{name}.{index}": array for index, array in enumerate(value)}
    return found


def _write(estimator: Estimator, arrays: Arrays, shift: float) -> None:
    for name, array in _learned(estimator).items():
        array[...] = arrays[name] + shift


def _predict_alike(first: Estimator, second: Estimator, features: Array) -> bool:
    """Whether two estimators say the same of some rows; so do two that predict nothing."""
    for name in ("decision_function", "predict_proba", "predict"):
        if hasattr(first, name):
            one, other = (np.asarray(getattr(each, name)(features)) for each in (first, second))
            return (
                bool(np.allclose(one, other, equal_nan=True))
                if one.dtype.kind in "iufb"
                else bool((one == other).all())
            )
    return True


def _rows(given: Array) -> Array:
    """Data that rows can be picked from: arrays, tables (by their values), sparse matrices."""
    rows: Array = given.tocsr() if hasattr(given, "tocsr") else np.asarray(given)
    return rows
