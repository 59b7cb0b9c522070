"""Algorithms of `monai.fl` as trainers: MONAI's own, and one that gives differences."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.fl.client import ClientAlgo, MonaiAlgo
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from protocol.errors import Aborted, ConfigError, TrainingError
from tests.support import monai_bundles as bundles
from tests.support.monai_marks import MONAI
from tests.support.training import control, form, model
from worker.api.weights import Weights
from worker.trainers.initial import spec_and_payload
from worker.trainers.monai_algo import ClientAlgoTrainer
from worker.trainers.monai_bundle import bundle_network

pytestmark = [*MONAI, pytest.mark.filterwarnings("ignore::UserWarning")]
ARRAYS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3, np.int64)}


class Adds(ClientAlgo):
    """Adds a half to the weight; `kind` says what it gives back."""

    def __init__(self, kind: Any = WeightType.WEIGHTS) -> None:
        self.kind = kind
        self.given: dict[str, Any] = {}
        self.calls: list[str] = []
        self.wait: threading.Event | None = None

    def initialize(self, extra: dict[str, Any] | None = None) -> None:
        """Count it."""
        self.calls.append("initialize")

    def abort(self, extra: dict[str, Any] | None = None) -> None:
        """Stop waiting."""
        self.calls.append("abort")
        if self.wait is not None:
            self.wait.set()

    def train(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> None:
        """Keep what came."""
        self.given = dict(data.weights)
        if self.wait is not None:
            self.wait.wait(30)

    def get_weights(self, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """Full weights or differences."""
        full = {"weight": self.given["weight"] + 0.5, "count": self.given["count"] + 1}
        half = {"weight": np.full((2, 3), 0.5, np.float32)}
        return ExchangeObject(
            weights=half if self.kind == WeightType.WEIGHT_DIFF else full,
            weight_type=self.kind,
            statistics={"num_executed_iterations": 9},
        )

    def evaluate(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """One number and one that is none."""
        return ExchangeObject(
            metrics={"sum": float(data.weights["weight"].sum()), "all": torch.zeros(3), "huge": 10**400}
        )


@pytest.mark.parametrize("kind", [WeightType.WEIGHTS, WeightType.WEIGHT_DIFF])
def test_full_weights_and_differences_come_to_the_same(kind: Any) -> None:
    trainer = ClientAlgoTrainer(Adds(kind), examples=4, evaluated=2)
    spec, records = model(ARRAYS)
    formed = form(trainer, spec, records)
    assert np.array_equal(formed.delta["weight"], np.full((2, 3), 0.5))
    assert (formed.update.examples, formed.update.steps) == (4, 9)
    found = trainer.evaluate(Weights(spec, records), control())
    assert (found.examples, found.metrics) == (2, {"sum": 15.0})


def test_it_is_told_to_stop_and_begins_anew_afterwards() -> None:
    algo = Adds()
    trainer = ClientAlgoTrainer(algo, examples=4)
    weights = Weights(*model(ARRAYS))
    assert trainer.evaluate(weights, control()).examples == 0
    abort = threading.Event()
    algo.wait = threading.Event()
    threading.Timer(0.1, abort.set).start()
    with pytest.raises(Aborted):
        trainer.train(weights, control(abort=abort))
    algo.wait = None
    trainer.train(weights, control())
    assert algo.calls == ["initialize", "abort", "initialize"]


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is no monai\.fl\.client\.ClientAlgo"):
        ClientAlgoTrainer("algo", examples=1)
    with pytest.raises(ConfigError, match="examples is 0"):
        ClientAlgoTrainer(Adds(), examples=0)
    with pytest.raises(TrainingError, match="full ones or a diff"):
        ClientAlgoTrainer(Adds(None), examples=1).train(Weights(*model(ARRAYS)), control())


def test_monais_own_algorithm_trains(tmp_path: Path) -> None:
    config = bundles.base(bundles.unet(), train__handlers=[], validate__handlers=[])
    for part in ("train", "validate"):
        config[part][{"train": "trainer", "validate": "evaluator"}[part]]["amp"] = False
    bundle = bundles.write(tmp_path / "bundle", config, {"run": []})
    data = {"dataset_dir": str(bundles.volumes(tmp_path / "data"))}
    spec, payload = spec_and_payload(bundle_network(bundle))
    recorded = list(payload)
    algo = MonaiAlgo(bundle_root=str(bundle), local_epochs=1, train_kwargs=data, eval_kwargs=data)
    trainer = ClientAlgoTrainer(algo, examples=4, evaluated=1, extra={"fl_client_name": "north"})
    weights = Weights(spec, lambda: iter(recorded))
    assert 0 <= trainer.evaluate(weights, control()).metrics["val_mean_dice"] <= 1
    formed = form(trainer, spec, lambda: iter(recorded))
    assert formed.update.steps == 4
    assert all(np.isfinite(array).all() for array in formed.delta.values())
    assert any(array.any() for array in formed.delta.values())
