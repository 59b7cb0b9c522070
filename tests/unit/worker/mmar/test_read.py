"""MMARs made to harm whoever translates them: nothing runs, nothing grows, nothing else is taken along."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.runs.from_mmar import lines
from protocol.errors import ConfigError
from tests.support import mmars
from worker.mmar.entries import Note, NoteKind
from worker.mmar.read import pretrained, read_mmar
from worker.trainers.mmar import convert_mmar

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
Config = dict[str, Any]


def first(config: Config) -> Config:
    """The first transform of the training."""
    found: Config = config["train"]["pre_transforms"][0]
    return found


def long_texts(config: Config) -> None:
    first(config)["args"]["reader"] = ["{LONG}"] * 3000


def long_lists(config: Config) -> None:
    first(config)["args"]["reader"] = ["{NUMBERS}"] * 3000


def copies(config: Config) -> None:
    first(config)["args"]["reader"] = "x" * 50_000
    config["validate"]["pre_transforms"] = [{"ref": first(config)["name"]}] * 5000


@pytest.mark.parametrize("bomb", [long_texts, long_lists, copies])
def test_a_small_mmar_does_not_become_a_huge_bundle(tmp_path: Path, bomb: Callable[[Config], None]) -> None:
    config = copy.deepcopy(mmars.spleen_config())
    bomb(config)
    told = mmars.environment(LONG="x" * 50_000, NUMBERS=list(range(50_000)))
    root = mmars.write(tmp_path / "mmar", config, told)
    assert sum(path.stat().st_size for path in root.rglob("*.json")) < 1024 * 1024
    with pytest.raises(ConfigError, match="characters; shorten"):
        convert_mmar(root)


def test_any_number_of_meaningless_keys_is_told_in_time(tmp_path: Path) -> None:
    config = copy.deepcopy(mmars.spleen_config())
    config["train"]["loss"] |= {f"k{number}": 0 for number in range(60_000)}  # each beside each took half an hour
    notes = convert_mmar(mmars.write(tmp_path / "mmar", config)).notes
    assert sum(note.kind is NoteKind.LEFT_OUT for note in notes) >= 60_000


def test_a_deep_expression_stays_an_expression(tmp_path: Path) -> None:
    config, text = copy.deepcopy(mmars.spleen_config()), "lambda x: x" + ".a" * 400 + "['k']"
    config["train"]["handlers"] = [{"name": "StatsHandler", "args": {"output_transform": text}}]
    converted = convert_mmar(mmars.write(tmp_path / "mmar", config))
    handlers = json.loads(converted.files["configs/train.json"])["train"]["handlers"]
    assert handlers[0]["output_transform"] == f"${text}"


@pytest.mark.parametrize("name", ["custom", "docs"])
def test_a_folder_that_is_a_link_takes_nothing_along(tmp_path: Path, name: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "diary.md").write_text("nobody's business")
    root = mmars.write(tmp_path / "mmar", mmars.spleen_config())
    (root / name).symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match=f"{name} is a link; put the folder itself there"):
        read_mmar(root)


@pytest.mark.parametrize("how", ["absolute", "upwards", "link", "none"])
def test_an_mmar_does_not_choose_weights_outside_itself(tmp_path: Path, how: str) -> None:
    torch.save({}, secret := tmp_path / "secret.pt")
    name = {"absolute": str(secret), "upwards": "models/../../secret.pt", "link": "models/model.pt", "none": "a\0.pt"}[
        how
    ]
    root = mmars.write(tmp_path / "mmar", mmars.spleen_config(), mmars.environment(PRETRAIN_WEIGHTS_FILE=name))
    (root / "models").mkdir()
    if how == "link":
        (root / "models" / "model.pt").symlink_to(secret)
    found, notes = pretrained(root, read_mmar(root))
    assert found is None
    assert "PRETRAIN_WEIGHTS_FILE" in {note.what for note in notes}


def test_what_an_mmar_says_does_not_command_a_terminal() -> None:
    assert list(lines([Note(NoteKind.LEFT_OUT, "train loss \x1b[2J", "means\nnothing")])) == [
        r"left out: train loss \x1b[2J: means\nnothing"
    ]


JUNK = (
    None,
    True,
    -1,
    1e400,
    "",
    "$x",
    "@y",
    "%z",
    "{A}",
    "#1",
    "lambda",
    [],
    [[]],
    ["label"],
    {},
    {"name": "x"},
    {"": 0},
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a configuration with each key of it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@pytest.mark.parametrize("make", [mmars.spleen_config, mmars.film_config, mmars.older_config])
def test_junk_anywhere_is_translated_or_refused(tmp_path: Path, make: Callable[[], Config]) -> None:
    dice, told = random.Random(3), mmars.environment(PRETRAIN_WEIGHTS_FILE="")
    refused = 0
    root = mmars.write(tmp_path / "mmar", make(), told)
    for _ in range(300):
        config, variables = copy.deepcopy(make()), dict(told)
        for _ in range(dice.randint(1, 3)):
            container, key = dice.choice(places(config) if dice.random() < 0.9 else places(variables))
            container[key] = copy.deepcopy(dice.choice(JUNK))
        (root / "config" / "config_train.json").write_text(json.dumps(config))
        (root / "config" / "environment.json").write_text(json.dumps(variables))
        try:
            convert_mmar(root)
        except ConfigError:
            refused += 1
    assert 30 < refused < 300
