"""`fledge bundle check`: what is wrong with a bundle or with a site's data is found before anything is deployed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle.config_parser import ConfigParser
from PIL import Image
from typer.testing import CliRunner

from fledge.cli.app import app
from protocol.errors import DataError
from tests.support import monai_bundles as bundles
from tests.support.monai_marks import MONAI
from worker.bundles import check, check_configs
from worker.bundles.check import BundleReport, check_bundle, datalist_findings
from worker.bundles.check_configs import metadata_findings, packages
from worker.bundles.check_data import Expected, Facts, item_findings, judged, judged_answer
from worker.bundles.check_expected import expected
from worker.bundles.findings import Problem, Severity
from worker.monai import parser as parsing
from worker.trainers.monai_bundle import bundle_trainer

pytestmark = MONAI
LISTED = "$monai.data.load_decathlon_datalist(@data_list, data_list_key='{}', base_dir=@dataset_dir)"
FILMS = "$[{{'image': i, 'label': int(os.path.basename(os.path.dirname(i)))}} for i in @images[{}]]"
CUTS = {"train": ":8", "validate": "8:"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that trains from a list of data."""
    made = bundles.spleen(
        tmp_path / "bundle",
        data_list="$@dataset_dir + '/dataset.json'",
        train__dataset__data=LISTED.format("training"),
        validate__dataset__data=LISTED.format("validation"),
    )
    metadata = dict.fromkeys(check_configs.METADATA, "1")
    (made / "configs" / "metadata.json").write_text(
        json.dumps({**metadata, "required_packages_version": {}, "network_data_format": {"inputs": {"image": IMAGE}}})
    )
    return made


IMAGE = dict.fromkeys(check_configs._IMAGE, 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five volumes and their labels."""
    return bundles.volumes(tmp_path / "data")


def changed(bundle: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a configuration."""
    path = bundle / "configs" / file
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    """Put other values into a volume."""
    array = np.asarray(nibabel.load(path).dataobj).copy()
    nibabel.save(nibabel.Nifti1Image(change(array), np.eye(4)), path)


def only(report: BundleReport) -> Problem:
    """The one thing that was found, which is an error."""
    assert len(report.findings) == 1, report.findings
    assert not report.good
    return report.findings[0]


# ---- green


def test_a_good_bundle_and_good_data_are_green_and_nothing_is_written(bundle: Path, data: Path) -> None:
    before = sorted(bundle.parent.rglob("*"))
    report = check_bundle(bundle, data)
    assert report.findings == ()
    assert report.good
    assert (report.training, report.validation) == (4, 1)
    assert report.loss is not None
    assert 0 < report.loss < 10
    assert report.network is not None
    assert report.network.kind == "UNet"
    assert report.network.bytes > report.network.parameters * 4
    assert sorted(bundle.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("made", "filled", "overrides"),
    [
        (bundles.brats, lambda folder: bundles.volumes(folder, 3, channels=4, classes=5), {}),
        (bundles.films, bundles.pictures, {f"{part}#dataset#data": FILMS.format(cut) for part, cut in CUTS.items()}),
        (bundles.scripted, bundles.volumes, {}),
    ],
)
def test_bundles_of_other_shapes_get_warnings_about_their_metadata_alone(
    tmp_path: Path, made: Callable[[Path], Path], filled: Callable[[Path], Path], overrides: dict[str, Any]
) -> None:
    report = check_bundle(made(tmp_path / "bundle"), filled(tmp_path / "data"), overrides=overrides)
    assert report.good
    told = {(each.where, each.severity) for each in report.findings}
    assert told == {("configs/metadata.json", Severity.WARNING)}
    assert report.loss is not None


def test_quick_looks_at_headers_alone(bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("values were looked at")

    monkeypatch.setattr("worker.bundles.check_data._valued", forbidden)
    monkeypatch.setattr(check, "bundle_trainer", forbidden)
    report = check_bundle(bundle, data, quick=True)
    assert report.findings == ()
    assert report.training == 4
    assert report.loss is None


def test_overrides_are_those_of_a_site(bundle: Path, data: Path) -> None:
    wide = check_bundle(bundle, overrides={"network_def#channels": [8, 16]})
    narrow = check_bundle(bundle)
    assert wide.network is not None
    assert narrow.network is not None
    assert wide.network.bytes > 2 * narrow.network.bytes
    assert "has no 'nothing#here'" in only(check_bundle(bundle, data, overrides={"nothing#here": 1})).what


def test_an_override_may_stand_in_the_place_of_what_cannot_be_read(bundle: Path, data: Path) -> None:
    changed(bundle, "train.json", lambda config: config.update(dataset_dir="%nowhere"))
    assert not check_bundle(bundle).good
    assert check_bundle(bundle, data, quick=True).good


def test_an_override_that_is_nearly_an_id_is_told(bundle: Path) -> None:
    said = {
        each.where: each.advice
        for each in check_bundle(
            bundle,
            overrides={
                "train#dataloader#batchsize": 1,
                "train#trainerx": 1,
                "train#dataloader#pin_memory": True,
            },
        ).findings
        if each.where.startswith("override")
    }
    assert said == {
        "override train#dataloader#batchsize": "is train#dataloader#batch_size meant?",
        "override train#trainerx": "is train#trainer meant?",
    }


# ---- what the bundle says


@pytest.mark.parametrize("name", ["device", "dataset_dir", "train#trainer", "train#trainer#max_epochs"])
def test_a_required_id_is_missed(bundle: Path, name: str) -> None:
    def drop(config: dict[str, Any]) -> None:
        *above, last = name.split("#")
        for part in above:
            config = config[part]
        del config[last]

    changed(bundle, "train.json", drop)
    report = check_bundle(bundle)
    assert any(f"lacks the required {name}" in each.what for each in report.findings)
    assert not report.good
    assert report.network is None


def test_inference_has_required_ids_of_its_own(bundle: Path) -> None:
    (bundle / "configs" / "inference.json").write_text(json.dumps({"bundle_root": ".", "device": "cpu"}))
    found = only(check_bundle(bundle))
    assert found.where == "configs/inference.json"
    assert found.what == "lacks the required dataset_dir, dataset, evaluator, network_def, inferer"


def test_a_bundle_that_cannot_be_evaluated_gets_a_warning(bundle: Path) -> None:
    changed(bundle, "train.json", lambda config: config.pop("validate"))
    changed(bundle, "train.json", lambda config: config["train"].pop("handlers"))
    changed(bundle, "train.json", lambda config: config["train"]["trainer"].pop("train_handlers"))
    (bundle / "configs" / "evaluate.json").unlink()
    report = check_bundle(bundle)
    assert report.good
    assert [each.what for each in report.findings] == ["lacks validate#evaluator"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("UNett", "MONAI has nothing of this name"),
        ("monai.networks.nets.UNett", "monai is there, and has nothing of this name"),
        ("nobody.has.Net", "nobody is not installed"),
        ("scripts.net.OwnNet", "the bundle has no folder scripts"),
    ],
)
def test_a_target_that_nothing_answers_to_is_named(bundle: Path, target: str, told: str) -> None:
    changed(bundle, "train.json", lambda config: config["network_def"].update(_target_=target))
    report = check_bundle(bundle)
    assert {each.what for each in report.findings} == {f"names {target}: {told}"}
    assert not report.good


def test_a_target_in_what_runs_just_now_is_no_package(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    changed(bundle, "train.json", lambda config: config["network_def"].update(_target_="__main__.Net"))
    assert {each.what for each in check_bundle(bundle).findings} == {"names __main__.Net: __main__ is not installed"}


def test_code_of_the_bundle_is_found_and_what_it_misses_is_told(tmp_path: Path) -> None:
    bundle = bundles.scripted(tmp_path / "bundle")
    assert check_bundle(bundle).good
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    (bundle / "scripts" / "parts.py").write_text("import nobody_has_this\n")
    what = {each.what for each in check_bundle(bundle).findings if each.severity is Severity.ERROR}
    missing = "it needs nobody_has_this, which is not installed"
    assert what == {f"names scripts.net.OwnNet: {missing}", f"names scripts.parts.Late: {missing}"}


def test_a_bundle_without_its_scripts_is_told(tmp_path: Path) -> None:
    bundle = bundles.scripted(tmp_path / "bundle")
    shutil.rmtree(bundle / "scripts")
    found = [each for each in check_bundle(bundle).findings if each.severity is Severity.ERROR]
    assert found
    assert all(each.what.endswith("the bundle has no folder scripts") for each in found)
    assert {each.advice for each in found} == {"copy the bundle as a whole"}


def test_a_reference_to_nothing_is_named(bundle: Path) -> None:
    changed(bundle, "train.json", lambda config: config["optimizer"].update(lr="@rate"))
    found = only(check_bundle(bundle))
    assert (found.where, found.what) == ("configs/train.json#optimizer#lr", "refers to @rate, which is not there")


@pytest.mark.parametrize("file", ["train.json", "evaluate.json", "metadata.json"])
@pytest.mark.parametrize("text", ['{"a": ', "[1]", "[" * 100_000])
def test_files_that_are_no_json_object_are_told(bundle: Path, file: str, text: str) -> None:
    (bundle / "configs" / file).write_text(text)
    report = check_bundle(bundle)
    assert not report.good
    assert any(file in each.where + each.what for each in report.findings)


def test_a_file_too_large_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "LARGEST", 10)
    assert "metadata.json has 0 MB, which is no configuration" in only(check_bundle(bundle)).what
    (bundle / "configs" / "metadata.json").unlink()
    what = [each.what for each in check_bundle(bundle).findings]
    assert any("train.json has 0 MB, which is no configuration" in each for each in what)


def test_no_bundle_is_told(tmp_path: Path) -> None:
    assert "no MONAI bundle" in only(check_bundle(tmp_path)).what


def test_a_network_that_cannot_be_made_is_told(bundle: Path) -> None:
    changed(bundle, "train.json", lambda config: config["network_def"].update(channels=[4]))
    found = only(check_bundle(bundle))
    assert found.where == "the bundle"
    assert "making the bundle's network failed" in found.what


def test_metadata_that_lack_something_get_warnings(bundle: Path) -> None:
    changed(bundle, "metadata.json", lambda found: found.pop("authors"))
    changed(bundle, "metadata.json", lambda found: found["network_data_format"]["inputs"]["image"].pop("modality", 0))
    changed(bundle, "metadata.json", lambda found: found["network_data_format"]["inputs"]["image"].pop("dtype"))
    report = check_bundle(bundle)
    assert report.good
    assert [each.what for each in report.findings] == ["lacks authors", "lacks dtype"]
    (bundle / "configs" / "metadata.json").unlink()
    assert [each.what for each in metadata_findings(bundle / "configs" / "metadata.json")] == ["is not there"]


def test_packages_are_missed_or_old() -> None:
    asked = {
        "monai_version": "1.5.0",
        "pytorch_version": "3.0",
        "required_packages_version": {"nobody-has-this": "1", "here": "9"},
        "optional_packages_version": {"nor-this": "1"},
    }
    here = {"monai": "1.6.1", "torch": "2.13.0+cpu", "here": ""}
    found = [(each.what, each.severity) for each in packages(asked, "metadata.json", here.get)]
    assert found == [
        ("was made with torch 3.0, and 2.13.0+cpu is installed", Severity.WARNING),
        ("asks for nobody-has-this, which is not installed", Severity.ERROR),
    ]


def test_a_package_is_found_by_its_own_name_or_its_modules(bundle: Path) -> None:
    wanted = {"nibabel": "1", "pytorch-ignite": "0.1", "PIL": "1", "nobody-has-this": "1"}
    changed(bundle, "metadata.json", lambda found: found.update(required_packages_version=wanted))
    assert only(check_bundle(bundle)).what == "asks for nobody-has-this, which is not installed"


@pytest.mark.parametrize("name", ["", "__main__", "a\0b"])
def test_a_package_without_a_proper_name_is_missed(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as where a script runs
    changed(bundle, "metadata.json", lambda found: found.update(required_packages_version={name: "1"}))
    assert only(check_bundle(bundle)).what == f"asks for {name}, which is not installed"


# ---- the list of data


def test_an_empty_list_is_told(bundle: Path, data: Path) -> None:
    lists = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**lists, "training": []}))
    found = only(check_bundle(bundle, data))
    assert (found.where, found.what) == ("train#dataset#data", "lists no data")
    (data / "dataset.json").write_text(json.dumps({**lists, "validation": []}))
    report = check_bundle(bundle, data)
    assert report.good
    assert [(each.where, each.what) for each in report.findings] == [("validate#dataset#data", "lists no data")]
    assert report.loss is not None


def test_a_list_that_the_bundle_asks_for_and_is_not_there_is_told(bundle: Path, data: Path) -> None:
    (data / "dataset.json").write_text(json.dumps({"test": []}))
    what = [each.what for each in check_bundle(bundle, data).findings]
    assert any("training" in each for each in what)
    assert any("validation" in each for each in what)


def test_a_name_that_others_put_behind_a_folder_is_no_list_by_itself(bundle: Path, data: Path) -> None:
    parts = {"dataset_json": "dataset.json", "data_list": "$@dataset_dir + '/' + @dataset_json"}
    changed(bundle, "train.json", lambda config: config.update(parts))
    assert check_bundle(bundle, data, quick=True).good
    (data / "dataset.json").unlink()
    found = only(check_bundle(bundle, data, quick=True))
    assert (found.where, found.what) == (str(data / "dataset.json"), "is not there")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"training": ', "is no datalist, for it is no JSON: line 1, column 14"),
        ("[" * 100_000, "is no datalist"),
        ("\udcff", "it is no text in UTF-8"),
        ('\ufeff{"training": []}', "is in UTF-8 with a byte order mark, which MONAI does not read"),
        ('{"training": [], "training": []}', "has 'training' twice"),
        ("[]", "holds no lists"),
        ('{"name": "x"}', "holds no lists"),
    ],
)
def test_a_list_that_is_none_is_told(bundle: Path, data: Path, text: str, told: str) -> None:
    (data / "dataset.json").write_bytes(text.encode(errors="surrogateescape"))
    found = only(check_bundle(bundle, data))
    assert found.where == str(data / "dataset.json")
    assert told in found.what


def test_a_list_that_is_missing_or_huge_is_not_read(bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LIMIT", 10)
    assert "is longer than 10 bytes" in only(check_bundle(bundle, data)).what
    (data / "dataset.json").unlink()
    assert only(check_bundle(bundle, data)).what == "is not there"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_trainer_says_of_a_list_what_a_check_does(bundle: Path, data: Path, encoding: str) -> None:
    (data / "dataset.json").write_bytes((data / "dataset.json").read_text().encode(encoding))
    assert "which MONAI does not read" in only(check_bundle(bundle, data, quick=True)).what
    with pytest.raises(DataError, match="which MONAI does not read; save it as UTF-8 without one"):
        bundle_trainer(bundle, dataset_dir=data)


def test_paths_as_windows_writes_them_get_a_warning_that_says_so(bundle: Path, data: Path) -> None:
    lists = (data / "dataset.json").read_text()
    (data / "dataset.json").write_text(lists.replace("images/case0", "images\\\\case0"))
    found = check_bundle(bundle, data, quick=True).findings
    assert any("writes paths as Windows does" in each.what for each in found)


def test_paths_that_lead_out_of_the_folder_get_a_warning(bundle: Path, data: Path, tmp_path: Path) -> None:
    shutil.move(data / "images" / "case0.nii.gz", tmp_path / "outside.nii.gz")
    lists = json.loads((data / "dataset.json").read_text())
    lists["training"][0]["image"] = "images/../../outside.nii.gz"
    lists["training"][1]["image"] = str(data / lists["training"][1]["image"])
    (data / "dataset.json").write_text(json.dumps(lists))
    report = check_bundle(bundle, data)
    assert report.good
    assert report.loss is not None
    [found] = report.findings
    assert found.severity is Severity.WARNING
    assert found.what == "names 1 files of training outside dataset_dir, such as images/../../outside.nii.gz"


PART = st.sampled_from(["a", "..", ".", "b c"])


@given(st.lists(PART, min_size=1, max_size=6), st.booleans())
def test_a_path_is_outside_exactly_if_a_step_of_it_is(parts: list[str], absolute: bool) -> None:
    data = Path("/data/site")
    path = ("/data/site/" if absolute else "") + "/".join(parts)
    steps = [part for part in parts if part != "."]
    depths = [sum(-1 if part == ".." else 1 for part in steps[: n + 1]) for n in range(len(steps))]
    assert check._leads_outside(path, data) is any(depth < 0 for depth in depths)
    assert check._leads_outside("/elsewhere/" + path, data)


# ---- images and labels


def test_a_missing_file_is_named(bundle: Path, data: Path) -> None:
    (data / "images" / "case0.nii.gz").unlink()
    found = only(check_bundle(bundle, data))
    assert (found.where, found.what) == (str(data / "images" / "case0.nii.gz"), "is not there")


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:200], lambda raw: b"no volume at all"])
def test_a_file_that_cannot_be_read_is_named(bundle: Path, data: Path, damage: Callable[[bytes], bytes]) -> None:
    path = data / "images" / "case1.nii.gz"
    path.write_bytes(damage(path.read_bytes()))
    found = only(check_bundle(bundle, data))
    assert found.where == str(path)
    assert found.what.startswith("cannot be read: ")


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA"])
def test_a_picture_that_monai_reads_otherwise_than_it_is_seen_gets_a_warning(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert(mode).save(tmp_path / "x.png")
    for quick in (False, True):
        found = [*item_findings([{"image": str(tmp_path / "x.png")}], Expected(loaded=("image",)), quick=quick)]
        assert [each.severity for each in found] == [Severity.WARNING]
        assert "MONAI reads other values than a person sees" in found[0].what


@pytest.mark.parametrize("quick", [False, True])
def test_a_volume_in_another_unit_than_millimetres_gets_a_warning(tmp_path: Path, quick: bool) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([900, 900, 2000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "x.nii")
    items = [{"image": str(tmp_path / "x.nii")}]
    (found,) = item_findings(items, Expected(loaded=("image",)), quick=quick)
    assert found.severity is Severity.WARNING
    assert found.what == "is measured in units of 0.001 mm (xyzt_units), which MONAI takes for millimetres"


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bundle, data = bundles.films(tmp_path / "bundle"), bundles.pictures(tmp_path / "data")
    path = data / "1" / "film1.png"
    path.write_bytes(path.read_bytes()[:100])
    report = check_bundle(bundle, data)
    assert not report.good
    assert any(each.where == str(path) and "cannot be read" in each.what for each in report.findings)


def test_a_volume_that_claims_to_be_enormous_is_not_read(bundle: Path, data: Path) -> None:
    path = data / "images" / "case1.nii"
    header = nibabel.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    path.write_bytes(header.binaryblock + bytes(4))
    lists = json.loads((data / "dataset.json").read_text())
    lists["training"][1]["image"] = "images/case1.nii"
    (data / "dataset.json").write_text(json.dumps(lists))
    found = only(check_bundle(bundle, data))
    assert found.what == "says it has the shape (32767, 32767, 32767)"


def test_images_with_other_channels_are_told(bundle: Path, tmp_path: Path) -> None:
    report = check_bundle(bundle, bundles.volumes(tmp_path / "more", channels=3))
    assert len(report.findings) == 5
    assert {each.what for each in report.findings} == {"has 3 channels, and the bundle's network takes 1"}
    assert report.loss is None


def test_labels_outside_the_classes_are_told(bundle: Path, tmp_path: Path) -> None:
    report = check_bundle(bundle, bundles.volumes(tmp_path / "more", classes=6))
    assert {each.what for each in report.findings} == {"has the value 5, and the bundle's classes are 0, 1"}


def test_labels_that_are_not_whole_numbers_are_told(bundle: Path, data: Path) -> None:
    rewritten(data / "labels" / "case2.nii.gz", lambda array: array.astype(np.float32) / 2)
    assert only(check_bundle(bundle, data)).what == "has values that are not whole numbers"


def test_whole_numbers_in_floats_are_labels(bundle: Path, data: Path) -> None:
    rewritten(data / "labels" / "case2.nii.gz", lambda array: array.astype(np.float32))
    assert check_bundle(bundle, data).findings == ()


def test_shapes_that_differ_are_told(bundle: Path, data: Path) -> None:
    rewritten(data / "labels" / "case3.nii.gz", lambda array: array[:-1])
    found = only(check_bundle(bundle, data))
    assert found.where == str(data / "labels" / "case3.nii.gz")
    assert found.what.startswith("has the shape (15, 16, 16), and its image ")
    assert found.what.endswith(" has (16, 16, 16)")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_intensities_that_are_not_finite_are_told(bundle: Path, data: Path, value: float) -> None:
    def spoil(array: Any) -> Any:
        array[0, 0, 0] = value
        return array

    rewritten(data / "images" / "case4.nii.gz", spoil)
    assert only(check_bundle(bundle, data)).what == "has intensities that are not finite"


@pytest.mark.parametrize("copied", [True, False])
def test_an_image_to_train_on_and_to_validate_on_is_told(bundle: Path, data: Path, copied: bool) -> None:
    lists = json.loads((data / "dataset.json").read_text())
    if copied:
        shutil.copy(data / "images" / "case0.nii.gz", data / lists["validation"][0]["image"])
        shutil.copy(data / "labels" / "case0.nii.gz", data / lists["validation"][0]["label"])
    else:
        lists["validation"] = lists["training"][:1]
        (data / "dataset.json").write_text(json.dumps(lists))
    found = only(check_bundle(bundle, data))
    assert found.what.startswith("is also trained on")
    assert ("case0.nii.gz" in found.what) is copied


def test_an_example_without_a_label_is_told(bundle: Path, data: Path) -> None:
    lists = json.loads((data / "dataset.json").read_text())
    del lists["training"][2]["label"]
    (data / "dataset.json").write_text(json.dumps(lists))
    found = only(check_bundle(bundle, data))
    assert (found.where, found.what) == ("example 2", "has no 'label'")


def test_what_only_a_batch_shows_is_told(bundle: Path, data: Path) -> None:
    changed(bundle, "train.json", lambda config: config.update(loss="$lambda p, t: p.sum() * float('nan')"))
    report = check_bundle(bundle, data)
    assert only(report).where == "training"
    assert "the loss of the first batch is nan" in only(report).what
    changed(bundle, "train.json", lambda config: config.update(loss="$lambda p, t: torch.matmul(p, torch.zeros(3))"))
    assert "the first batch failed" in only(check_bundle(bundle, data)).what


def test_transforms_of_the_evaluation_are_tried_too(bundle: Path, data: Path) -> None:
    broken = {"_target_": "Lambda", "func": "$lambda example: example['nothing']"}
    (bundle / "configs" / "evaluate.json").unlink()
    changed(bundle, "train.json", lambda config: config["validate"].update(preprocessing=broken))
    assert "the first batch failed" in only(check_bundle(bundle, data)).what


def test_trying_a_batch_leaves_the_parameters_alone(bundle: Path, data: Path) -> None:
    trainer = bundle_trainer(bundle, dataset_dir=data)
    before = [each.clone() for each in trainer.model.parameters()]
    first, second = trainer.rehearse(), trainer.rehearse()
    assert first == second
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))
    assert all(each.grad is None for each in trainer.model.parameters())


# ---- the rules alone


GOOD = {"image": ("i", Facts((4, 4, 4), 1)), "label": ("l", Facts((4, 4, 4), 1, values=frozenset({0, 1})))}
WANTED = Expected(channels=1, classes=frozenset({0, 1}), answers=3)


LOAD = {"_target_": "LoadImaged", "keys": ["image", "label"]}
CROP = {"_target_": "RandSpatialCropd", "keys": ["image", "label"], "roi_size": 4}
TWO = {"in_channels": 1, "out_channels": 2}


def takes(*transforms: dict[str, Any], network: dict[str, Any] = TWO, **metadata: Any) -> Expected:
    """What a bundle with these transforms takes."""
    compose = {"_target_": "Compose", "transforms": list(transforms)}
    return expected(ConfigParser({"network_def": network, "train": {"dataset": {"transform": compose}}}), metadata)


def test_channels_and_classes_follow_from_the_network_or_the_metadata() -> None:
    assert takes(LOAD, CROP) == Expected(1, frozenset({0, 1}), 2, ("image", "label"))
    formats = {"inputs": {"image": {"num_channels": 4}}, "outputs": {"pred": {"num_channels": 3}}}
    assert takes(LOAD, network={}, network_data_format=formats) == Expected(4, frozenset({0, 1, 2}), 3)
    assert takes(LOAD, label_classes={"0": "a", "7": "b"}).classes == {0, 7}
    assert takes(LOAD, label_classes="one channel").classes == {0, 1}
    assert takes(LOAD, network={}) == Expected()
    formats["outputs"]["pred"]["num_channels"] = 10**12
    assert takes(LOAD, network={}, network_data_format=formats) == Expected(4)


def test_what_transforms_change_is_not_judged() -> None:
    label = {"_target_": "Lambdad", "keys": "label", "func": "$lambda each: each"}
    assert takes(LOAD, label, label_classes={"0": "a"}) == Expected(1, None, None)
    assert takes(LOAD, {**label, "keys": "image"}).channels is None
    assert takes(LOAD, {**label, "keys": "image"}).classes == {0, 1}
    anything = {"_target_": "Lambda", "func": "$lambda each: each"}
    assert takes(LOAD, anything) == Expected()
    grey = {**LOAD, "keys": "image", "reader": "PILReader", "converter": "$lambda picture: picture.convert('L')"}
    assert takes(grey) == Expected(None, frozenset({0, 1}), 2, ("image",))
    two = {**LOAD, "keys": ["image", "second"]}
    assert takes(two).channels is None


def test_labels_of_brats_are_known() -> None:
    regions = {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"}
    assert takes(LOAD, regions, network={"in_channels": 4, "out_channels": 3}) == Expected(4, frozenset({0, 1, 2, 4}))
    mapped = {"_target_": "MapLabelValued", "keys": "label", "orig_labels": [3], "target_labels": [4]}
    assert takes(LOAD, mapped, regions).classes is None


def test_what_does_not_follow_from_the_bundle_is_not_judged() -> None:
    assert not list(judged(GOOD, WANTED))
    odd = {
        "image": ("i", replace(GOOD["image"][1], channels=5)),
        "label": ("l", replace(GOOD["label"][1], values=frozenset({9}))),
    }
    assert not list(judged(odd, Expected()))
    assert len(list(judged(odd, WANTED))) == 2


@given(st.frozensets(st.integers(-5, 300), min_size=1), st.integers(1, 20))
def test_labels_are_told_exactly_if_one_is_none_of_the_classes(values: frozenset[int], classes: int) -> None:
    facts = {"label": ("l", Facts((4,), 1, values=values))}
    found = list(judged(facts, Expected(classes=frozenset(range(classes)))))
    assert bool(found) is any(value not in range(classes) for value in values)


@pytest.mark.parametrize("answer", [0, 1, 1.0, [0, 1, 0]])
def test_classes_and_lists_of_zeros_and_ones_are_answers(answer: Any) -> None:
    assert not list(judged_answer("x", answer, WANTED))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (2, "has the value 2"),
        (-1, "has the value -1"),
        (0.5, "is 0.5, which is no class"),
        (float("nan"), "is nan"),
        ("spleen", "is the text 'spleen'"),
        (10**400, "has the value 1000"),
        ([0, 1], "has 2 entries, and the bundle's network gives 3"),
        ([0, 2, 0], "entries other than zero and one"),
    ],
)
def test_other_answers_are_told(answer: Any, told: str) -> None:
    [found] = judged_answer("x", answer, WANTED)
    assert told in found.what


def test_the_folder_has_to_be_there(bundle: Path, tmp_path: Path) -> None:
    assert only(check_bundle(bundle, tmp_path / "nowhere")).what == "is not a folder here"


def test_keys_of_a_list_in_another_order_change_nothing(data: Path) -> None:
    assert not list(datalist_findings(data / "dataset.json", data))


# ---- the command


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["bundle", "check", *map(str, arguments)])


def test_the_command_says_what_was_found_and_ends_with_one(bundle: Path, data: Path) -> None:
    done = run(bundle, "--data", data)
    assert done.exit_code == 0
    assert "network: UNet, " in done.output
    assert "data: 4 to train on, 1 to validate on" in done.output
    assert "first batch: loss " in done.output
    assert done.output.endswith("nothing to correct\n")
    (data / "images" / "case0.nii.gz").unlink()
    done = run(bundle, "--data", data, "--quick")
    assert done.exit_code == 1
    assert f"error: {data / 'images' / 'case0.nii.gz'}: is not there; " in done.output
    assert "not ready" in done.output


def test_the_command_writes_json(bundle: Path, data: Path) -> None:
    (data / "images" / "case0.nii.gz").unlink()
    done = run(bundle, "--data", data, "--json", "--override", "network_def#channels=[8, 16]")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["good"] is False
    assert found["findings"][0]["severity"] == "error"
    assert found["findings"][0]["where"].endswith("case0.nii.gz")
    assert found["network"]["kind"] == "UNet"


def test_many_findings_are_cut_on_a_terminal(bundle: Path, data: Path) -> None:
    lists = json.loads((data / "dataset.json").read_text())
    lists["training"] = [{"image": f"images/no{n}.nii.gz", "label": "labels/case0.nii.gz"} for n in range(60)]
    (data / "dataset.json").write_text(json.dumps(lists))
    done = run(bundle, "--data", data, "--quick")
    assert done.output.count("is not there") == 50
    assert "and 10 more; --json writes all" in done.output


def test_an_override_that_is_none_is_told(bundle: Path) -> None:
    done = run(bundle, "--override", "loss")
    assert "write NAME=VALUE" in str(done.exception)
