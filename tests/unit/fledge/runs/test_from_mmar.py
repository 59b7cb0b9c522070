"""MMARs on the command line: converted to a bundle, and made into a run with the settings they bring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from aggregator.config import RunConfig
from fledge.cli.app import app
from fledge.runs.from_bundle import init_bundle_run
from fledge.runs.from_mmar import run_config
from fledge.runs.init_run import load_genesis, load_run
from protocol.errors import ConfigError
from tests.support import mmars
from worker.trainers.initial import spec_and_payload
from worker.trainers.monai_bundle import bundle_network

pytestmark = pytest.mark.filterwarnings("ignore")


def said(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def mmar(tmp_path: Path) -> Path:
    config = {**mmars.spleen_config(), "dont_load_ckpt_model": False}
    return mmars.write(tmp_path / "mmar", config, fed_server=mmars.SERVER, fed_client=mmars.CLIENT)


def test_convert_writes_a_bundle_and_says_what_became_of_it(mmar: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    told = said("bundle", "convert", mmar, bundle, "--set", "epochs=7", "--set", "DATASET_JSON=here.json").output
    assert "config_fed_*.json stays behind" in told
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert train["train"]["trainer"]["max_epochs"] == 7
    assert train["dataset_json"] == "here.json"
    lines = told.splitlines()
    assert "mapped: train pre_transforms AddChanneld → EnsureChannelFirstd" in lines
    assert "left out: train pre_transforms RandRotate90d: is disabled" in lines
    assert any(line.startswith("to be set: dataset_dir: ") for line in lines)
    kinds = [line.partition(":")[0] for line in lines[:-2]]
    assert kinds == sorted(kinds, key=["mapped", "left out", "to be set"].index)


def test_a_wrong_set_is_named(mmar: Path, tmp_path: Path) -> None:
    result = said("bundle", "convert", mmar, tmp_path / "bundle", "--set", "epochs", code=1)
    assert isinstance(result.exception, ConfigError)
    assert "write NAME=VALUE" in str(result.exception)
    assert not (tmp_path / "bundle").exists()


def test_init_run_takes_an_mmar_with_its_settings_and_weights(mmar: Path, tmp_path: Path) -> None:
    said("bundle", "convert", mmar, tmp_path / "bundle")
    network = bundle_network(tmp_path / "bundle", seed=9)
    (mmar / "models").mkdir()
    torch.save({"model": network.state_dict(), "train_conf": {}}, mmar / "models" / "model.pt")
    told = said("init-run", "--bundle", mmar, "-o", tmp_path / "run", "--name", "spleen").output
    run = load_run(tmp_path / "run")
    assert (run.name, run.min_sites, run.stop.max_versions, run.task) == ("spleen", 3, 60, {"local_steps": 7})
    assert run.strategy.name == "fedavg"
    genesis = load_genesis(tmp_path / "run")
    _, payload = spec_and_payload(network)
    assert b"".join(genesis.payload()) == b"".join(payload)
    assert (tmp_path / "run" / "code" / "configs" / "train.json").is_file()
    assert f"version 0 has the weights in {mmar / 'models' / 'model.pt'}" in told
    assert '[runs."spleen".options]' in told
    assert 'exclude = ["model.0.conv.unit0.adn.N.weight"]' in told
    assert "to be set: client PercentilePrivacy: has no equal here; " in told


def test_settings_that_are_given_come_first_and_without_any_there_are_defaults(mmar: Path, tmp_path: Path) -> None:
    given = RunConfig(name="x", min_sites=2)
    init_bundle_run(mmar, tmp_path / "given", name="given", settings=given)
    assert load_run(tmp_path / "given") == RunConfig(name="given", min_sites=2)
    for side in ("server", "client"):
        (mmar / "config" / f"config_fed_{side}.json").unlink()
    init_bundle_run(mmar, tmp_path / "none", name="none")
    assert load_run(tmp_path / "none") == RunConfig(name="none")


def test_settings_that_no_run_can_have_are_named() -> None:
    with pytest.raises(ConfigError, match=r"the MMAR's federated configuration: min_sites: .*correct it there"):
        run_config({"min_sites": 0}, "spleen")
