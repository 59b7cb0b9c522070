"""A training configuration of Clara 3.1 in the shape of 4.0: an image pipeline is a dataset and a loader, and so on.

Names stay 3.1's; the table of names knows both. Networks of 3.1 ended in an activation; MONAI has it in the loss and in
the post transforms.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.errors import ConfigError
from worker.mmar.entries import Note, NoteKind
from worker.mmar.values import Config, listed, mapping

_PIPELINE = {
    "output_crop_size": "the transforms crop",
    "prefetch_size": "the loader decides it",
    "sampling": "the loader shuffles",
    "num_prefetch_batches": "the loader decides it",
    "replace_percent": "the whole training set is cached",
}
_LISTS = ("data_list_file_path", "data_file_base_dir", "data_list_key")
_CACHES = {"num_cache_objects": "cache_num"}
_ON_PROBABILITIES = ("Dice",)
_TOP = {"use_amp": "amp", "num_training_epoch_per_valid": "num_interval_per_valid"}


def is_older(config: Mapping[str, object]) -> bool:
    """Whether a configuration has the shape of Clara 3.1."""
    train = config.get("train")
    return isinstance(train, dict) and ("image_pipeline" in train or "lr_policy" in train)


def modern(config: Mapping[str, object], *, segments: bool) -> tuple[Config, list[Note]]:
    """The same in the shape of 4.0, with what was left out on the way.

    Args:
        segments: whether labels are images.

    Raises:
        ConfigError: a part is missing or is none.
    """
    notes: list[Note] = []
    train, validate = _part(config, "train"), mapping(config.get("validate"), "validate")
    if train.get("aux_ops"):
        raise ConfigError("train aux_ops has no equal here; put what it does into the loss, as a class in custom/")
    network = _args(_part(train, "model"), "model")
    ending = network.get("final_activation", "softmax" if segments else "")
    classes = network.get("num_classes", 2)
    post = _post(ending, classes) if segments else _activated(ending)
    top = {_TOP.get(name, name): value for name, value in config.items() if name not in ("train", "validate")}
    interval = top.pop("num_interval_per_valid", 1)
    found: Config = {
        **top,
        "train": {
            **{name: train.get(name) for name in ("model", "inferer") if train.get(name)},
            "loss": _loss(_part(train, "loss"), ending),
            "optimizer": _with(_part(train, "optimizer"), lr=top.get("learning_rate")),
            "pre_transforms": _transforms(train.get("pre_transforms"), segments),
            **_loading(train, notes, training=True),
            "handlers": [
                *listed(train.get("handlers"), "handlers"),
                {"name": "ValidationHandler", "args": {"interval": interval}},
            ],
            "post_transforms": post,
            "trainer": {"name": "SupervisedTrainer"},
        },
    }
    if train.get("lr_policy"):
        found["train"]["lr_scheduler"] = train["lr_policy"]
        found["train"]["handlers"].append({"name": "LrScheduleHandler", "args": {"epoch_level": False}})
    if validate:
        found["validate"] = {
            **{name: validate[name] for name in ("inferer",) if name in validate},
            "pre_transforms": _transforms(validate.get("pre_transforms"), segments),
            **_loading(validate, notes, training=False),
            "post_transforms": post,
            **_metrics(validate.get("metrics")),
            "evaluator": {"name": "SupervisedEvaluator"},
        }
    return found, notes


def _part(config: Mapping[str, object], name: str) -> Config:
    if not config.get(name):
        raise ConfigError(f"{name} is missing from the training configuration; an MMAR of Clara 3.1 has it in train")
    return mapping(config[name], name)


def _args(component: Mapping[str, object], where: str) -> Config:
    return mapping(component.get("args"), f"{where} args")


def _with(component: Config, **more: object) -> Config:
    given = {name: value for name, value in more.items() if value is not None}
    return {**component, "args": {**given, **_args(component, str(component.get("name")))}}


def _loss(loss: Config, ending: str) -> Config:
    if loss.get("name") not in _ON_PROBABILITIES or ending not in ("softmax", "sigmoid"):
        return loss
    return _with(loss, **{ending: True, **({"to_onehot_y": False} if ending == "sigmoid" else {})})


def _activated(ending: str) -> list[Config]:
    if ending not in ("softmax", "sigmoid"):
        return []
    return [{"name": "Activationsd", "args": {"keys": "pred", ending: True}}]


def _post(ending: str, classes: object) -> list[Config]:
    both = {"keys": ["pred", "label"], "argmax": [True, False], "to_onehot": [classes, classes]}
    apart = {"keys": "pred", "threshold": 0.5} if ending == "sigmoid" else both
    return [*_activated(ending), {"name": "AsDiscreted", "args": apart}]


def _transforms(transforms: object, segments: bool) -> list[object]:
    """Labels of whole images are numbers for the loss; 3.1 made them so by itself."""
    given = listed(transforms, "pre_transforms")
    if segments or not given:
        return given
    return [*given, {"name": "EnsureTyped", "args": {"keys": "label", "dtype": "#torch.float32"}}]


def _loading(part: Mapping[str, object], notes: list[Note], *, training: bool) -> Config:
    """Dataset and loader of an image pipeline."""
    where = "train" if training else "validate"
    pipeline = _part(part, "image_pipeline")
    args = dict(_args(pipeline, f"{where} image_pipeline"))
    lists = {name: args.pop(name) for name in _LISTS if name in args}
    size = args.pop("output_batch_size", 1)
    if args.pop("batched_by_transforms", False):
        size = 1  # the crops of one image are the batch
    workers = args.pop("num_workers", 0)
    for name in [name for name in _PIPELINE if name in args]:
        del args[name]
        notes.append(Note(NoteKind.LEFT_OUT, f"{where} image_pipeline {name}", _PIPELINE[name]))
    args = {_CACHES.get(name, name): value for name, value in args.items()}
    loader = {"batch_size": size if training else 1, "shuffle": training, "num_workers": workers}
    return {"dataset": {**pipeline, **lists, "args": args}, "dataloader": {"name": "DataLoader", "args": loader}}


def _metrics(metrics: object) -> Config:
    """The key metric is the one that says so, or the first."""
    found = []
    for each in listed(metrics, "validate metrics"):
        metric = mapping(each, "validate metrics")
        args = _args(metric, "validate metrics")
        found.append((bool(args.get("is_key_metric")), {**metric, "log_label": args.get("name", metric.get("name"))}))
    key = next((metric for is_key, metric in found if is_key), found[0][1] if found else None)
    if key is None:
        return {}
    return {"key_metric": key, "additional_metrics": [metric for _, metric in found if metric is not key]}
