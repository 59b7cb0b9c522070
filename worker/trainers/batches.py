"""How a site's data become batches: datasets with a length, iterable ones, and loaders of the site's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from protocol.errors import ConfigError, DataError, TrainingError

Batch = Any  # whatever the site's own dataset gives
"""Examples or targets, one or many: a tensor, or tuples, lists and mappings of them."""


class Examples(Protocol):
    """A dataset with a length, such as every map-style `torch.utils.data.Dataset`; gives single examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


# of whatever a loader or an iterable dataset of the site's own gives
Data = Examples | IterableDataset[Any] | DataLoader[Any]


class Feed:
    """The batches of a dataset, in an order that follows from a seed."""

    def __init__(self, data: Data, *, loaders: int = 0) -> None:
        """
        Raises:
            ConfigError: it is empty, or nothing that torch can load from.
        """
        if not isinstance(data, DataLoader | IterableDataset) and not (
            hasattr(data, "__getitem__") and hasattr(data, "__len__")
        ):
            raise ConfigError(
                f"the dataset is a {type(data).__name__}; give one with a length and items, "
                "a torch.utils.data.IterableDataset, or a DataLoader"
            )
        self._data = data
        self._loaders = loaders
        self.size = _examples(data)
        """How many examples there are; None if nobody can know before they were all seen."""

    def batches(self, size: int, *, seed: int | None = None) -> Iterable[Batch]:
        """Shuffled by `seed`, or all in order without one; a loader of the site's own decides both itself."""
        data = self._data
        if isinstance(data, DataLoader):
            for holder in (data, data.sampler):
                generator = getattr(holder, "generator", None)
                if isinstance(generator, torch.Generator) and seed is not None:
                    generator.manual_seed(seed)
            return data
        if isinstance(data, IterableDataset):
            return DataLoader(data, batch_size=size, num_workers=self._loaders)
        count = len(data)
        return DataLoader(
            cast(Dataset[Batch], data),  # torch's stub wants a class of its own; a length and items are enough
            batch_size=size,
            shuffle=seed is not None,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            # BatchNorm cannot train on a batch of one; shuffling leaves out another example each time.
            drop_last=seed is not None and count % size == 1 and count > size,
            num_workers=self._loaders,
        )

    def check_batch_size(self, wanted: int | None) -> None:
        """Whether a run's task can set the size of a batch.

        Raises:
            TrainingError: it does, and the site's own loader has one already.
        """
        if wanted is not None and isinstance(self._data, DataLoader):
            raise TrainingError("the run's task sets batch_size, but this trainer was given a DataLoader with its own")

    def indexed(self) -> Examples:
        """The dataset itself, where its examples have numbers.

        Raises:
            ConfigError: they have none, or a loader decides which of them are shown.
        """
        if isinstance(self._data, DataLoader | IterableDataset):
            raise ConfigError(
                f"a {type(self._data).__name__} cannot be divided among sites; give the trainer a dataset with a "
                "length and items"
            )
        return self._data

    def examples(self) -> Iterator[Batch]:
        """Every example once, as the dataset gives it."""
        data = self._data.dataset if isinstance(self._data, DataLoader) else self._data
        if isinstance(data, IterableDataset):
            yield from data
            return
        items = cast(Examples, data)  # what a loader loads from, unless it is iterable
        for index in range(len(items)):
            yield items[index]


def length(data: object) -> int | None:
    """How many examples a dataset has, or a pass batches, if that can be known."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # torch's datasets and loaders without a length raise it
        return None


def passes(batches: Iterable[Batch], *, steps: int | None, epochs: int) -> Iterator[tuple[int, Batch]]:
    """Batches with the number of their pass: exactly so many, from the beginning again if need be, or so many passes.

    Raises:
        DataError: a pass gives no batch at all.
    """
    done = 0
    for number in range(steps or epochs):
        begun = done
        for batch in batches:
            done += 1
            yield number, batch
            if done == steps:
                return
        if done == begun:
            raise DataError(
                "the training data gave not a single batch; add examples, or make the batches smaller if incomplete "
                "ones are dropped"
                if not done
                else f"the training data gave {done} batches and then none; an iterable dataset has to begin anew "
                "each time it is iterated over"
            )


def moved(value: Batch, device: torch.device) -> Batch:
    """Tensors in tuples, lists and mappings, on the device."""
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, tuple | list):
        items = [moved(item, device) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def count(batch: Batch) -> int:
    """How many examples a batch has: the length of the first tensor in it."""
    tensor = next(_tensors(batch), None)
    return 1 if tensor is None else len(tensor)


def _tensors(value: Batch) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _examples(data: Data) -> int | None:
    if not isinstance(data, DataLoader):
        return length(data)
    whole = length(data.dataset)
    if whole is None or isinstance(data.dataset, IterableDataset):
        return whole
    return min(whole, length(data.sampler) or whole)
