"""Small Clara MMARs in the described shapes: CT segmentation (4.0 and 3.1) and X-ray classification (4.0)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support import monai_bundles as bundles

BOTH = ["image", "label"]
PICK = "lambda x: (x['pred'], x['label'])"
LOSS = "lambda x: x['loss']"


def environment(task: str = "segmentation", **changes: Any) -> dict[str, Any]:
    """What Clara's environment.json says; a change to None leaves a variable out."""
    found = {
        "DATA_ROOT": "/claraDevDay/Data/task",
        "DATASET_JSON": "/claraDevDay/Data/task/dataset.json",
        "PROCESSING_TASK": task,
        "MMAR_EVAL_OUTPUT_PATH": "eval",
        "MMAR_CKPT_DIR": "models",
        "MMAR_CKPT": "models/model.pt",
        "TRAIN_DATALIST_KEY": "training",
        "VAL_DATALIST_KEY": "validation",
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None}


def step(name: str, **args: Any) -> dict[str, Any]:
    """A component by name."""
    return {"name": name, "args": args}


def data(key: str) -> dict[str, Any]:
    """A dataset of 4.0."""
    return {
        "name": "CacheDataset",
        "data_list_file_path": "{DATASET_JSON}",
        "data_file_base_dir": "{DATA_ROOT}",
        "data_list_key": key,
        "args": {"cache_rate": 1.0, "num_workers": 1},
    }


def spleen_config() -> dict[str, Any]:
    """The training of the admin MMAR: UNet on CT, with everything that 4.0 writes around it."""
    post = [
        step("Activationsd", keys="pred", softmax=True),
        step("AsDiscreted", keys=BOTH_PRED, argmax=[True, False], to_onehot=True, n_classes=2),
    ]
    loader = {"batch_size": 2, "shuffle": True, "num_workers": 0}
    handlers = [
        {"name": "CheckpointLoader", "disabled": "{dont_load_ckpt_model}", "args": {"load_path": "{MMAR_CKPT}"}},
        step("LrScheduleHandler", print_lr=False),
        step("ValidationHandler", interval="{num_interval_per_valid}", epoch_level=True),
        {"name": "StatsHandler", "rank": 0, "args": {"tag_name": "train_loss", "output_transform": LOSS}},
        {
            "name": "TensorBoardStatsHandler",
            "rank": 0,
            "args": {"log_dir": "{MMAR_CKPT_DIR}", "tag_name": "train_loss", "output_transform": LOSS},
        },
    ]
    network = step(
        "UNet",
        dimensions=3,
        in_channels=1,
        out_channels=2,
        channels=[4, 8],
        strides=[2],
        num_res_units=1,
        norm="batch",
    )
    crop = step("RandCropByPosNegLabeld", keys=BOTH, label_key="label", size="{roi}", pos=1, neg=1, num_samples=2)
    accuracy = {"name": "Accuracy", "log_label": "train_acc", "args": {"output_transform": PICK}}
    dice = step("MeanDice", include_background=False, output_transform=PICK)
    window = step("SlidingWindowInferer", roi_size=[8, 8, 8], sw_batch_size=4, overlap=0.25)
    saver = {"save_dir": "{MMAR_CKPT_DIR}", "save_dict": ["model", "train_conf"], "save_key_metric": True}
    return {
        "epochs": 1250,
        "num_interval_per_valid": 20,
        "learning_rate": 0.01,
        "multi_gpu": False,
        "amp": True,
        "tf32": False,
        "determinism": {"random_seed": 0},
        "cudnn_benchmark": False,
        "dont_load_ckpt_model": True,
        "roi": [8, 8, 8],
        "train": {
            "loss": step("DiceLoss", to_onehot_y=True, softmax=True),
            "optimizer": step("Adam", lr="{learning_rate}"),
            "lr_scheduler": step("StepLR", step_size=5000, gamma=0.1),
            "model": network,
            "pre_transforms": [
                step("LoadImaged", keys=BOTH),
                step("AddChanneld", keys=BOTH),
                {"name": "ScaleIntensityRanged#window", "args": CT},
                crop,
                {"name": "RandRotate90d", "disabled": True, "args": {"keys": BOTH, "prob": 0.5}},
                step("RandShiftIntensityd", keys="image", offsets=0.1, prob=0.5),
                step("ToTensord", keys=BOTH),
            ],
            "dataset": data("{TRAIN_DATALIST_KEY}"),
            "dataloader": {"name": "DataLoader", "args": loader},
            "inferer": {"name": "SimpleInferer"},
            "handlers": handlers,
            "post_transforms": post,
            "key_metric": accuracy,
            "trainer": step("SupervisedTrainer", max_epochs="{epochs}"),
        },
        "validate": {
            "pre_transforms": [{"ref": name} for name in ("LoadImaged", "AddChanneld", "ScaleIntensityRanged#window")]
            + [{"ref": "ToTensord"}],
            "dataset": data("{VAL_DATALIST_KEY}"),
            "dataloader": step("DataLoader", batch_size=1, num_workers=0),
            "inferer": window,
            "handlers": [step("StatsHandler", output_transform="lambda x: None"), step("CheckpointSaver", **saver)],
            "post_transforms": [{"ref": "Activationsd"}, {"ref": "AsDiscreted"}],
            "key_metric": {**dice, "log_label": "val_mean_dice"},
            "additional_metrics": [{**accuracy, "log_label": "val_acc"}],
            "evaluator": {"name": "SupervisedEvaluator"},
        },
    }


BOTH_PRED = ["pred", "label"]
CT = {"keys": "image", "a_min": -0.5, "a_max": 1.5, "b_min": 0.0, "b_max": 1.0, "clip": True}


def film_config() -> dict[str, Any]:
    """The X-ray training: DenseNet121 of several findings, by ROC."""
    auc = step("ROCAUC", average="macro", output_transform=PICK)
    before = [
        step("LoadImaged", keys="image"),
        step("AddChanneld", keys="image"),
        step("Resized", keys="image", spatial_size=[32, 32]),
        step("ScaleIntensityd", keys="image"),
    ]
    network = step("DenseNet121", dimensions=2, in_channels=1, out_channels=2, pretrained=True)
    network["args"] |= {"init_features": 8, "growth_rate": 4, "block_config": [2, 2], "bn_size": 2}
    labels = step("EnsureTyped", keys="label", dtype="#torch.float32")
    last = [step("Activationsd", keys="pred", sigmoid=True)]
    return {
        "epochs": 40,
        "learning_rate": 0.01,
        "amp": False,
        "train": {
            "loss": step("BCEWithLogitsLoss"),
            "optimizer": step("Adam", lr="{learning_rate}"),
            "model": network,
            "pre_transforms": [*before, step("RandFlipd", keys="image", prob=0.5, spatial_axis=1), labels],
            "dataset": data("training"),
            "dataloader": step("DataLoader", batch_size=4, shuffle=True, num_workers=0),
            "inferer": {"name": "SimpleInferer"},
            "handlers": [step("StatsHandler", tag_name="train_loss")],
            "post_transforms": last,
            "key_metric": {**auc, "log_label": "Train_AUC"},
            "trainer": step("SupervisedTrainer", max_epochs="{epochs}"),
        },
        "validate": {
            "pre_transforms": [*before, labels],
            "dataset": data("validation"),
            "dataloader": step("DataLoader", batch_size=4, shuffle=False, num_workers=0),
            "inferer": {"name": "SimpleInferer"},
            "post_transforms": last,
            "key_metric": {**auc, "log_label": "Average_AUC"},
            "evaluator": {"name": "SupervisedEvaluator"},
        },
    }


def older_config() -> dict[str, Any]:
    """A training of 3.1: fields instead of keys, an image pipeline, the final activation in the network."""
    lists = {"data_list_file_path": "{DATASET_JSON}", "data_file_base_dir": "{DATA_ROOT}"}
    sizes = {"output_crop_size": [32, 32, 32], "output_batch_size": 2, "num_workers": 0, "prefetch_size": 4}
    both = {"fields": BOTH}
    before = [
        step("LoadNifti", **both),
        step("ConvertToChannelsFirst", **both),
        step("ScaleIntensityRange", field="image", a_min=-0.5, a_max=1.5, b_min=0.0, b_max=1.0, clip=True),
    ]
    crop = {"size": [32, 32, 32], "label_field": "label", "pos": 1, "neg": 1, "batch_size": 2}
    window = step("TRTScanWindowInferer", roi=[32, 32, 32])
    network = {"num_classes": 2, "if_use_psp": False, "plane": "z", "final_activation": "softmax", "n_spatial_dim": 2}
    dice = {"name": "mean_dice", "is_key_metric": True, "field": "model", "label_field": "label"}
    return {
        "epochs": 1250,
        "num_training_epoch_per_valid": 20,
        "learning_rate": 1e-3,
        "use_amp": True,
        "multi_gpu": False,
        "dynamic_input_shape": True,
        "train": {
            "loss": {"name": "Dice"},
            "optimizer": {"name": "Adam", "args": {"epsilon": 1e-7, "beta1": 0.9}},
            "lr_policy": step("DecayLRonStep", decay_ratio=0.1, decay_freq=50000),
            "model": {"name": "SegmAhnet3D", "args": {**network, "pretrain_weight_name": "{PRETRAIN_WEIGHTS_FILE}"}},
            "pre_transforms": [
                *before,
                step("FastCropByPosNegRatio", **both, **{**crop, "size": [32, 32]}),
                step("RandomAxisFlip", **both, probability=0.5),
                step("ScaleIntensityOscillation", field="image", magnitude=0.1),
            ],
            "image_pipeline": {
                "name": "SegmentationImagePipelineWithCache",
                "args": {**lists, **sizes, "data_list_key": "training", "batched_by_transforms": True},
            },
        },
        "validate": {
            "metrics": [{"name": "ComputeAverageDice", "args": dice}],
            "pre_transforms": [{"ref": "LoadNifti"}, {"ref": "ConvertToChannelsFirst"}, {"ref": "ScaleIntensityRange"}],
            "image_pipeline": {"name": "SegmentationImagePipeline", "args": {**lists, "data_list_key": "validation"}},
            "inferer": {**window, "args": {"roi": [32, 32]}},
        },
    }


def write(
    folder: Path,
    train: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    **configs: Mapping[str, Any],
) -> Path:
    """An MMAR's folder: more files by name, more configurations by what stands in `config_….json`."""
    (folder / "config").mkdir(parents=True)
    for name, config in {"train": train, **configs}.items():
        (folder / "config" / f"config_{name}.json").write_text(json.dumps(config))
    told = environment() if variables is None else variables
    (folder / "config" / "environment.json").write_text(json.dumps(told))
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def own(folder: Path) -> Path:
    """The CT training with a network of its own, in two modules of `custom`."""
    config = spleen_config()
    config["train"]["model"] = {"path": "net.OwnNet", "args": {"width": 4}}
    return write(
        folder, config, files={"custom/net.py": bundles.NET.replace("scripts.", ""), "custom/parts.py": bundles.BLOCK}
    )


def films(folder: Path) -> Path:
    """Pictures with a datalist of two findings each."""
    bundles.pictures(folder, 10)
    listed = [
        {"image": str(path.relative_to(folder)), "label": [index % 2, 1] if index < 8 else [index % 2, 0]}
        for index, path in enumerate(sorted(folder.rglob("*.png"), key=lambda path: path.name))
    ]
    (folder / "dataset.json").write_text(json.dumps({"training": listed, "validation": listed[6:]}))
    return folder


def slices(folder: Path) -> Path:
    """Slices of 32 × 32 with a bright block, as NIfTI of two dimensions."""
    import nibabel
    import numpy as np

    dice = np.random.default_rng(0)
    listed = []
    folder.mkdir()
    for index in range(4):
        label = np.zeros((32, 32), np.uint8)
        label[4 + index : 20 + index, 6:22] = 1
        image = (dice.normal(0, 0.2, (32, 32)) + label).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"image{index}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / f"label{index}.nii.gz")
        listed.append({"image": f"image{index}.nii.gz", "label": f"label{index}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"training": listed[:-1], "validation": listed[-1:]}))
    return folder


OLD_SERVER = {
    "servers": [
        {
            "name": "covid",
            "service": {"target": "fl.example.org:8002", "options": [["grpc.max_send_message_length", 1]]},
            "ssl_private_key": "resources/certs/server.key",
            "ssl_cert": "resources/certs/server.crt",
            "ssl_root_cert": "resources/certs/rootCA.pem",
            "min_num_clients": 2,
            "max_num_clients": 100,
            "wait_after_min_clients": 10,
            "heart_beat_timeout": 600,
            "start_round": 0,
            "num_rounds": 200,
            "exclude_vars": "dummy",
            "num_server_workers": 100,
            "validate_on_server": False,
            "num_rounds_per_valid": 1,
            "compression": "Gzip",
        }
    ],
    "aggregator": step("ModelAggregator", exclude_vars="dummy", aggregation_weights={"site-a": 1.5, "site-b": 1}),
    "pre_processors": [{"name": "ModelEncryptor", "args": {}}, {"name": "DataCompressor", "args": {}}],
    "post_processors": [{"name": "DataDeCompressor", "args": {}}, {"name": "ModelDecryptor", "args": {}}],
    "model_saver": step("TFModelSaver", exclude_vars="dummy"),
    "admin_cmd_modules": [{"name": "TrainingCommandModule"}, {"name": "ShellCommandModule"}],
    "result_processors": [{"name": "ValidateResultProcessor"}],
}
OLD_CLIENT = {
    "servers": [{"name": "covid", "service": {}}],
    "client": {
        "local_epochs": 5,
        "steps_aggregation": 0,
        "exclude_vars": "^conv_(a|b)",
        "cross_site_validate": True,
        "my_rank": 0,
        "privacy": step("LaplacianProtocol", fraction=50, epsilon=2.0),
        "pre_processors": [step("IteratorNumberGenerator", field="n_iter")],
        "req_processors": [{"name": "StartClientProcessor"}, {"name": "SysInfoProcessor"}],
        "model_reader_writer": {"name": "TFModelReaderWriter"},
        "model_validator": {"name": "TFModelValidator"},
        "retry_timeout": 30,
    },
}
SERVER = {
    "format_version": 1,
    "servers": [{"name": "spleen", "min_num_clients": 3, "wait_after_min_clients": 30, "num_rounds": 60}],
    "aggregator": step(
        "InTimeAccumulateWeightedAggregator", exclude_vars="dummy", aggregation_weights={"site-a": 1, "site-b": 1.0}
    ),
    "outbound_filters": [],
    "inbound_filters": [],
    "model_persistor": step("PTFileModelPersistor", exclude_vars="dummy", model=step("UNet", dimensions=3)),
    "shareable_generator": {"name": "FullModelShareableGenerator"},
    "handlers": [{"path": "nvflare.app_common.handlers.IntimeModelSelectionHandler"}],
}
CLIENT = {
    "format_version": 1,
    "servers": [{"name": "spleen"}],
    "client": {
        "outbound_filters": [
            step("ExcludeVars", exclude_vars=["model.0.conv.unit0.adn.N.weight"]),
            step("PercentilePrivacy", percentile=75, gamma=50),
        ],
        "inbound_filters": [],
    },
    "client_trainer": {
        "path": "medl.apps.fed_learn.trainers.client_trainer.ClientTrainer",
        "args": {"local_epochs": 2, "steps_aggregation": 7, "model_reader_writer": {"name": "PTModelReaderWriter"}},
    },
    "cross_validate": True,
    "cross_site_validation": {"is_participating": True},
}


def everywhere(config: Any, value: Any) -> Iterator[Any]:
    """Copies of a configuration, each with `value` in another place, all the way down."""
    for *above, last in _places(config):
        changed = copy.deepcopy(config)
        place: Any = changed
        for step in above:
            place = place[step]
        place[last] = value
        yield changed


def _places(config: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for step, value in items:
        yield (*above, step)
        yield from _places(value, (*above, step))
