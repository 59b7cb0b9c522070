"""Pretrained weights of the zoo: they fit card and network, a run begins with them, and they do what is said."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

from fledge.cli.app import app
from fledge.runs import zoo
from fledge.runs.from_bundle import bundle_files, init_bundle_run
from fledge.runs.init_run import CODE, load_genesis
from fledge.runs.zoo import new_bundle, starting_points
from protocol.errors import ConfigError
from tests.support.monai_marks import MONAI
from tests.support.training import control
from worker.api.weights import Weights
from worker.config import call_factory
from worker.monai.pretrained import CARD, WEIGHTS, WeightsCard, card_of, weights_of
from worker.trainers.monai_bundle import BundleTrainer, bundle_network, bundle_trainer

ROOT = Path(__file__).resolve().parents[4]
ZOO = ROOT / "fledge" / "zoo"
HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "hippocampus"
TRAINED = [each.name for each in starting_points() if each.pretrained]

pytestmark = MONAI


def card(start: str) -> WeightsCard:
    """The card of an entry that has one."""
    found = card_of(ZOO / start)
    assert found is not None
    return found


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """The modules of `examples/pretrain`, as they find each other when one is run."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "pretrain"))
    names = [path.stem for path in (ROOT / "examples" / "pretrain").glob("*.py")]
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # so that whatever is imported now is forgotten afterwards
        del sys.modules[name]
    return importlib.import_module


# ---- what comes with fledge


@pytest.mark.parametrize("start", TRAINED)
def test_weights_fit_their_card_and_their_network_and_the_card_says_all_there_is_to_know(start: str) -> None:
    said = card(start)
    raw = weights_of(ZOO / start, said)
    tensors = safetensors.numpy.load(raw)
    expected = bundle_network(ZOO / start).state_dict()
    assert {name: array.shape for name, array in tensors.items()} == {k: tuple(v.shape) for k, v in expected.items()}
    assert all(array.dtype == np.float16 and np.isfinite(array).all() for array in tensors.values())
    assert len(raw) <= 2e6
    assert (said.entry, said.licence.startswith("CC BY")) == (start, True)
    script = said.recipe.split()[1]
    assert (ROOT / script).is_file()
    assert (
        f"EPOCHS = {said.epochs}\n" in (ROOT / script).read_text()
        or f"EPOCHS, HELD_OUT = {said.epochs}, " in (ROOT / script).read_text()
    )


def test_the_docs_state_what_the_cards_state() -> None:
    rows = [
        line
        for line in (ROOT / "docs/zoo.md").read_text().splitlines()
        if line.startswith("| `") and "pretrained.json" in line
    ]
    assert len(rows) == len(TRAINED)
    for start in TRAINED:
        [row] = [line for line in rows if line.startswith(f"| `{start}` |")]
        said = card(start)
        for figure in (f"{said.value:.3f}", f"{said.held_out}", f"{said.bytes:,}", said.licence.partition(",")[0]):
            assert figure in row, (figure, row)


# ---- a bundle, and a run of it


@pytest.mark.parametrize("start", TRAINED)
def test_a_new_bundle_has_the_weights_and_a_run_begins_with_them(tmp_path: Path, start: str) -> None:
    made = new_bundle(tmp_path / "mine", start, weights="pretrained")
    assert made == card(start)
    assert json.loads((tmp_path / "mine" / CARD).read_text()) == json.loads((ZOO / start / CARD).read_text())
    readme = (tmp_path / "mine" / "docs" / "README.md").read_text()
    assert f"The weights are trained: {made.told()}" in readme
    assert "random" not in readme.splitlines()[4]
    assert "not yet trained" not in (tmp_path / "mine" / "configs" / "metadata.json").read_text()
    assert not {WEIGHTS, CARD} & set(bundle_files(tmp_path / "mine"))
    told: list[str] = []
    init_bundle_run(tmp_path / "mine", tmp_path / "run", name="r", tell=told.append)
    assert made.told() in told[0]
    version_0 = safetensors.numpy.load(b"".join(load_genesis(tmp_path / "run").payload()))
    wanted = safetensors.numpy.load((ZOO / start / WEIGHTS).read_bytes())
    of_monai = torch.load(tmp_path / "mine" / "models" / "model.pt", weights_only=True)
    assert version_0.keys() == wanted.keys() == of_monai.keys()
    for name, array in version_0.items():
        np.testing.assert_array_equal(array, wanted[name].astype(np.float32))
        np.testing.assert_array_equal(of_monai[name].numpy(), array)


def test_without_being_asked_for_weights_are_random(tmp_path: Path) -> None:
    assert new_bundle(tmp_path / "mine", "digits") is None
    assert not (tmp_path / "mine" / "models").exists()
    told: list[str] = []
    init_bundle_run(tmp_path / "mine", tmp_path / "run", name="r", tell=told.append)
    assert told == []


def test_the_commands_say_which_weights_there_are(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["bundle", "list"]).output
    assert f"[pretrained: {card('digits').told()}]" in shown
    done = CliRunner().invoke(
        app, ["bundle", "new", str(tmp_path / "mine"), "--from", "digits", "--weights", "pretrained"]
    )
    assert done.exit_code == 0, done.output
    assert card("digits").told() in done.output
    assert "CC BY 4.0" in done.output


@pytest.mark.parametrize(
    ("start", "weights", "told"),
    [
        ("digits", "best", "there are no weights 'best' for a starting point; say pretrained or random"),
        ("digits", "", "there are no weights '' for a starting point"),
        ("spleen-ct-unet", "pretrained", r"no pretrained weights for spleen-ct-unet; there are some for digits"),
    ],
)
def test_weights_that_are_not_there_are_told(tmp_path: Path, start: str, weights: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        new_bundle(tmp_path / "mine", start, weights=weights)
    assert not (tmp_path / "mine").exists()


def exchanged(folder: Path) -> None:
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (folder / WEIGHTS).write_bytes(raw)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (exchanged, "does not hold the weights that models/pretrained.json is about"),
    "shorter": (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-1]), "does not hold the weights"),
    "longer": (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes() + b"x"), "does not hold the weights"),
    "gone": (lambda at: (at / WEIGHTS).unlink(), "is not there, and models/pretrained.json is about it"),
    "no card": (lambda at: (at / CARD).write_text("{}"), "is no card of weights"),
    "no JSON": (lambda at: (at / CARD).write_text("{"), "is no card of weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_and_card_that_do_not_belong_together_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    change, told = DAMAGES[damage]
    new_bundle(tmp_path / "mine", "digits", weights="pretrained")
    change(tmp_path / "mine")
    with pytest.raises(ConfigError, match=told):
        init_bundle_run(tmp_path / "mine", tmp_path / "run", name="r")
    shutil.copytree(ZOO / "digits", tmp_path / "zoo" / "digits")
    shutil.copy(ZOO / "LICENSE", tmp_path / "zoo" / "LICENSE")
    change(tmp_path / "zoo" / "digits")
    monkeypatch.setattr(zoo, "_zoo", lambda: tmp_path / "zoo")
    with pytest.raises(ConfigError, match=told):
        new_bundle(tmp_path / "other", "digits", weights="pretrained")
    assert not (tmp_path / "other").exists()


def test_a_network_that_was_changed_is_told_and_may_begin_with_random_weights(tmp_path: Path) -> None:
    new_bundle(tmp_path / "mine", "digits", weights="pretrained")
    path = tmp_path / "mine" / "configs" / "train.json"
    path.write_text(path.read_text().replace('"channels": [16, 32]', '"channels": [8, 32]'))
    with pytest.raises(ConfigError, match=r"does not hold the weights of the bundle's network.*; remove .*json"):
        init_bundle_run(tmp_path / "mine", tmp_path / "run", name="r")
    (tmp_path / "mine" / CARD).unlink()
    init_bundle_run(tmp_path / "mine", tmp_path / "run", name="r")


# ---- what they can do


def evaluated(start: str, tmp_path: Path, data: Path) -> dict[str, float]:
    """What a site measures of version 0 of a run of a bundle with pretrained weights."""
    new_bundle(tmp_path / "mine", start, weights="pretrained")
    init_bundle_run(tmp_path / "mine", tmp_path / "run", name="r")
    genesis = load_genesis(tmp_path / "run")
    trainer = call_factory("trainer:trainer", {"dataset_dir": str(data)}, tmp_path / "run" / CODE)
    assert isinstance(trainer, BundleTrainer)
    return dict(trainer.evaluate(Weights(genesis.spec, genesis.payload), control()).metrics)


def test_version_0_recognises_digits_as_well_as_its_card_says(
    tmp_path: Path, recipes: Callable[[str], ModuleType]
) -> None:
    (tmp_path / "data").mkdir()
    lists = recipes("digits").written(tmp_path / "data")
    said = card("digits")
    assert (len(lists["training"]), len(lists["validation"])) == (said.trained_on, said.held_out)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**lists, "training": lists["training"][:9]}))
    assert evaluated("digits", tmp_path, tmp_path / "data")["val_accuracy"] == pytest.approx(said.value, abs=0.01)


def test_a_trainer_of_the_bundle_itself_begins_with_them_too(
    tmp_path: Path, recipes: Callable[[str], ModuleType]
) -> None:
    new_bundle(tmp_path / "mine", "digits", weights="pretrained")
    (tmp_path / "data").mkdir()
    some = {name: items[:3] for name, items in recipes("digits").written(tmp_path / "data").items()}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(some))
    begins = bundle_trainer(tmp_path / "mine", dataset_dir=tmp_path / "data").initial()
    wanted = safetensors.numpy.load((ZOO / "digits" / WEIGHTS).read_bytes())
    for name, array in safetensors.numpy.load(b"".join(begins)).items():
        np.testing.assert_array_equal(array, wanted[name].astype(np.float32))


def test_version_0_segments_hippocampi_as_well_as_its_card_says(
    tmp_path: Path, recipes: Callable[[str], ModuleType]
) -> None:
    if not HIPPOCAMPUS.is_dir():
        pytest.skip(f"{HIPPOCAMPUS} is not there: the labelled volumes of task 4 of the Decathlon")
    lists, said = recipes("hippocampus").listed(HIPPOCAMPUS), card("hippocampus-mr")
    assert (len(lists["training"]), len(lists["validation"])) == (said.trained_on, said.held_out)
    lists = {"training": lists["training"][:2], "validation": lists["validation"][::4]}
    for item in [*lists["training"], *lists["validation"]]:
        for path in item.values():
            (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HIPPOCAMPUS / path, tmp_path / "data" / path)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(lists))
    assert evaluated("hippocampus-mr", tmp_path, tmp_path / "data")["val_mean_dice"] == pytest.approx(
        said.value, abs=0.02
    )


# ---- how they are made


def test_volumes_of_one_patient_are_on_one_side(tmp_path: Path, recipes: Callable[[str], ModuleType]) -> None:
    (tmp_path / "labelsTr").mkdir()
    for number in range(1, 101):
        (tmp_path / "labelsTr" / f"hippocampus_{number:03}.nii.gz").touch()
    lists = recipes("hippocampus").listed(tmp_path)
    numbers = {name: {int(item["image"][-10:-7]) for item in items} for name, items in lists.items()}
    assert numbers["validation"] == {9, 10, 19, 20, 29, 30, 39, 40, 49, 50, 59, 60, 69, 70, 79, 80, 89, 90, 99, 100}
    assert numbers["training"] == set(range(1, 101)) - numbers["validation"]


def test_a_recipe_makes_weights_and_a_card_of_them(tmp_path: Path, recipes: Callable[[str], ModuleType]) -> None:
    (tmp_path / "data").mkdir()
    lists = recipes("digits").written(tmp_path / "data")
    some = {name: items[:20] for name, items in lists.items()}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(some))
    recipe = recipes("recipe")
    weights = tmp_path / WEIGHTS
    found = recipe.train("digits", tmp_path / "data", recipe.Budget(epochs=1, lr=0.01, batch=10), weights)
    said = card("digits").model_dump(exclude={"value", "bytes", "sha256", "seed", "versions"})
    recipe.write_card(weights, found["val_accuracy"], **said)
    made = card_of(tmp_path)
    assert made is not None
    assert (
        safetensors.numpy.load(weights_of(tmp_path, made)).keys() == bundle_network(ZOO / "digits").state_dict().keys()
    )
