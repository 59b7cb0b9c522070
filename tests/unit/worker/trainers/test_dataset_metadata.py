"""Trainers whose examples are divided among sites: what they say of them, what they take, and what they measure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from worker.api.division import Divisible
from worker.api.trainer import Control
from worker.api.weights import Weights
from worker.trainers.batches import Examples
from worker.trainers.dataset_metadata import classes_of, groups_of
from worker.trainers.numpy import EstimatorTrainer
from worker.trainers.torch import TorchTrainer

LABELS = [0, 2, 1, 2, 0, 1]
FEATURES = torch.arange(12.0).reshape(6, 2)


class Kept(Dataset[tuple[Tensor, Tensor]]):
    """Keeps what custom calls `targets`; reading an example would be slow."""

    def __init__(self, **kept: object) -> None:
        vars(self).update(kept)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("no example has to be read")


def trainer(**settings: object) -> TorchTrainer:
    data = TensorDataset(FEATURES, torch.tensor(LABELS))
    return TorchTrainer(nn.Linear(2, 3), data, nn.functional.cross_entropy, **settings)


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        (TensorDataset(FEATURES, torch.tensor(LABELS)), LABELS),
        (TensorDataset(FEATURES, torch.tensor(LABELS).unsqueeze(1)), LABELS),
        (TensorDataset(FEATURES, FEATURES), None),
        (TensorDataset(FEATURES, FEATURES[:, 0]), None),
        (TensorDataset(FEATURES), None),
        (Kept(targets=LABELS), LABELS),
        (Kept(labels=np.array(LABELS)[:, None]), LABELS),
        (Subset(Kept(targets=torch.tensor(LABELS)), [1, 2]), [2, 1]),
        ([{"image": f, "label": np.int64(c)} for f, c in zip(FEATURES, LABELS, strict=True)], LABELS),
        ([(f, torch.tensor(c), "id") for f, c in zip(FEATURES, LABELS, strict=True)], LABELS),
        ([(f, f) for f in FEATURES], None),
        ([{"image": f} for f in FEATURES], None),
    ],
)
def test_classes_are_found_where_datasets_keep_them(dataset: Examples, classes: Sequence[Hashable] | None) -> None:
    assert classes_of(dataset) == classes


def test_groups_are_those_of_the_attribute_and_follow_a_subset() -> None:
    patients = Kept(groups=np.array(["a", "a", "b", "b", "c", "c"]))
    assert groups_of(Subset(patients, [1, 2, 5])) == ["a", "b", "c"]
    assert groups_of(Kept(groups=["a"])) is None
    assert groups_of(TensorDataset(FEATURES)) is None


def test_a_torch_trainer_takes_a_share_and_joins_others() -> None:
    north, south = trainer(), trainer()
    assert isinstance(north, Divisible)
    assert (north.holdings().examples, north.holdings().evaluates) == (6, False)
    north.take([0, 1], [2])
    south.take([3, 4, 5], [])
    assert (north.holdings().examples, north.holdings().evaluates) == (2, True)
    assert north.holdings().classes() == [0, 2]
    north.join([south])
    assert north.holdings().examples == 5
    assert south.holdings().examples == 3


def test_an_estimator_takes_a_share_and_joins_others() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")

    def made() -> EstimatorTrainer:
        return EstimatorTrainer(linear_model.SGDClassifier(), FEATURES.numpy(), np.array(LABELS), classes=[0, 1, 2])

    north, south = made(), made()
    assert north.holdings().classes() == LABELS
    north.take([0, 1], [2])
    south.take([3, 4, 5], [])
    assert (north.holdings().examples, north.holdings().evaluates) == (2, True)
    assert not south.holdings().evaluates
    north.join([south])
    assert north.holdings().classes() == [0, 2, 2, 0, 1]


@pytest.mark.parametrize(
    ("settings", "targets", "measured"),
    [
        ({}, torch.tensor(LABELS), {"loss", "accuracy"}),
        ({"metrics": {}}, torch.tensor(LABELS), {"loss"}),
        ({"metrics": {"mine": lambda outputs, targets: 0.5}}, torch.tensor(LABELS), {"loss", "mine"}),
        ({}, torch.eye(6, 3), {"loss"}),
    ],
)
def test_without_metrics_the_accuracy_is_measured_where_there_are_classes(
    settings: dict[str, object], targets: Tensor, measured: set[str]
) -> None:
    made = trainer(evaluate_on=TensorDataset(FEATURES, targets), **settings)
    records = list(made.initial())
    done = made.evaluate(Weights(made.spec, lambda: iter(records)), Control(run="r", version=0))
    assert set(done.metrics) == measured
