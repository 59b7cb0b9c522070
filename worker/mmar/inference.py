"""Validation without labels: how a bundle applies its network to images, where an MMAR does not say it."""

from __future__ import annotations

from collections.abc import Sequence

from worker.mmar.values import Config

_FOR_EACH_KEY = frozenset(
    {"mode", "padding_mode", "align_corners", "dtype", "argmax", "to_onehot", "threshold", "rounding", "sigmoid"}
    | {"softmax", "meta_keys", "orig_keys", "channel_dim"}
)
"""Arguments that may hold one value for each key."""
_SPREAD = "to_onehot"
"""Makes a channel of each label, for metrics."""
_NEEDS_LABELS = ("label_key", "source_key")


def without_labels(steps: Sequence[Config]) -> list[Config]:
    """Transforms of everything but the key `label`; those that need labels are gone."""
    found = []
    for step in steps:
        keys = step.get("keys", [])
        listed = keys if isinstance(keys, list) else [keys]
        kept = [index for index, key in enumerate(listed) if key != "label"]
        if any(step.get(name) == "label" for name in _NEEDS_LABELS) or (listed and not kept):
            continue
        if len(kept) < len(listed):
            step = {name: _chosen(name, value, kept, len(listed)) for name, value in step.items()}
        found.append(step)
    return found


def _chosen(name: str, value: object, kept: Sequence[int], count: int) -> object:
    if isinstance(value, list) and (name == "keys" or (name in _FOR_EACH_KEY and len(value) == count)):
        return [value[index] for index in kept]
    return value


def saved(steps: Sequence[Config]) -> list[Config]:
    """Post transforms that go all the way back to the original image, and write a file of its labels for each.

    Going back pads with zeros, which mean background once activations are done and before values are made discrete.
    """
    steps = [{name: value for name, value in step.items() if name != _SPREAD or "argmax" not in step} for step in steps]
    after = [index + 1 for index, step in enumerate(steps) if step["_target_"] == "Activationsd"]
    place = after[-1] if after else 0
    back = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    write = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}
    return [*steps[:place], {**back, "nearest_interp": False, "to_tensor": True}, *steps[place:], write]


def inference(head: Config, parts: Config) -> Config:
    """`inference.json` of these parts, which stand at its top level.

    Args:
        head: what comes before them: places, device, network.
        parts: preprocessing, dataset, dataloader, inferer, handlers, evaluator, perhaps postprocessing.
    """
    wanted = ("preprocessing", "dataset", "dataloader", "inferer", "postprocessing", "handlers")
    found: Config = {**head, **{name: parts[name] for name in wanted if name in parts}}
    found["dataset"] = {**found["dataset"], "transform": "@preprocessing"}
    found["dataloader"] = {**found["dataloader"], "dataset": "@dataset"}
    left = ("key_val_metric", "additional_metrics", "postprocessing")
    evaluator = {name: value for name, value in parts["evaluator"].items() if name not in left}
    evaluator |= {"val_data_loader": "@dataloader", "inferer": "@inferer", "val_handlers": "@handlers"}
    if "postprocessing" in found:
        evaluator["postprocessing"] = "@postprocessing"
    return {**found, "evaluator": evaluator, "run": ["$@evaluator.run()"]}
