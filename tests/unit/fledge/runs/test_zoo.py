"""The zoo: every starting point becomes a bundle that passes the check, trains, is evaluated and infers."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import tomllib
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from PIL import Image
from typer.testing import CliRunner

from fledge.cli.app import app
from fledge.runs.from_bundle import bundle_files
from fledge.runs.zoo import named, new_bundle, starting_points
from protocol.errors import ConfigError
from tests.support.monai_marks import MONAI
from tests.support.training import control
from tests.support.zoo_data import ZOO, Sample, prepared
from worker.api.weights import Weights
from worker.bundles.check import check_bundle
from worker.trainers.initial import spec_and_payload
from worker.trainers.monai_bundle import bundle_network, bundle_trainer

ROOT = Path(__file__).resolve().parents[4]
HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "hippocampus"
SIDES = (("inputs", "image"), ("outputs", "pred"))
DECKS = 840e6
"""Bytes of HeaortaNet's update, in talks about Clara."""

pytestmark = MONAI


def bundle(tmp_path: Path, start: str) -> Path:
    """A bundle made of a starting point."""
    new_bundle(tmp_path / "mine", start)
    return tmp_path / "mine"


def configuration(root: Path, name: str, overrides: dict[str, Any]) -> Any:
    """A configuration of a bundle as MONAI alone reads it."""
    parser = ConfigParser()
    parser.read_config(root / "configs" / f"{name}.json")
    parser.update({"bundle_root": str(root), **overrides})
    return parser


def on_meta(start: str) -> torch.nn.Module:
    """A starting point's network, of which nothing is allocated."""
    parser = ConfigParser()
    parser.read_config(ROOT / "fledge" / "zoo" / start / "configs" / "train.json")
    with torch.device("meta"):
        network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network


def distinct(network: torch.nn.Module) -> list[torch.Tensor]:
    """Its tensors, each once whatever its names; on `meta` they have no addresses to tell them by."""
    return list({id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}.values())


def floats(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())


# ---- new and list


def test_every_starting_point_is_tried_out_here() -> None:
    assert [each.name for each in starting_points()] == sorted(ZOO)


@pytest.mark.parametrize("start", ZOO)
def test_what_is_in_the_zoo_is_what_a_new_bundle_has_but_for_the_name(tmp_path: Path, start: str) -> None:
    made, zoo = bundle(tmp_path, start), ROOT / "fledge" / "zoo" / start
    there = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    wanted = {"configs/train.json", "configs/inference.json", "configs/metadata.json", "docs/README.md", "LICENSE"}
    wanted |= {"docs/classes.txt"} if ZOO[start].classified else set()
    assert there == wanted
    for name in ("train", "inference"):
        assert (made / f"configs/{name}.json").read_bytes() == (zoo / f"configs/{name}.json").read_bytes()
    metadata = json.loads((made / "configs/metadata.json").read_text())
    assert metadata == {**json.loads((zoo / "configs/metadata.json").read_text()), "name": "mine"}
    assert (made / "docs/README.md").read_text() == (zoo / "docs/README.md").read_text().replace(
        f"# {start}\n", "# mine\n", 1
    )
    assert (made / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert set(bundle_files(made)) == wanted | {"trainer.py"}


def test_a_name_is_set_where_a_bundle_says_it_and_nowhere_else() -> None:
    contents = {
        PurePosixPath("configs/metadata.json"): '{"name": "a", "task": "name a"}',
        PurePosixPath("docs/README.md"): "# a\n\nsee # a\n",
        PurePosixPath("configs/train.json"): '{"name": "a"}',
    }
    assert list(named(contents, "a", "b").values()) == [
        '{"name": "b", "task": "name a"}',
        "# b\n\nsee # a\n",
        '{"name": "a"}',
    ]


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no starting point 'lung'; there are: brain-tumour-mr, .*spleen-ct-unet"):
        new_bundle(tmp_path / "mine", "lung")
    with pytest.raises(ConfigError, match="no name for a bundle"):
        new_bundle(tmp_path / "my bundle", "digits")
    new_bundle(tmp_path / "mine", "digits")
    with pytest.raises(ConfigError, match="is in use"):
        new_bundle(tmp_path / "mine", "digits")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"name a folder that can be made"):
        new_bundle(tmp_path / "file" / "mine", "digits")


def test_the_command_makes_and_lists(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bundle", "new", str(tmp_path / "mine"), "--from", "digits"])
    assert done.exit_code == 0
    assert (tmp_path / "mine/configs/train.json").is_file()
    shown = CliRunner().invoke(app, ["bundle", "list"]).output
    listed = json.loads(CliRunner().invoke(app, ["bundle", "list", "--json"]).output)
    assert {each["name"] for each in listed} == set(ZOO)
    assert all(each["name"] in shown and each["description"] in shown for each in listed)


def test_the_zoo_travels_with_the_package() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "fledge" in wheel["packages"]
    assert not {"include", "exclude", "only-include"} & set(wheel)
    zoo = files("fledge") / "zoo"
    for start in ZOO:
        for name in ("train", "inference", "metadata"):
            assert (zoo / start / "configs" / f"{name}.json").is_file()
    ignored = (ROOT / ".gitignore").read_text().split()  # hatch leaves out what git does
    assert not [pattern for pattern in ignored if pattern.rstrip("/") in ("models", "*.safetensors", "*.pt")]


# ---- sizes


def test_the_large_one_is_as_large_as_its_readme_says_and_as_the_decks_network() -> None:
    tensors = distinct(on_meta("heart-aorta-ct"))
    assert all(tensor.is_meta for tensor in tensors)
    size = floats(tensors) * 4
    assert abs(size - DECKS) < DECKS / 100
    text = (ROOT / "fledge/zoo/heart-aorta-ct/docs/README.md").read_text()
    assert f"{floats(tensors):,} parameters, {size:,} bytes as float32" in text


@pytest.mark.parametrize("start", ZOO)
def test_the_table_says_how_large_a_network_is(start: str) -> None:
    tensors = distinct(on_meta(start))
    lines = (ROOT / "docs/zoo.md").read_text().partition("## Trained weights")[0].splitlines()
    [row] = [line for line in lines if line.startswith(f"| `{start}` |")]
    cells = [cell.strip() for cell in row.split("|")]
    parameters = sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.nn.Parameter))
    assert cells[3] == f"{parameters:,}"
    assert math.isclose(float(cells[4]), floats(tensors) * 4 / 1e6, rel_tol=0.02)
    assert cells[6] == f"`{ZOO[start].metric}`"


@pytest.mark.parametrize("start", ZOO)
def test_the_network_takes_and_gives_what_the_metadata_say_in_the_size_it_trains_with(start: str) -> None:
    config, metadata = (
        json.loads((ROOT / "fledge/zoo" / start / "configs" / f"{name}.json").read_text())
        for name in ("train", "metadata")
    )
    image, pred = (metadata["network_data_format"][side][name] for side, name in SIDES)
    batch = config["train"]["dataloader"]["batch_size"]
    size = config.get("patch_size", config.get("image_size"))
    assert image["spatial_shape"] == size
    made = on_meta(start)(torch.empty((batch, image["num_channels"], *size), device="meta"))
    assert list(made.shape) == [batch, pred["num_channels"], *pred["spatial_shape"]]
    assert len(pred["channel_def"]) == pred["num_channels"]
    assert len(image["channel_def"]) == image["num_channels"]


# ---- check, train, evaluate, infer


@pytest.mark.parametrize("start", ZOO)
def test_a_starting_point_takes_what_prepare_makes_trains_and_infers(tmp_path: Path, start: str) -> None:
    sample = ZOO[start]
    root, data = bundle(tmp_path, start), prepared(start, tmp_path)
    report = check_bundle(root, data, overrides=sample.overrides)
    assert report.findings == ()
    assert report.training
    assert report.validation
    assert report.loss is not None
    trainer = bundle_trainer(root, dataset_dir=data, local_steps=2, overrides=sample.overrides)
    payload = list(trainer.initial())
    weights = Weights(trainer.spec, lambda: iter(payload))
    result = trainer.train(weights, control())
    assert result.steps == 2
    assert math.isfinite(result.metrics["loss"])
    assert 0 <= trainer.evaluate(weights, control()).metrics[sample.metric] <= 1
    infer(root, data, sample)


def infer(root: Path, prepared: Path, sample: Sample) -> None:
    """Inference as MONAI alone does it, on a folder of images without a list."""
    data = root.parent / "new"
    data.mkdir()
    for path in sorted((prepared / "imagesTr").iterdir())[:2]:
        shutil.copy(path, data)
    out = root / "eval"
    overrides = {**sample.narrow, "dataset_dir": str(data), "output_dir": str(out), "dataloader#num_workers": 0}
    torch.manual_seed(0)
    parser = configuration(root, "inference", overrides)
    network = parser.get_parsed_content("network")
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    parser.get_parsed_content("run")
    images = sorted(data.iterdir())
    if (out / "predictions.csv").exists():
        rows = list(csv.reader((out / "predictions.csv").read_text().splitlines()))
        assert [row[0] for row in rows] == [str(path) for path in images]
        shares = np.array([[float(each) for each in row[1:]] for row in rows])
        classes = json.loads((root / "configs/metadata.json").read_text())["label_classes"]
        assert shares.shape == (len(images), len(classes))
        assert ((shares >= 0) & (shares <= 1)).all()
        return
    for path in images:
        name = path.name.removesuffix(".nii.gz")
        made = nibabel.load(out / path.parent.relative_to(data) / f"{name}_seg.nii.gz")
        image = nibabel.load(path)
        assert made.shape[:3] == image.shape[:3]
        assert np.array_equal(made.affine, image.affine)
        assert made.get_data_dtype() == np.uint8


def test_a_film_may_show_several_findings_and_a_finding_that_is_none_is_told(tmp_path: Path) -> None:
    root, data = bundle(tmp_path, "chest-xray"), prepared("chest-xray", tmp_path)
    found = json.loads((data / "dataset.json").read_text())
    for label, told in (([0, 1] * 7 + [1], None), ([0, 1], "has 2 entries, and the bundle's network gives 15")):
        found["training"][0]["label"] = label
        (data / "dataset.json").write_text(json.dumps(found))
        findings = check_bundle(root, data, overrides=ZOO["chest-xray"].overrides, quick=True).findings
        assert [each.what for each in findings] == ([told] if told else [])
    found["training"][0]["label"] = 15
    (data / "dataset.json").write_text(json.dumps(found))
    [finding] = check_bundle(root, data, overrides=ZOO["chest-xray"].overrides, quick=True).findings
    assert "none of the classes that the bundle's network tells apart" in finding.what


def test_a_film_is_the_same_to_the_network_as_a_picture_and_as_what_dicom_becomes(tmp_path: Path) -> None:
    root = bundle(tmp_path, "chest-xray")
    film = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)
    Image.fromarray(film).save(tmp_path / "a.png")
    Image.fromarray(film.astype(np.uint16) * 16).save(tmp_path / "b.png")
    nibabel.save(
        nibabel.Nifti1Image(film.T[..., None].astype(np.int16) * 16, np.diag([-1, -1, 1, 1])), tmp_path / "c.nii.gz"
    )
    transforms = configuration(root, "inference", {"image_size": [48, 40]}).get_parsed_content("preprocessing")
    seen = [np.asarray(transforms({"image": str(tmp_path / name)})["image"]) for name in ("a.png", "b.png", "c.nii.gz")]
    assert seen[0].shape == (1, 48, 40)
    assert (seen[0].min(), seen[0].max()) == (0, 1)
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-6)
    np.testing.assert_allclose(seen[2], seen[0], atol=1e-6)


def test_the_network_of_inference_is_that_of_training() -> None:
    for start in ZOO:
        folder = ROOT / "fledge" / "zoo" / start / "configs"
        train, infer = (json.loads((folder / f"{name}.json").read_text()) for name in ("train", "inference"))
        for name in ("network_def", "patch_size", "image_size", "device"):
            assert train.get(name) == infer.get(name)


def test_digits_made_as_the_readme_says_are_learned_and_the_accuracy_is_that_of_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bundle(tmp_path, "digits")
    [code] = re.findall(r"```python\n(.*?)```", (root / "docs/README.md").read_text(), re.DOTALL)
    commands = re.findall(r"^fledge (data prepare .*)$", (root / "docs/README.md").read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    for command in commands[:1]:
        words = command.replace("docs/classes.txt", str(root / "docs/classes.txt")).split()
        assert CliRunner().invoke(app, words).exit_code == 0
    data = tmp_path / "hospital0"
    report = check_bundle(root, data, quick=True)
    assert (report.findings, (report.training or 0) + (report.validation or 0)) == ((), 899)
    trainer = bundle_trainer(root, dataset_dir=data, local_epochs=1)
    spec, payload = spec_and_payload(bundle_network(root))
    recorded = list(payload)
    trainer.train(Weights(spec, lambda: iter(recorded)), control())
    trained = list(trainer.initial())
    accuracy = trainer.evaluate(Weights(spec, lambda: iter(trained)), control()).metrics["val_accuracy"]
    (root / "models").mkdir()
    torch.save(trainer.model.state_dict(), root / "models" / "model.pt")
    places = {"dataset_dir": str(data), "output_dir": str(root / "eval")}
    configuration(root, "inference", places).get_parsed_content("run")
    rows = list(csv.reader((root / "eval" / "predictions.csv").read_text().splitlines()))
    told = {path: int(np.argmax([float(each) for each in shares])) for path, *shares in rows}
    listed = json.loads((data / "dataset.json").read_text())["validation"]
    right = [told[str(data / each["image"])] == each["label"] for each in listed]
    assert accuracy == pytest.approx(sum(right) / len(right))
    assert accuracy > 0.8


@pytest.mark.long
def test_real_hippocampi_are_learned(tmp_path: Path) -> None:
    if not HIPPOCAMPUS.is_dir():
        pytest.skip(f"{HIPPOCAMPUS} is not there: the labelled volumes of task 4 of the Decathlon")
    names = sorted(path.name for path in (HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[:5]
    for name in names:
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(HIPPOCAMPUS / part / name, tmp_path / "data" / part / name)
    items = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": items[:4], "validation": items[4:]}))
    root = bundle(tmp_path, "hippocampus-mr")
    assert check_bundle(root, tmp_path / "data").findings == ()
    trainer = bundle_trainer(root, dataset_dir=tmp_path / "data", local_epochs=3)
    spec, payload = spec_and_payload(bundle_network(root))
    recorded = list(payload)
    weights = Weights(spec, lambda: iter(recorded))
    first = trainer.train(weights, control(task={"local_epochs": 1})).metrics["loss"]
    assert trainer.train(weights, control()).metrics["loss"] < first
