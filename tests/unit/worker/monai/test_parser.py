"""Configurations are read as MONAI's own `ConfigWorkflow` reads them: merged files, metadata, `@` and `%`."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from monai.bundle.workflows import ConfigWorkflow

from fledge.runs.from_bundle import Chosen, init_bundle_run
from fledge.runs.init_run import CODE, load_genesis
from protocol.errors import ConfigError
from tests.support import monai_bundles as bundles
from tests.support.monai_marks import MONAI
from tests.support.training import control
from worker.api.weights import Weights
from worker.bundles.check import check_bundle
from worker.config import call_factory
from worker.monai import parser as parsing
from worker.monai.configs import Configs, Inference
from worker.monai.parser import config_files, read
from worker.trainers.monai_bundle import BundleTrainer, bundle_network, bundle_trainer

pytestmark = MONAI

CHANNELS = "_meta_#network_data_format#inputs#image#num_channels"
NUMBERS = st.integers(-9, 9)
NAMES = ("a", "b", "c", "d")


def values() -> st.SearchStrategy[Any]:
    """What stands in a configuration: plain values, and every kind of reference."""
    there = st.sampled_from(NAMES)
    one = st.sampled_from(
        [
            *(f"@{CHANNELS}", f"$@{CHANNELS} + 1", f"%{CHANNELS}", "%_meta_::labels", "@_meta_#labels#0"),
            *("%configs/common.json::net", "%configs/common.json#net#channels", "%configs/common.json::deep"),
            *("%configs/second.yaml::list", "%configs/second.yaml::list::1", "%configs/common.json", "%no.json::net"),
        ]
    )
    refers = st.one_of(
        st.builds("@{}".format, there), st.builds("%{}".format, there), st.builds("$[@{}]".format, there)
    )
    near = st.fixed_dictionaries(
        {
            "x": NUMBERS,
            "y": st.sampled_from(["@#x", "%#x", "$@#x * 2", "@##a", "%##b"]),
            "z": st.lists(NUMBERS, max_size=2),
        }
    )
    return st.one_of(NUMBERS, one, refers, near, st.lists(st.one_of(NUMBERS, one), max_size=3))


MERGED = st.dictionaries(
    st.sampled_from([*NAMES, *(f"{name}#x" for name in NAMES), *(f"+{name}" for name in NAMES), "a::z::0"]),
    st.one_of(NUMBERS, st.lists(NUMBERS, max_size=2), st.just({"x": 7}), st.just("%a")),
    max_size=3,
)


def outcome(parsed: Callable[[str], Any]) -> dict[str, Any]:
    """Each id's content, or that there is none."""
    found: dict[str, Any] = {}
    for name in NAMES:
        try:
            found[name] = parsed(name)
        except Exception:
            found[name] = Exception
    return found


def relative(content: Any, root: Path) -> Any:
    """The content with files below `root` as they were written: what MONAI leaves as text has our absolute paths."""
    match content:
        case str():
            return content.replace(f"%{root}/", "%")
        case list():
            return [relative(each, root) for each in content]
        case dict():
            return {key: relative(each, root) for key, each in content.items()}
        case _:
            return content


@settings(max_examples=150, deadline=None)
@example({"a": "%d", "b": ["%configs/common.json"], "c": 0, "d": "%b"}, {}, 0, False)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, values())), MERGED, NUMBERS, st.booleans())
def test_a_configuration_is_what_monais_workflow_makes_of_the_same_files(
    train: dict[str, Any], merged: dict[str, Any], channels: int, override: bool
) -> None:
    more = {"a": "@b"} if override else {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = written(root, train, merged, channels)
        with contextlib.chdir(root):
            theirs = outcome(of_monai(files, more))
        with contextlib.chdir("/"):
            ours = relative(outcome(of_fledge(root, files, more)), root)
    event("told" if all(each is Exception for each in theirs.values()) else "read")
    assert ours == theirs


def written(root: Path, train: Any, merged: Any, channels: int) -> list[Path]:
    """The files of a configuration, and of what it takes parts."""
    metadata = {"network_data_format": {"inputs": {"image": {"num_channels": channels}}}, "labels": ["liver", "spleen"]}
    common = {"net": {"channels": channels}, "deep": "%configs/second.yaml::list"}
    (root / "configs").mkdir()
    for name, content in {"train": train, "more": merged, "metadata": metadata, "common": common}.items():
        (root / "configs" / f"{name}.json").write_text(json.dumps(content))
    (root / "configs" / "second.yaml").write_text("list: [4, 5]\n")
    return [root / "configs" / "train.json", root / "configs" / "more.json"]


def of_monai(files: list[Path], more: Mapping[str, Any]) -> Callable[[str], Any]:
    try:
        workflow = ConfigWorkflow([str(file) for file in files], logging_file=False, workflow_type=None, **more)
        workflow.initialize()
    except Exception as error:
        return refused(error)
    return workflow.parser.get_parsed_content


def of_fledge(root: Path, files: list[Path], more: Mapping[str, Any]) -> Callable[[str], Any]:
    try:
        parser = read(root, files)
        parser.update(dict(more))
        parser.parse(reset=True)
    except ConfigError as error:
        return refused(error)
    return parser.get_parsed_content


def refused(error: Exception) -> Callable[[str], Any]:
    def parsed(name: str) -> Any:
        raise error

    return parsed


# ---- wherever a bundle is read

CONV = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"network_def": CONV},
    "metadata": {"network_def": {**CONV, "in_channels": f"@{CHANNELS}"}},
    "expression": {"network_def": {**CONV, "in_channels": f"$int(@{CHANNELS})"}},
    "macro": {"nets": {"small": CONV}, "network_def": "%nets#small"},
    "relative": {"network_def": {**CONV, "in_channels": "%#kernel_size", "_requires_": "@##bundle_root"}},
    "file": {"network_def": "%configs/common.json::net"},
    "file with hash": {"network_def": "%configs/common.json#net"},
    "beside the configurations": {"network_def": "%common.json::net"},
    "file in a file": {"network_def": "%configs/third.yaml::net"},
}
"""One small network, said in every way that MONAI knows."""


def said(folder: Path, way: str) -> Path:
    """A bundle that trains and infers, whose network is said in one of the ways."""
    network: dict[str, Any] = {"network_def": None, **WAYS[way]}
    train = {**bundles.base({}), **network}
    train["train"] = {**train["train"], "handlers": []}
    infer = {
        **{name: train[name] for name in ("imports", "bundle_root", "dataset_dir", "output_dir", "device", "network")},
        **network,
        "dataset": {"_target_": "Dataset", "data": [], "transform": {"_target_": "LoadImaged", "keys": "image"}},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
        },
    }
    root = bundles.write(folder, train, {"validate#dataset#cache_rate": 0})
    metadata = {"network_data_format": {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {}}}}
    more = {"inference": infer, "metadata": metadata, "common": {"net": CONV}}
    for name, content in more.items():
        (root / "configs" / f"{name}.json").write_text(json.dumps(content))
    (root / "configs" / "third.yaml").write_text("net: '%configs/common.json::net'\n")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes and labels to train on."""
    return bundles.volumes(tmp_path_factory.mktemp("somewhere") / "data", 3)


@pytest.mark.parametrize("way", WAYS)
def test_a_network_is_the_same_however_it_is_said(tmp_path: Path, data: Path, way: str) -> None:
    root = said(tmp_path / "bundle", way)
    report = check_bundle(root, data)
    assert [each for each in report.findings if "metadata" not in each.where] == []
    assert report.network is not None
    assert report.network.parameters == 4
    init_bundle_run(root, tmp_path / "run", name="r")
    assert [each.shape for each in load_genesis(tmp_path / "run").spec.tensors] == [(2, 1, 1, 1, 1), (2,)]
    trainer = bundle_trainer(tmp_path / "run" / CODE, dataset_dir=data, local_steps=1)
    held = list(trainer.initial())
    weights = Weights(trainer.spec, lambda: iter(held))
    assert trainer.train(weights, control()).steps == 1
    assert "val_mean_dice" in trainer.evaluate(weights, control()).metrics
    parser = Inference(tmp_path / "run" / CODE, overrides={}, places={}).parser([])
    assert parser.get_parsed_content("network").weight.shape == (2, 1, 1, 1, 1)


# ---- several files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a configuration beside `train` that changes it, as the public zoo's have them."""
    root = said(tmp_path / "bundle", "plain")
    more = {"network_def#out_channels": 2, "network_def#bias": False, "+imports": ["$import json"], "device": "cpu"}
    (root / "configs" / "ours.yaml").write_text(json.dumps(more))
    infer = {"network_def#bias": False}
    (root / "configs" / "ours_infer.json").write_text(json.dumps(infer))
    return root


OURS = ["configs/train.json", "configs/ours.yaml"]


def test_several_files_are_merged_in_their_order_at_the_owners_and_at_the_sites(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    assert bundle_network(bundle).bias is not None
    assert bundle_network(bundle, config_file=OURS).bias is None
    assert bundle_network(bundle, config_file=",".join(OURS)).bias is None
    report = check_bundle(bundle, data, config_file=OURS)
    assert report.good
    assert report.network is not None
    assert report.network.tensors == 1
    init_bundle_run(bundle, tmp_path / "run", name="r", chosen=Chosen(config_file=OURS))
    assert [each.shape for each in load_genesis(tmp_path / "run").spec.tensors] == [(2, 1, 1, 1, 1)]
    trainer = call_factory("trainer:trainer", {"dataset_dir": str(data)}, tmp_path / "run" / CODE)
    assert isinstance(trainer, BundleTrainer)
    assert trainer.spec.names == {"weight"}


def test_sites_may_name_files_of_their_own(bundle: Path, data: Path) -> None:
    trainer = bundle_trainer(bundle, dataset_dir=data, config_file="configs/train.json")
    assert trainer.spec.names == {"weight", "bias"}


def test_an_inference_has_files_of_its_own(bundle: Path) -> None:
    merged = ["configs/inference.json", "configs/ours_infer.json"]
    for files, biased in ((None, True), (merged, False)):
        parser = Inference(bundle, overrides={}, places={}, config_file=files).parser([])
        assert (parser.get_parsed_content("network_def").bias is not None) is biased


@pytest.mark.parametrize("name", ["configs/nothing.json", "../elsewhere.json", "/etc/hostname"])
def test_a_file_that_is_none_of_the_bundles_is_told(bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"config_file names {name}, which is no file of the bundle"):
        Configs(bundle, overrides={}, config_file=["configs/train.json", name])
    assert "is no file of the bundle" in check_bundle(bundle, config_file=[name]).findings[0].what


def test_without_files_named_the_one_of_the_name_is_taken_in_whichever_format(bundle: Path) -> None:
    assert config_files(bundle, "train") == [bundle / "configs/train.json"]
    (bundle / "configs/train.json").rename(bundle / "configs/train.yml")
    assert config_files(bundle, "train") == [bundle / "configs/train.yml"]
    assert config_files(bundle, "nothing") == []


# ---- what is not there


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("%configs/nothing.json::net", r"configs/nothing\.json, of which the bundle's configuration is made, is not"),
        ("%configs/common.json::no", "what the bundle's configuration takes over by % is not there: .*no"),
        ("%nowhere#net", "takes over by % is not there: .*nowhere"),
        ("%configs/broken.json::net", "takes over by % is not there"),
    ],
)
def test_what_is_taken_over_and_is_not_there_is_told(bundle: Path, data: Path, network: str, told: str) -> None:
    (bundle / "configs/broken.json").write_text("{")
    overrides = {"network_def": network}
    with pytest.raises(ConfigError, match=told):
        bundle_network(bundle, overrides=overrides)
    with pytest.raises(ConfigError, match=told):
        bundle_trainer(bundle, dataset_dir=data, overrides=overrides)
    with pytest.raises(ConfigError, match=told):
        Inference(bundle, overrides=overrides, places={}).parser()
    assert not check_bundle(bundle, overrides=overrides).good


def test_a_part_of_a_file_outside_the_bundle_gets_a_warning(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "configs/common.json", tmp_path / "mine.json")
    report = check_bundle(bundle, overrides={"network_def": f"%{tmp_path}/mine.json::net"})
    assert report.good
    assert [each.what for each in report.findings if "does not travel" in each.what] == [
        f"takes a part of {tmp_path}/mine.json, which is outside the bundle and does not travel to the sites with it"
    ]


def test_a_file_too_large_is_not_taken_from(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "configs/common.json").write_text(json.dumps({"net": CONV, "more": "x" * 10_000}))
    monkeypatch.setattr(parsing, "LARGEST", 9_000)
    with pytest.raises(ConfigError, match=r"common\.json has 0 MB, which is no configuration"):
        bundle_network(bundle, overrides={"network_def": "%configs/common.json::net"})


def test_what_metadata_say_to_people_is_no_reference(bundle: Path) -> None:
    metadata = {"authors": "@somebody", "description": "$5 a case", "note": {"_target_": "of the study"}}
    (bundle / "configs/metadata.json").write_text(json.dumps(metadata))
    report = check_bundle(bundle)
    assert report.good
    assert not any("somebody" in each.what or "study" in each.what for each in report.findings)
