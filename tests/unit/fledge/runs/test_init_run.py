from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aggregator.config import RunConfig, StopConfig, StrategyConfig
from fledge.demo import task
from fledge.runs.init_run import INITIAL, RUN_TOML, SPEC, init_run, load_genesis, load_run, render
from protocol.errors import ConfigError

TRAINER = "fledge.demo.task:trainer"
OPTIONS = {"seed": 3, "hospitals": 2}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    init_run(TRAINER, tmp_path / "run", name="digits", options=OPTIONS)
    return tmp_path / "run"


def test_version_0_is_what_the_trainer_begins_with_and_safetensors_opens_it(run: Path) -> None:
    written = load_file(run / INITIAL)
    for name, array in task.initial(3).items():
        np.testing.assert_array_equal(written[name], array)


def test_a_runs_settings_are_the_defaults_and_every_one_is_visible(run: Path) -> None:
    assert load_run(run) == RunConfig(name="digits")
    text = (run / RUN_TOML).read_text()
    for model in (RunConfig, StopConfig):
        for key in model.model_fields:
            assert f"{key} = " in text or f"[{key}]" in text
    assert "# rate = 1.25" in text


def test_the_examples_in_comments_are_valid_settings(run: Path) -> None:
    lines = [line.removeprefix("# ") if " = " in line else "" for line in (run / RUN_TOML).read_text().splitlines()]
    headed = [line or original for line, original in zip(lines, (run / RUN_TOML).read_text().splitlines(), strict=True)]
    config = RunConfig.model_validate(tomllib.loads("\n".join(headed)))
    assert config.stop.target_metric == 0.95
    assert config.strategy.parameters["rate"] == 1.25


@pytest.mark.parametrize(
    "settings",
    [
        RunConfig(name="x", strategy=StrategyConfig(name="fedavg"), min_sites=8, release_decay=0.0, max_wait=7.5),
        RunConfig.model_validate(
            {
                "name": "x",
                "strategy": {"name": "fedbuff", "buffer": 3, "staleness": {"name": "polynomial", "exponent": 1.0}},
                "task": {"lr": 0.1, "note": 'a "quoted" word', "layers": (1, 2)},
                "stop": {"metric": "accuracy", "max_versions": 12},
                "evaluate": True,
            }
        ),
    ],
)
def test_settings_come_back_as_they_were_written(settings: RunConfig) -> None:
    assert RunConfig.model_validate(tomllib.loads(render(settings))) == settings


def test_genesis_reads_what_was_written_and_can_be_read_again(run: Path) -> None:
    genesis = load_genesis(run)
    assert b"".join(genesis.payload()) == b"".join(genesis.payload()) == (run / INITIAL).read_bytes()
    assert genesis.spec.names == set(task.initial(3))


def test_a_model_that_does_not_fit_its_specification_is_refused(run: Path) -> None:
    with (run / INITIAL).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ConfigError, match="not the model"):
        load_genesis(run)


def test_a_damaged_specification_is_refused(run: Path) -> None:
    (run / SPEC).write_bytes(b"\x93")
    with pytest.raises(ConfigError, match="damaged"):
        load_genesis(run)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init-run"):
        load_genesis(tmp_path)


def test_a_run_is_never_overwritten(run: Path) -> None:
    before = (run / INITIAL).read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        init_run(TRAINER, run, name="again", options={"seed": 4, "hospitals": 2})
    assert (run / INITIAL).read_bytes() == before


@pytest.mark.parametrize(
    ("factory", "options", "says"),
    [
        ("no_such_module:trainer", {}, "no_such_module"),
        ("fledge.demo.task:nothing", {}, "nothing"),
        (TRAINER, {"wrong": 1}, "wrong"),
        ("fledge.demo.task:digits", OPTIONS, "no model"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named(
    tmp_path: Path, factory: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        init_run(factory, tmp_path / "run", name="digits", options=options)


def test_an_unknown_strategy_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedbuff"):
        init_run(
            TRAINER,
            tmp_path / "run",
            name="digits",
            settings=RunConfig(name="x", strategy=StrategyConfig(name="magic")),
        )
    assert not (tmp_path / "run").exists()
