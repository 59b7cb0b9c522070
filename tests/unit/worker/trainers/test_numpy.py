"""Trainers without torch: plain arrays and scikit-learn's estimators."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor

from protocol.errors import Aborted, ConfigError, Diverged, TrainingError
from protocol.spec import TensorKind
from tests.support.training import control, form
from worker.api.trainer import Control, EvaluationResult
from worker.api.weights import Weights
from worker.trainers.initial import spec_and_payload
from worker.trainers.numpy import EstimatorTrainer, NumpyTrainer, _check_live

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


class Copies(dict[str, np.ndarray]):
    """A mapping that gives copies, as of another library's parameters."""

    def __getitem__(self, name: str) -> np.ndarray:
        return super().__getitem__(name).copy()


def test_a_mapping_of_copies_is_refused_and_arrays_are_left_as_they_are() -> None:
    trainer = NumpyTrainer(Copies(w=np.zeros(3, np.float32)), lambda control: 1, examples=1)
    with pytest.raises(TrainingError, match="array 'w': the trainer's mapping gives a copy each time"):
        trainer.train(base_of(trainer), control())
    arrays = {
        "nan": np.full((2, 2), np.nan),
        "turned": np.asfortranarray(np.ones((2, 3))),
        "flags": np.array([True, False]),
        "number": np.array(1.0),
        "none": np.empty(0),
    }
    before = {name: array.tobytes() for name, array in arrays.items()}
    _check_live(arrays)
    assert {name: array.tobytes() for name, array in arrays.items()} == before


@pytest.mark.parametrize("steps", [None, True, 2.5])
def test_a_fit_has_to_say_how_many_steps_it_took(steps: Any) -> None:
    trainer = NumpyTrainer({"w": np.zeros(3, np.float32)}, lambda control: steps, examples=1)
    with pytest.raises(TrainingError, match=f"fit returned {steps}; it has to return how many optimizer steps"):
        trainer.train(base_of(trainer), control())


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


@pytest.mark.parametrize(
    ("classes", "told"), [([0, 1], "labels holds 2,"), (["0", "1", "2"], "labels holds 0, 1, 2,"), ([0, 1, 2], None)]
)
def test_a_label_that_is_none_of_the_classes_is_named_before_anything_is_trained(
    classes: Any, told: str | None
) -> None:
    labels = np.sort(LABELS)  # the unknown one comes last
    with pytest.raises(ConfigError, match=told or "evaluate_on holds 7, and `classes` names no such class"):
        EstimatorTrainer(MLPClassifier((2,)), FEATURES, labels, classes=classes, evaluate_on=(FEATURES[:1], [7]))


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


class Plain:
    """Least squares by single steps, in the manner of scikit-learn."""

    def __init__(self, hidden: str = "") -> None:
        self.hidden = hidden
        self.velocity: np.ndarray | float = 0.0
        self.scale_ = 1.0

    def partial_fit(self, features: np.ndarray, labels: np.ndarray) -> Plain:
        """Take a step."""
        if not hasattr(self, "coef_"):
            self.coef_ = np.zeros(features.shape[1])
            self._trained = self.coef_.copy()
        trained = self._trained if self.hidden == "weights" else self.coef_
        self.velocity = 0.9 * self.velocity + (labels - features @ trained) @ features / len(labels)
        trained += 0.05 * self.velocity
        self.coef_[...] = trained
        if self.hidden == "scale":
            self.scale_ *= 1.5
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """What is predicted."""
        predicted: np.ndarray = self.scale_ * (features @ self.coef_)
        return predicted

    def score(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Nothing of interest."""
        return 0.0


LINE = FEATURES @ np.array([1.0, -2.0, 0.5])
TRAINABLE = {
    "SGDClassifier": SGDClassifier(),
    "SGDClassifier, no intercept": SGDClassifier(loss="log_loss", fit_intercept=False, penalty="l1"),
    "SGDClassifier, passive-aggressive": SGDClassifier(loss="hinge", penalty=None, learning_rate="pa1", eta0=1.0),
    "SGDClassifier, dice of its own": SGDClassifier(random_state=np.random.RandomState(3)),
    "SGDRegressor": SGDRegressor(),
    "SGDOneClassSVM": SGDOneClassSVM(),
    "Perceptron": Perceptron(),
    "MLPClassifier": MLPClassifier((6,)),
    "MLPClassifier, sgd": MLPClassifier((6,), solver="sgd", learning_rate="invscaling"),
    "MLPRegressor": MLPRegressor(hidden_layer_sizes=(6,)),
    "momentum": Plain(),
}


def fresh(kind: str) -> EstimatorTrainer:
    model = TRAINABLE[kind]
    model = Plain() if isinstance(model, Plain) else clone(model)
    sorts = kind.partition(",")[0] in ("SGDClassifier", "Perceptron", "MLPClassifier")
    labels = LABELS if sorts else LINE
    held_out = None if kind == "SGDOneClassSVM" else (FEATURES, labels)
    return EstimatorTrainer(model, FEATURES, labels, classes=[0, 1, 2] if sorts else None, evaluate_on=held_out)


def weights(arrays: dict[str, np.ndarray]) -> Weights:
    spec, payload = spec_and_payload(arrays)
    recorded = list(payload)
    return Weights(spec, lambda: iter(recorded))


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, of losses that have not converged
@pytest.mark.parametrize("kind", TRAINABLE)
def test_a_training_follows_from_its_base_and_its_seed_alone(kind: str) -> None:
    which = fresh(kind)
    start = {name: array.copy() + 0.1 for name, array in which._arrays().items()}

    def trained(by: EstimatorTrainer, base: dict[str, np.ndarray], seed: int, **task: Any) -> dict[str, np.ndarray]:
        result = by.train(weights(base), control(seed=seed, task=task))
        return {name: array.copy() for name, array in result.weights.items()}

    first = trained(which, start, 1)
    for seed in (5, 6):
        trained(which, {name: array * 3 for name, array in start.items()}, seed)
    np.random.random(7)  # others draw from numpy's dice meanwhile
    again, elsewhere = trained(which, start, 1), trained(fresh(kind), start, 1)
    for name in first:
        np.testing.assert_array_equal(again[name], first[name])
        np.testing.assert_array_equal(elsewhere[name], first[name])
    shifted = trained(which, {name: array + 1000 for name, array in start.items()}, 1)
    assert all(np.abs(shifted[name] - first[name]).max() > 1 for name in first)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRAINABLE)
def test_a_version_predicts_the_same_at_every_site(kind: str) -> None:
    here, there = fresh(kind), fresh(kind)
    result = here.train(base_of(here), control(task={"local_steps": 3}))
    base = {name: array.copy() for name, array in result.weights.items()}
    there.train(base_of(there), control(seed=99))
    if kind == "SGDOneClassSVM":  # it has no score
        weights(base).copy_into(there._arrays())
    else:
        there.evaluate(weights(base), control())
    said = [which._estimator.predict(FEATURES) for which in (here, there)]
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-6)  # versions are float32


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (SGDClassifier(average=True), r"SGDClassifier\(average=…\) trains other weights .* set average=False"),
        (SGDRegressor(average=20), r"SGDRegressor\(average=…\) trains other weights"),
        (Plain("scale"), "Plain predicts by more than coef_"),
        (Plain("weights"), "Plain does not train on from coef_"),
        (GaussianNB(), "GaussianNB learns neither coef_ nor coefs_"),
        (MiniBatchKMeans(), "MiniBatchKMeans makes no model of a single example"),
    ],
)
def test_an_estimator_whose_arrays_are_not_all_it_learns_is_refused(model: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EstimatorTrainer(model, FEATURES, LABELS, classes=[0, 1, 2])


def test_looking_at_an_estimator_leaves_it_and_the_process_alone() -> None:
    model = SGDClassifier(loss="log_loss")
    which = EstimatorTrainer(model, FEATURES, LABELS, classes=[0, 1, 2])
    assert not any(array.any() for array in which._arrays().values())
    assert model.t_ == 1.0
    np.random.seed(4)
    which.train(base_of(which), control())
    assert np.random.random() == np.random.RandomState(4).random()


def test_a_rate_holds_for_the_training_whose_task_sets_it() -> None:
    which = EstimatorTrainer(MLPClassifier((6,)), FEATURES, LABELS, classes=[0, 1, 2])
    base = base_of(which)
    usual, slow, again = (
        {name: array.copy() for name, array in which.train(base, control(task=task)).weights.items()}
        for task in ({}, {"lr": 1e-9}, {})
    )
    np.testing.assert_array_equal(usual["coefs_.0"], again["coefs_.0"])
    assert np.abs(slow["coefs_.0"] - dict(base.tensors())["coefs_.0"]).max() < 1e-6
    optimal = EstimatorTrainer(SGDClassifier(), FEATURES, LABELS, classes=[0, 1, 2])
    with pytest.raises(TrainingError, match="learning_rate='optimal', which heeds none"):
        optimal.train(base_of(optimal), control(task={"lr": 0.1}))


def test_an_estimator_that_overflows_diverged() -> None:
    which = EstimatorTrainer(SGDRegressor(learning_rate="constant"), FEATURES, LINE)
    with pytest.raises(Diverged, match=r"SGDRegressor: .*overflow"):
        which.train(base_of(which), control(task={"lr": 1e300}))


def test_data_may_be_tables_and_sparse_matrices() -> None:
    class Table:  # as pandas' are: columns by name, rows not by number
        def __init__(self, values: np.ndarray) -> None:
            self._values = values

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self._values

    want = sgd().train(base_of(sgd()), control()).weights["coef_"]
    for features, labels in ((Table(FEATURES), Table(LABELS)), (csr_matrix(FEATURES), LABELS.tolist())):
        model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=1)
        made: Any = features
        which = EstimatorTrainer(model, made, labels, classes=[0, 1, 2], evaluate_on=(made, labels))
        result = which.train(base_of(which), control())
        np.testing.assert_allclose(result.weights["coef_"], want, rtol=0.2, atol=0.05)
        assert which.evaluate(base_of(which), control()).examples == 90


def test_what_cannot_score_is_not_evaluated() -> None:
    with pytest.raises(ConfigError, match="SGDOneClassSVM has no score"):
        EstimatorTrainer(SGDOneClassSVM(), FEATURES, LABELS, evaluate_on=(FEATURES, LABELS))
