"""A Clara MMAR with code of its own becomes a run, travels as its code, and trains through the real worker."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fledge.runs.from_bundle import init_bundle_run
from tests.support import mmars
from tests.support import monai_bundles as bundles
from tests.support.bundle_run import Federation
from tests.support.running_worker import start, stop
from worker.service.service import WorkerService

pytestmark = pytest.mark.filterwarnings("ignore")
OWN = {"custom", "net", "parts", "trainer"}


def left() -> set[str]:
    return {name for name in sys.modules if name.partition(".")[0] in OWN}


def test_an_mmar_trains_at_a_site_that_has_nothing_but_data(tmp_path: Path, workers: list[WorkerService]) -> None:
    path, before = list(sys.path), left()
    told: list[str] = []
    init_bundle_run(mmars.own(tmp_path / "mmar"), tmp_path / "run", name="spleen", tell=told.append)
    assert (sys.path, left()) == (path, before)
    assert "mapped: train model net.OwnNet → custom.net.OwnNet" in told
    federation = Federation("mmar", tmp_path / "run")
    data = bundles.volumes(tmp_path / "data")
    start(federation, tmp_path / "state", None, workers, options=lambda run: {"dataset_dir": str(data)})
    assert federation.deploy(federation.code_of_run).ok
    federation.announce(federation.version(0, evaluate=True, bundle=federation.digest))
    evaluation, update = federation.next_message(), federation.next_message()
    assert 0 <= federation.body(evaluation).metrics["val_mean_dice"] <= 1
    assert (federation.body(update).examples, federation.body(update).steps) == (4, 2)
    delta = federation.delta(update)
    assert np.isfinite(delta).all()
    assert delta.any()
    stop(workers.pop())
    assert (sys.path, left()) == (path, before)
    federation.close()
