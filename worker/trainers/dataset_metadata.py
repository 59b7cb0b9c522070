"""What a torch dataset says of its examples without being trained on: their classes, and to whom they belong."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from worker.trainers.batches import Examples, length

_TARGETS = ("targets", "labels")
"""Where datasets keep them by custom (torchvision's, MedMNIST's)."""
_KEYS = ("label", "labels", "target", "targets", "class", "y")
"""What an example that is a mapping calls its target."""


def classes_of(dataset: Examples) -> Sequence[Hashable] | None:
    """The class of every example; None if their targets are no classes, such as masks or measurements.

    A dataset that keeps no `targets` or `labels` is read once in full.
    """
    if isinstance(dataset, Subset):
        inner = classes_of(cast(Examples, dataset.dataset))
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return _classes(dataset.tensors[-1]) if len(dataset.tensors) > 1 else None
    for name in _TARGETS:
        kept = getattr(dataset, name, None)
        if kept is not None and not callable(kept) and length(kept) == len(dataset):
            return _classes(kept)
    found = []
    for index in range(len(dataset)):
        target = _target(dataset[index])
        value = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
        if target is None or value.size != 1:
            return None
        found.append(value.reshape(())[()])
    return _classes(found)


def groups_of(dataset: Examples) -> Sequence[Hashable] | None:
    """To whom every example belongs, where the dataset says so by an attribute `groups`."""
    if isinstance(dataset, Subset):
        inner = groups_of(cast(Examples, dataset.dataset))
        return None if inner is None else [inner[index] for index in dataset.indices]
    groups = getattr(dataset, "groups", None)
    if groups is None or callable(groups) or length(groups) != len(dataset):
        return None
    return [each.item() if isinstance(each, Tensor | np.generic) else each for each in groups]


def _target(example: object) -> Any:  # whatever the dataset gives
    if isinstance(example, Mapping):
        return next((example[key] for key in _KEYS if key in example), None)
    if isinstance(example, tuple | list) and len(example) > 1:
        return example[1]
    return None


def _classes(targets: Any) -> Sequence[Hashable] | None:  # a tensor, an array or a list of numbers or words
    values = targets.cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iubU":
        return None
    found: list[Hashable] = values.tolist()
    return found
