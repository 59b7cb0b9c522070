"""A MONAI bundle becomes a run, travels as its code, and trains at a site through the real worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from broker.runtime.health import HEALTH, stuck
from fledge.cli.app import app
from fledge.runs.code_archive import archive, load_code
from fledge.runs.from_bundle import bundle_files, init_bundle_run
from fledge.runs.init_run import CODE, INITIAL, load_genesis
from protocol.errors import ConfigError
from tests.support import monai_bundles as bundles
from tests.support.bundle_run import Federation
from tests.support.fake_aggregator import RUN
from tests.support.monai_marks import MONAI
from tests.support.running_worker import Seen, start, stop
from tests.support.waiting import eventually
from worker.journal.approvals import Approvals
from worker.service.service import WorkerService
from worker.storage.incidents import Incidents
from worker.trainers.monai_bundle import bundle_network

pytestmark = MONAI


@pytest.fixture
def federation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Federation]:
    init_bundle_run(bundles.scripted(tmp_path / "bundle"), tmp_path / "run", name="spleen")
    made = Federation(request.node.name[:60], tmp_path / "run")
    sys.path.remove(str(tmp_path / "bundle"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    yield made
    made.close()


def test_a_bundle_trains_at_a_site_that_has_nothing_but_data(
    federation: Federation, workers: list[WorkerService], tmp_path: Path
) -> None:
    data = bundles.volumes(tmp_path / "data")
    options: dict[str, Any] = {"dataset_dir": str(data), "overrides": {"optimizer#lr": 0.02}, "local_epochs": 2}
    start(federation, tmp_path / "state", None, workers, options=lambda run: options)
    assert federation.deploy(federation.code_of_run).ok
    federation.announce(federation.version(0, evaluate=True, bundle=federation.digest))
    evaluation, update = federation.next_message(), federation.next_message()
    assert 0 <= federation.body(evaluation).metrics["val_mean_dice"] <= 1
    said = federation.body(update)
    assert (said.bundle, said.trainer, said.examples, said.steps) == (federation.digest, "BundleTrainer", 4, 8)
    delta = federation.delta(update)
    assert np.isfinite(delta).all()
    assert delta.any()
    # The next training imports another module of the bundle only when the first image comes.
    federation.announce(federation.version(1, bundle=federation.digest))
    assert federation.next_message().core.version == 1
    stop(workers.pop())
    assert "scripts" not in sys.modules


def test_a_training_that_is_stopped_leaves_nothing_for_the_next_one(
    federation: Federation, workers: list[WorkerService], tmp_path: Path
) -> None:
    """A person says no in mid-training, and yes again: what is sent is what a worker sends that was never stopped."""
    options: dict[str, Any] = {"dataset_dir": str(bundles.volumes(tmp_path / "data")), "momentum": "keep"}
    long, short = (
        federation.version(v, bundle=federation.digest, task={"local_epochs": e}) for v, e in ((0, 1000), (1, 1))
    )
    start(federation, tmp_path / "undisturbed", None, workers, options=lambda run: options)
    assert federation.deploy(federation.code_of_run).ok
    federation.announce(short)
    expected = federation.next_message()
    stop(workers.pop())

    seen, answers = Seen(), Approvals(tmp_path / "stopped" / "approvals")
    extra: dict[str, Any] = {"on_event": seen, "heartbeat": 0.1}
    start(federation, tmp_path / "stopped", None, workers, options=lambda run: options, **extra)
    assert federation.deploy(federation.code_of_run).ok
    federation.announce(long)
    with seen._new:
        assert seen._new.wait_for(lambda: any(0 < event.progress < 1 for event in seen.events), 30)
    federation.announce(short)
    answers.say(RUN, False)
    seen.wait("idle")
    answers.say(RUN, True)
    found = federation.next_message()
    assert found.core.version == 1
    assert federation.body(found).steps == federation.body(expected).steps == 4
    assert np.array_equal(federation.delta(found), federation.delta(expected))


def test_what_is_wrong_with_a_sites_data_stays_at_the_site(
    federation: Federation, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    where = str(tmp_path / "patient-4711")
    start(federation, tmp_path / "state", None, workers, options=lambda run: {"dataset_dir": where}, on_event=seen)
    assert federation.deploy(federation.code_of_run).ok
    federation.announce(federation.version(0, bundle=federation.digest))
    seen.wait("blocked", 0)
    event = seen.events[-1]
    assert event.code == "config"
    assert "patient-4711" not in repr(event)
    assert "patient-4711 is not a folder here" in Incidents(tmp_path / "state" / "cases").text(event.case)
    fails = f"the last training of run {event.run} failed (config): `fledge site case {event.case}` shows why"
    eventually(lambda: stuck(tmp_path / "state" / HEALTH) == fails, "the health says so")


def test_the_command_makes_a_run_of_a_bundle(tmp_path: Path) -> None:
    bundle = bundles.spleen(tmp_path / "bundle")
    (bundle / "models").mkdir()
    (bundle / "docs").mkdir()
    network = bundle_network(bundle, seed=5)
    torch.save({**network.state_dict(), "padding": torch.zeros(2**19)}, bundle / "models" / "model.pt")
    torch.save(network.state_dict(), tmp_path / "trained.pt")
    (bundle / "models" / "architecture.json").write_text("{}")
    (bundle / "docs" / "README.md").write_text("What it is.")
    (bundle / "docs" / "a picture.png").write_bytes(b"png")
    command = ["init-run", "--bundle", str(bundle), "--weights", str(tmp_path / "trained.pt")]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    files = {path.relative_to(tmp_path / "run" / CODE).as_posix() for path in (tmp_path / "run" / CODE).rglob("*.*")}
    assert files == {
        *("trainer.py", "configs/train.json", "configs/evaluate.json", "configs/metadata.json"),
        *("models/architecture.json", "docs/README.md"),
    }
    assert (tmp_path / "run" / CODE / "configs" / "train.json").read_bytes() == (
        bundle / "configs" / "train.json"
    ).read_bytes()
    assert load_code(tmp_path / "run") == archive(bundle_files(bundle))
    genesis = load_genesis(tmp_path / "run")
    assert (tmp_path / "run" / INITIAL).read_bytes() == b"".join(genesis.payload())
    expected = network.state_dict()["model.0.conv.unit0.conv.weight"].numpy().tobytes()
    assert expected in (tmp_path / "run" / INITIAL).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--bundle", "nowhere"], "nowhere"),
        (["--bundle", "bundle", "--code", "bundle"], "leave out"),
        (["trainer:trainer", "--weights", "x"], "--weights and --config-file go with --bundle"),
        ([], "bundle"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init-run", *arguments, "-o", "run"])
    assert isinstance(done.exception, ConfigError)
    assert text in str(done.exception)


def test_a_bundle_with_a_trainer_of_its_own_is_refused(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "bundle", bundles.base(bundles.unet()), None, {"trainer.py": ""})
    with pytest.raises(ConfigError, match=r"trainer\.py is in the way"):
        bundle_files(bundle)
