"""Trainers without torch: plain arrays and scikit-learn's estimators."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier

from protocol.errors import Aborted, ConfigError, TrainingError
from protocol.spec import TensorKind
from tests.support.training import control, form
from worker.api.trainer import Control, EvaluationResult
from worker.api.weights import Weights
from worker.trainers.initial import spec_and_payload
from worker.trainers.numpy import EstimatorTrainer, NumpyTrainer

DICE = np.random.default_rng(8)
FEATURES = DICE.normal(size=(90, 3))
LABELS = np.where(FEATURES[:, 0] > 0.4, 2, np.where(FEATURES[:, 0] > -0.4, 1, 0))


def sgd(**changes: Any) -> EstimatorTrainer:
    settings: dict[str, Any] = {"classes": [0, 1, 2], "evaluate_on": (FEATURES, LABELS), **changes}
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=1)
    return EstimatorTrainer(model, FEATURES, LABELS, **settings)


def mlp() -> EstimatorTrainer:
    model = MLPClassifier((8,), learning_rate_init=0.05, random_state=1)
    return EstimatorTrainer(model, FEATURES, LABELS, classes=[0, 1, 2], epochs=10, evaluate_on=(FEATURES, LABELS))


def base_of(which: Any) -> Weights:
    spec, payload = spec_and_payload(which)
    recorded = list(payload)
    return Weights(spec, lambda: iter(recorded))


def test_plain_arrays_are_trained_in_place() -> None:
    arrays = {"w": np.zeros(3, np.float32), "mean": np.zeros(1, np.float32)}

    def fit(control: Control) -> int:
        control.check()
        arrays["w"] += 1
        return 5

    def evaluate(control: Control) -> EvaluationResult:
        return EvaluationResult(examples=4, metrics={"sum": float(arrays["w"].sum())})

    which = NumpyTrainer(arrays, fit, examples=9, evaluate=evaluate, buffers=["mean"])
    assert [tensor.kind for tensor in which.spec.tensors] == [TensorKind.PARAMETER, TensorKind.BUFFER]
    base = base_of(which)
    for _ in range(2):
        result = which.train(base, control())
        assert (result.examples, result.steps) == (9, 5)
        assert result.weights["w"].tolist() == [1, 1, 1]
    assert which.evaluate(base, control()).metrics == {"sum": 0.0}
    assert NumpyTrainer(arrays, fit, examples=9).evaluate(base, control()).examples == 0


@pytest.mark.parametrize("make", [sgd, mlp])
def test_estimators_learn_through_updates(make: Any) -> None:
    which = make()
    spec, payload = spec_and_payload(which)
    model = list(payload)
    before = which.evaluate(Weights(spec, lambda: iter(model)), control())
    formed = form(which, spec, lambda: iter(model))
    trained = list(which.initial())
    after = which.evaluate(Weights(spec, lambda: iter(trained)), control())
    assert after.metrics["accuracy"] > max(0.6, before.metrics["accuracy"])
    assert formed.update.examples == before.examples == 90
    assert all(values.any() for values in formed.delta.values())


def test_a_linear_model_begins_with_zeros() -> None:
    found = dict(base_of(sgd()).tensors())
    assert {name: array.shape for name, array in found.items()} == {"coef_": (3, 3), "intercept_": (3,)}
    assert not any(array.any() for array in found.values())


def test_the_layers_of_a_network_are_tensors_of_their_own() -> None:
    names = [tensor.name for tensor in mlp().spec.tensors]
    assert names == ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"]


def test_a_training_starts_from_the_base_and_the_seed_decides_the_order() -> None:
    which = sgd()
    base = base_of(which)
    first, again, other = (which.train(base, control(seed=seed)).weights["coef_"].copy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_site_without_some_of_the_classes_trains_the_same_model() -> None:
    some = LABELS < 2
    model = SGDClassifier(loss="log_loss")
    which = EstimatorTrainer(model, FEATURES[some], LABELS[some], classes=[0, 1, 2])
    assert which.spec == sgd().spec
    assert which.train(base_of(which), control()).examples == int(some.sum())


def test_a_binary_classifier_and_a_regressor_are_trained_too() -> None:
    binary = EstimatorTrainer(SGDClassifier(loss="log_loss"), FEATURES, LABELS > 0, classes=[False, True])
    assert binary.train(base_of(binary), control()).weights["coef_"].any()
    line = EstimatorTrainer(SGDRegressor(), FEATURES, FEATURES[:, 0], epochs=20, evaluate_on=(FEATURES, FEATURES[:, 0]))
    line.train(base_of(line), control())
    assert line.evaluate(base_of(line), control()).metrics["r2"] > 0.9


def test_a_task_sets_rate_steps_and_batch_size() -> None:
    which = sgd()
    result = which.train(base_of(which), control(task={"local_steps": 4, "batch_size": 7, "lr": 1e-9}))
    assert result.steps == 4
    assert np.abs(result.weights["coef_"]).max() < 1e-6
    passive = EstimatorTrainer(_Counting(), FEATURES, LABELS)
    with pytest.raises(TrainingError, match="_Counting does not know"):
        passive.train(base_of(passive), control(task={"lr": 0.1}))


class _Counting:
    """An estimator that counts what it is shown."""

    def __init__(self) -> None:
        self.coef_: np.ndarray | None = None

    def partial_fit(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Add the number of rows."""
        self.coef_ = np.zeros(1) if self.coef_ is None else self.coef_ + len(labels)


def test_every_example_is_shown_once_in_an_epoch_also_where_arrays_are_replaced() -> None:
    which = EstimatorTrainer(_Counting(), FEATURES, LABELS, epochs=3, batch_size=32)
    result = which.train(base_of(which), control())
    assert result.weights["coef_"].tolist() == [270.0]
    assert result.steps == 9


def test_training_stops_when_it_is_told_to() -> None:
    abort = threading.Event()
    which = sgd(epochs=100)
    with pytest.raises(Aborted):
        which.train(base_of(which), control(abort=abort, on_progress=lambda *_: abort.set()))


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="LogisticRegression has no partial_fit"):
        EstimatorTrainer(LogisticRegression(), FEATURES, LABELS, classes=[0, 1, 2])
    with pytest.raises(ConfigError, match="needs `classes`"):
        sgd(classes=None)
    with pytest.raises(ConfigError, match="90 rows of features and 89 labels"):
        EstimatorTrainer(SGDRegressor(), FEATURES, LABELS[1:])


def test_a_fingerprint_covers_features_and_labels() -> None:
    def of(labels: np.ndarray) -> Any:
        which = EstimatorTrainer(SGDRegressor(), FEATURES, labels, fingerprint=True)
        return which.train(base_of(which), control(fingerprint_key=bytes(32))).fingerprint

    assert of(LABELS) == of(LABELS.copy())
    assert of(LABELS) != of(np.roll(LABELS, 1))


def test_the_loss_of_an_estimator_that_tells_it_goes_into_the_update() -> None:

    features, labels = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2
    for estimator, told in ((MLPClassifier((4,)), {"loss"}), (SGDClassifier(), set[str]())):
        trainer = EstimatorTrainer(estimator, features, labels, classes=[0, 1])
        base = Weights(trainer.spec, trainer.initial)
        assert trainer.train(base, Control(run="r", version=0)).metrics.keys() == told
