"""How an MMAR becomes a bundle: what is taken over, what is told, and what is refused in one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch
from monai.bundle import ConfigParser

from protocol.errors import ConfigError
from tests.support import mmars
from tests.support import monai_bundles as bundles
from tests.support.training import control
from worker.api.weights import Weights
from worker.bundles.inference import BundleInference
from worker.mmar.convert import Conversion, write
from worker.mmar.entries import NoteKind
from worker.mmar.read import Mmar, is_mmar, pretrained, read_mmar
from worker.mmar.translate import translate
from worker.monai.configs import REQUIRED
from worker.trainers.initial import spec_and_payload
from worker.trainers.mmar import Installed, convert_mmar, mmar_trainer
from worker.trainers.monai_bundle import bundle_network

pytestmark = pytest.mark.filterwarnings("ignore")
Change = Callable[[dict[str, Any]], None]


def converted(folder: Path, change: Change = lambda config: None, **more: Any) -> Conversion:
    """The spleen MMAR, changed."""
    config = mmars.spleen_config()
    change(config)
    return convert_mmar(mmars.write(folder / "mmar", config, **more))


def config_of(conversion: Conversion, name: str = "train") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(conversion.files[f"configs/{name}.json"])
    return found


def put(**changes: Any) -> Change:
    """Values by place, with `__` for a step down."""

    def change(config: dict[str, Any]) -> None:
        for name, value in changes.items():
            place: Any = config
            *above, last = [int(step) if step.isdecimal() else step for step in name.split("__")]
            for step in above:
                place = place[step]
            place[last] = value

    return change


def told(conversion: Conversion, kind: NoteKind) -> dict[str, str]:
    return {note.what: note.why for note in conversion.notes if note.kind is kind}


# ---- what becomes of it


def test_the_bundle_has_every_required_id_and_says_nothing_twice(tmp_path: Path) -> None:
    conversion = converted(tmp_path)
    parser = ConfigParser(config_of(conversion))
    assert [name for name in REQUIRED if name not in parser] == []
    assert len(set(conversion.notes)) == len(conversion.notes)
    metadata = config_of(conversion, "metadata")
    assert metadata["task"] == "segmentation"
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 2
    assert metadata["monai_version"]


def test_variables_are_in_place_and_paths_are_the_sites(tmp_path: Path) -> None:
    train = config_of(converted(tmp_path))
    assert train["optimizer"]["lr"] == 0.01
    assert train["train"]["trainer"]["max_epochs"] == 1250
    assert train["train"]["trainer"]["amp"] is True
    assert train["dataset_dir"] == "/claraDevDay/Data/task"
    assert train["dataset_json"] == "dataset.json"
    crop = train["train"]["preprocessing"]["transforms"][3]
    assert crop["spatial_size"] == [8, 8, 8]
    assert "@data_list" in train["train"]["dataset"]["data"]
    assert "data_list_key='training'" in train["train"]["dataset"]["data"]
    assert train["train"]["handlers"][-1]["log_dir"] == "@output_dir"


def test_what_is_disabled_or_means_nothing_is_told(tmp_path: Path) -> None:
    conversion = converted(tmp_path, put(roi_of_nobody=3, train__loss__search=[]))
    left = told(conversion, NoteKind.LEFT_OUT)
    assert left["train pre_transforms RandRotate90d"] == "is disabled"
    assert left["train handlers CheckpointLoader"] == "is disabled"
    assert left["roi_of_nobody"] == left["train loss DiceLoss search"] == "means nothing in a bundle"
    assert {"multi_gpu", "train handlers StatsHandler rank"} <= left.keys()
    assert {"dataset_dir", "dataset_json", "train lr_scheduler"} <= told(conversion, NoteKind.TO_SET).keys()
    targets = [step["_target_"] for step in config_of(conversion)["train"]["preprocessing"]["transforms"]]
    assert "RandRotate90d" not in targets
    assert told(conversion, NoteKind.MAPPED)["train pre_transforms AddChanneld"] == "EnsureChannelFirstd"


def test_a_reference_is_a_copy_of_the_training_s_component(tmp_path: Path) -> None:
    found = config_of(converted(tmp_path))
    training, validation = (found[name]["preprocessing"]["transforms"] for name in ("train", "validate"))
    assert validation == [*training[:3], training[-1]]
    assert found["validate"]["postprocessing"] == found["train"]["postprocessing"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"argmax": True, "to_onehot": True, "n_classes": 3}, {"argmax": True, "to_onehot": 3}),
        ({"threshold_values": True}, {"threshold": 0.5}),
        ({"threshold_values": [True, False], "logit_thresh": 0.2}, {"threshold": [0.2, None]}),
        ({"to_onehot": [True, False], "num_classes": [2, 9]}, {"to_onehot": [2, None]}),
        ({"to_onehot": False, "n_classes": 3}, {}),
        ({"to_onehot": 4}, {"to_onehot": 4}),
    ],
)
def test_switches_of_old_transforms_are_values_today(tmp_path: Path, args: Any, expected: Any) -> None:
    step = mmars.step("AsDiscreted", keys="pred", **args)
    found = config_of(converted(tmp_path, put(train__post_transforms=[step], validate__post_transforms=[])))
    assert found["train"]["postprocessing"]["transforms"] == [{"_target_": "AsDiscreted", "keys": "pred", **expected}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lambda x: x['loss']", "$monai.handlers.from_engine(['loss'], first=True)"),
        ("lambda y: (y['pred'], y['label'])", "$monai.handlers.from_engine(['pred', 'label'])"),
        ("lambda x: (z['pred'], x['label'])", "$lambda x: (z['pred'], x['label'])"),
        ("lambda x: x['pred'] * 2", "$lambda x: x['pred'] * 2"),
        ("lambda x: (", "$lambda x: ("),
        ("#@model.parameters", "$@network.parameters"),
        ("@model", "@network"),
        ("a # plain @ text", "a # plain @ text"),
    ],
)
def test_expressions_become_the_bundles(tmp_path: Path, text: str, expected: str) -> None:
    found = config_of(converted(tmp_path, put(train__key_metric__args__output_transform=text)))
    assert found["train"]["key_metric"]["train_acc"]["output_transform"] == expected


def test_nothing_of_an_mmar_is_evaluated(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bang = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    changes = put(
        train__loss__args__reduction=f"#{bang}",
        train__optimizer__args__eps=f"lambda x: {bang}",
        train__model={"path": "net.Net"},
    )
    code = f"{bang}\nclass Net: pass\n"
    conversion = converted(tmp_path, changes, files={"custom/net.py": code, "docs/Readme.md": "Of us."})
    assert not mark.exists()
    assert config_of(conversion)["loss"]["reduction"] == f"${bang}"
    assert config_of(conversion)["network_def"] == {"_target_": "custom.net.Net"}
    assert conversion.files["custom/net.py"] == code.encode()
    assert conversion.files["docs/Readme.md"] == b"Of us."


def test_validation_of_its_own_and_a_list_in_a_folder(tmp_path: Path) -> None:
    spleen = mmars.spleen_config()
    other = {
        **{name: spleen["validate"][name] for name in ("dataloader", "evaluator", "key_metric")},
        "pre_transforms": spleen["train"]["pre_transforms"][:3],
        "dataset": {**mmars.data("test"), "data_list_file_path": "{DATA_ROOT}/fold/two.json"},
        "inferer": mmars.step("SlidingWindowInferer", roi_size=[16, 16, 16]),
    }
    found = config_of(converted(tmp_path, validation=other), "evaluate")
    assert found["validate#inferer"]["roi_size"] == [16, 16, 16]
    assert found["validate#evaluator"]["key_val_metric"] == "@validate#key_metric"
    listed = "load_decathlon_datalist(os.path.join(@dataset_dir, 'fold/two.json')"
    assert listed in found["validate#dataset"]["data"]
    folder = images(tmp_path)
    (folder / "fold").mkdir()
    both = json.loads((folder / "dataset.json").read_text())
    (folder / "fold" / "two.json").write_text(json.dumps({"test": both["training"] + both["validation"]}))
    trainer = mmar_trainer(tmp_path / "mmar", dataset_dir=folder)
    evaluated = trainer.evaluate(Weights(trainer.spec, lambda: iter(list(trainer.initial()))), control())
    assert evaluated.examples == 2
    assert 0 <= evaluated.metrics["val_mean_dice"] <= 1
    assert "val_acc" not in evaluated.metrics


def test_references_and_expressions_of_4_1(tmp_path: Path) -> None:
    changes = put(
        train__optimizer__args={"params": "#@model.parameters()", "lr": 0.5},
        train__lr_scheduler__args__optimizer="@optimizer",
        train__handlers__1__args__lr_scheduler="@lr_scheduler",
        CLARA_TRAIN_VERSION="4.1",
    )
    found = config_of(converted(tmp_path, changes))
    assert found["optimizer"] == {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.5}
    assert found["lr_scheduler"]["optimizer"] == "@optimizer"


@pytest.mark.parametrize("name", ["LoadNiftid", "LoadNifti"])
def test_the_canonical_orientation_is_asked_of_the_reader_that_knows_it(tmp_path: Path, name: str) -> None:
    step = mmars.step(name, keys=mmars.BOTH, as_closest_canonical=True)
    found = config_of(converted(tmp_path, put(train__pre_transforms__0=step, validate__pre_transforms__0=step)))
    load = {"_target_": "LoadImaged", "keys": mmars.BOTH, "as_closest_canonical": True, "reader": "NibabelReader"}
    assert found["train"]["preprocessing"]["transforms"][0] == load
    folder = bundles.volumes(tmp_path / "data", 2)
    trainer = mmar_trainer(tmp_path / "mmar", dataset_dir=folder)
    assert trainer.train(Weights(trainer.spec, lambda: iter(list(trainer.initial()))), control()).steps == 1


def images(tmp_path: Path) -> Path:
    folder = bundles.volumes(tmp_path / "data", 2)
    listed = json.loads((folder / "dataset.json").read_text())
    listed["test"] = ["images/case1.nii.gz"]
    (folder / "dataset.json").write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize("own", [False, True])
def test_inference_runs_without_labels_and_goes_back_to_the_original_image(tmp_path: Path, own: bool) -> None:
    spleen = mmars.spleen_config()
    steps = mmars.step("Spacingd", keys=mmars.BOTH, pixdim=[2.0, 2.0, 2.0], mode=["bilinear", "nearest"])
    spleen["validate"]["pre_transforms"].append(steps)
    more: dict[str, Any] = {}
    if own:
        load = [mmars.step("LoadImaged", keys="image"), mmars.step("AddChanneld", keys="image")]
        post = [mmars.step("AsDiscreted", keys="pred", argmax=True), mmars.step("SaveImaged", keys="pred")]
        same = {name: spleen["validate"][name] for name in ("dataloader", "inferer", "evaluator")}
        more["inference"] = {**same, "pre_transforms": load, "post_transforms": post, "dataset": mmars.data("test")}
    write(convert_mmar(mmars.write(tmp_path / "mmar", spleen, **more)), tmp_path / "bundle")
    network = bundle_network(tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle" / "configs" / "inference.json"))
    out = tmp_path / "out"
    parser.update({"dataset_dir": str(images(tmp_path)), "output_dir": str(out), "device": "$torch.device('cpu')"})
    parser.get_parsed_content("network").load_state_dict(network.state_dict())
    parser.get_parsed_content("run")
    (found,) = out.rglob("*.nii.gz")
    assert nibabel.load(found).shape == (bundles.SIZE,) * 3


def test_the_site_infers_from_a_folder_without_a_list(tmp_path: Path) -> None:
    write(convert_mmar(mmars.write(tmp_path / "mmar", mmars.spleen_config())), tmp_path / "bundle")
    spec, payload = spec_and_payload(bundle_network(tmp_path / "bundle"))
    records = list(payload)
    folder = bundles.volumes(tmp_path / "data", 2) / "images"
    inference = BundleInference(tmp_path / "bundle", images=folder, output=tmp_path / "out")
    inference.run(Weights(spec, records.__iter__))
    assert inference.count == len(list((tmp_path / "out").rglob("*.nii.gz"))) == 2


def test_trained_weights_are_found_as_clara_saved_them(tmp_path: Path) -> None:
    root = mmars.write(tmp_path / "mmar", {**mmars.spleen_config(), "dont_load_ckpt_model": False})
    write(convert_mmar(root), tmp_path / "bundle")
    network = bundle_network(tmp_path / "bundle", seed=3)
    assert pretrained(root, read_mmar(root))[0] is None
    (root / "models").mkdir()
    torch.save({"model": network.state_dict(), "train_conf": {"epochs": 3}}, root / "models" / "model.pt")
    weights, notes = pretrained(root, read_mmar(root))
    assert notes == []
    assert weights is not None
    given = bundle_network(tmp_path / "bundle", weights=weights)
    assert all(torch.equal(given.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    scratch = read_mmar(root, given={"dont_load_ckpt_model": True, "PRETRAIN_WEIGHTS_FILE": "{MMAR_CKPT_DIR}/x.ckpt"})
    weights, notes = pretrained(root, scratch)
    assert weights is None
    assert [note.what for note in notes] == ["PRETRAIN_WEIGHTS_FILE"]
    assert notes[0].why.startswith("models/x.ckpt is no file of torch's")


def test_a_folder_is_an_mmar_or_it_is_not(tmp_path: Path) -> None:
    assert is_mmar(mmars.write(tmp_path / "mmar", mmars.spleen_config()))
    assert not is_mmar(bundles.spleen(tmp_path / "bundle"))
    with pytest.raises(ConfigError, match=r"no MMAR: config/config_train\.json is not there"):
        convert_mmar(tmp_path)
    with pytest.raises(ConfigError, match=r"config_finetune\.json is not there"):
        convert_mmar(tmp_path / "mmar", config="config_finetune.json")
    with pytest.raises(ConfigError, match="is no file name"):
        convert_mmar(tmp_path / "mmar", config="../config_train.json")


# ---- what is wrong


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put(train__model__name="UNett"), r"train model: UNett is unknown here; the nearest are .*\bUNet\b"),
        (put(train__loss__name="Qqqqqqqq"), "Qqqqqqqq is unknown here; nothing of MONAI's reads like it"),
        (put(train__model__name="SegResNetVAE"), "SegResNetVAE has no equal here; use SegResNet"),
        (put(train__loss__name="../../loss"), r"train loss: name is '../../loss'; it has to be the name of a class"),
        (put(train__loss={"path": "os.system"}), "os.system is neither in the MMAR's custom folder nor in MONAI"),
        (put(train__loss={"path": "../x"}), "path is '../x'"),
        (put(train__loss={"path": "medl.losses.Own"}), "Own is unknown here"),
        (put(train__loss=[]), "train loss is missing"),
        (put(train__loss=3), "train loss is a int"),
        (put(train__loss__args=[1]), "args is a list"),
        (put(train__loss__args__sharpness=1), "DiceLoss takes no sharpness today"),
        (put(train__loss__disabled="perhaps"), "disabled is 'perhaps'"),
        (put(train={}), "model is missing"),
        (put(train=None), "train is missing"),
        (put(train__dataset=None), "train dataset is missing"),
        (put(train__pre_transforms={}), "pre_transforms is a dict"),
        (put(train__optimizer__args__lr="{rate}"), r"\{rate\} stands for nothing; set rate in environment.json"),
        (put(learning_rate="{learning_rate}"), "stands for itself"),
        (put(epochs=0, train__trainer__args={}), "epochs is 0"),
        (put(epochs=True), "epochs is True"),
        (put(amp="yes"), "amp is 'yes'"),
        (put(determinism={"random_seed": -1}), "random_seed is -1"),
        (put(validate__pre_transforms=[{"ref": "Nobody"}]), "refers to 'Nobody'"),
        (put(train__lr_scheduler=None), "LrScheduleHandler needs train lr_scheduler"),
        (put(train__dataset__data_list_key="x', '@y"), "data_list_key is"),
        (put(train__dataset__data_list_file_path="../x"), "data_list_file_path is '../x'"),
        (put(train__dataset__data_file_base_dir="{DATA_ROOT}/../x"), "data_file_base_dir is '../x'"),
        (put(train__key_metric__log_label="a#b"), "log_label is 'a#b'"),
        (put(train__loss__args__reduction="$exit()"), "a bundle takes '\\$exit\\(\\)' for code"),
        (put(train__loss__args__reduction="%train"), "a bundle takes '%train' for code"),
        (put(train__loss__args__reduction="@nobody"), "@nobody refers to nothing here"),
        (put(train__loss__args__reduction="{DATA_ROOT}/../x"), "leads out of its folder"),
        (put(train__loss__args__weight={"_target_": "os.system"}), "takes the name '_target_' for something else"),
        (put(train__loss__args__weight=[{"a#b": 1}]), "takes the name 'a#b' for something else"),
    ],
)
def test_what_is_wrong_is_one_clear_sentence(tmp_path: Path, change: Change, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as raised:
        converted(tmp_path, change)
    assert "\n" not in str(raised.value)


def test_a_schedule_that_is_disabled_takes_its_handler_with_it(tmp_path: Path) -> None:
    conversion = converted(tmp_path, put(train__lr_scheduler__disabled="true"))
    assert told(conversion, NoteKind.LEFT_OUT)["train handlers LrScheduleHandler"] == "there is no schedule"
    assert "lr_scheduler" not in config_of(conversion)
    assert "LrScheduleHandler" not in str(config_of(conversion))


def test_everything_that_has_no_equal_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mmar cannot be translated: .*Focal.*SegmentationSaver") as raised:
        converted(tmp_path, put(train__loss={"name": "Focal"}, train__handlers=[{"name": "SegmentationSaver"}]))
    assert str(raised.value).count("has no equal") == 2


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        (mmars.environment(DATASET_JSON=None), "DATASET_JSON is missing"),
        (mmars.environment(DATASET_JSON="../../list.json"), "DATASET_JSON is '../../list.json'"),
        (
            mmars.environment(DATASET_JSON="/claraDevDay/Data/task/$exit()"),
            r"DATASET_JSON is '/claraDevDay/Data/task/\$",
        ),
        (mmars.environment(DATASET_JSON="/elsewhere/$exit()"), r"DATASET_JSON is '/elsewhere/\$"),
        (mmars.environment(DATASET_JSON="a@train"), "DATASET_JSON is 'a@train'"),
        (mmars.environment(DATASET_JSON="/elsewhere/"), "DATASET_JSON is '/elsewhere/'"),
        (mmars.environment(PROCESSING_TASK="annotation"), "PROCESSING_TASK is 'annotation'"),
        (mmars.environment(VAL_DATALIST_KEY=None), "VAL_DATALIST_KEY} stands for nothing"),
    ],
)
def test_a_wrong_environment_is_named(tmp_path: Path, variables: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        converted(tmp_path, variables=variables)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no valid JSON"),
        ("[1]", "holds a list"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", "is nested deeper than"),
        ("[" * 100_000, "is no valid JSON"),
        (" " * (1024 * 1024 + 1), "is larger than 1024 KiB"),
    ],
)
def test_a_damaged_or_absurd_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    root = mmars.write(tmp_path / "mmar", mmars.spleen_config())
    (root / "config" / "environment.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        convert_mmar(root)


def test_code_that_cannot_travel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"custom/__init__\.py holds code; move it into a module"):
        converted(tmp_path, files={"custom/__init__.py": "import net"})
    (tmp_path / "mmar" / "custom" / "__init__.py").write_text('"""Nothing."""\n')
    (tmp_path / "mmar" / "custom" / "link.py").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"link\.py is no plain file"):
        convert_mmar(tmp_path / "mmar")


def test_a_used_folder_is_left_alone(tmp_path: Path) -> None:
    conversion = converted(tmp_path)
    with pytest.raises(ConfigError, match="is not empty"):
        write(conversion, tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be written|Not a directory|File exists"):
        write(conversion, tmp_path / "mmar" / "config" / "environment.json")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put(train__aux_ops=[{"name": "X"}]), "aux_ops has no equal here"),
        (put(train__image_pipeline=None), "image_pipeline is missing"),
        (put(train__lr_policy__name="ReducePoly"), "use PolynomialLR"),
        (put(train__pre_transforms__4=mmars.step("RandomRotate3D")), "use RandRotated"),
    ],
)
def test_what_3_1_had_and_monai_has_not_is_refused(tmp_path: Path, change: Change, text: str) -> None:
    config = mmars.older_config()
    change(config)
    with pytest.raises(ConfigError, match=text):
        convert_mmar(mmars.write(tmp_path / "mmar", config, mmars.environment(PRETRAIN_WEIGHTS_FILE="")))


def test_3_1_becomes_today(tmp_path: Path) -> None:
    root = mmars.write(tmp_path / "mmar", mmars.older_config(), mmars.environment(PRETRAIN_WEIGHTS_FILE=""))
    found = config_of(convert_mmar(root))
    assert found["network_def"] == {"_target_": "AHNet", "out_channels": 2, "psp_block_num": 0, "spatial_dims": 2}
    assert found["loss"] == {"_target_": "DiceLoss", "to_onehot_y": True, "softmax": True}
    adam = {"lr": 1e-3, "eps": 1e-7, "betas": [0.9, 0.999]}
    assert found["optimizer"] == {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", **adam}
    assert found["lr_scheduler"]["step_size"] == 50000
    assert found["train"]["dataloader"]["batch_size"] == 1
    handlers = {handler["_target_"]: handler for handler in found["train"]["handlers"]}
    assert handlers["LrScheduleHandler"]["epoch_level"] is False
    assert handlers["ValidationHandler"]["interval"] == 20
    assert found["validate"]["inferer"] == {"_target_": "SlidingWindowInferer", "roi_size": [32, 32]}
    assert found["validate"]["key_metric"].keys() == {"mean_dice"}


# ---- whatever stands there

EVIL = "$__import__('os').abort()"


def test_no_value_becomes_code_wherever_it_stands() -> None:
    config, variables = mmars.spleen_config(), mmars.environment()
    whole = Mmar("mmar", config, variables, None, None, None, None, {}, {})
    kept = 0
    for changed in mmars.everywhere(config, EVIL):
        kept += harmless(replace(whole, train=changed))
    for name, value in variables.items():
        for evil in (EVIL, f"{value}/{EVIL}", f"/elsewhere/{EVIL}", f"@{EVIL}", f"%{EVIL}"):
            kept += harmless(replace(whole, environment={**variables, name: evil}))
    assert kept > 20


def harmless(mmar: Mmar) -> bool:
    """Whether an MMAR is translated; no text of the bundle then begins with what it brought."""
    try:
        bundle = translate(mmar, Installed())
    except ConfigError:
        return False
    for config in (bundle.train, bundle.evaluate, bundle.inference or {}):
        values = [config]
        for value in values:
            values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
            if isinstance(value, str) and "abort" in value:
                assert value[0] not in "$@%"
    return True


JUNK: list[Any] = [None, 3, "$x", [], [None], {"a": 1}, {"ref": []}]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize(
    ("config", "task"),
    [
        (mmars.spleen_config(), "segmentation"),
        (mmars.film_config(), "classification"),
        (mmars.older_config(), "segmentation"),
    ],
    ids=["4.0", "film", "3.1"],
)
def test_junk_anywhere_is_refused_in_our_words_or_harmless(config: dict[str, Any], task: str, junk: Any) -> None:
    variables = mmars.environment(task, PRETRAIN_WEIGHTS_FILE="")
    whole = Mmar("mmar", config, variables, None, None, None, None, {}, {})
    assert translate(whole, Installed()).train
    for changed in mmars.everywhere(config, junk):
        with contextlib.suppress(ConfigError):
            translate(replace(whole, train=changed), Installed())
    for name in variables:
        with contextlib.suppress(ConfigError):
            translate(replace(whole, environment={**variables, name: junk}), Installed())


def test_automls_handlers_among_those_of_a_training_are_left_out(tmp_path: Path) -> None:
    handler = {"name": "MMARHandler", "args": {}}
    conversion = converted(tmp_path, put(validate__handlers=[handler]))
    assert told(conversion, NoteKind.LEFT_OUT)["validate handlers MMARHandler"].startswith(
        "AutoML is no part of a training"
    )
