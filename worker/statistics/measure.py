"""What the images of a datalist are like, one at a time: size, spacing, intensity, classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError
from worker.data.datalist import Datalist, DatalistEntry, Task
from worker.data.discovery import kind_of
from worker.data.sources import shown
from worker.data.volumes import Volume, check_classes, check_values, read_volume
from worker.statistics.figures import CaseFigures

_AXES = ("x", "y", "z")
_PERCENTILES = (1, 10, 50, 90, 99)


def task_of(datalist: Datalist) -> Task:
    """What the labels are for: files of them, or numbers of classes."""
    numbers = any(isinstance(entry.label, int) for entry in datalist.entries)
    return Task.CLASSIFICATION if numbers else Task.SEGMENTATION


def class_names(datalist: Datalist) -> list[str]:
    """The classes in the order of their numbers.

    Raises:
        ConfigError: two share a name.
    """
    names = [name for _, name in sorted(datalist.labels.items())]
    if len(set(names)) < len(names):
        raise ConfigError("two classes of the datalist have the same name; correct `labels` in it")
    return names


def measure(datalist: Datalist, folder: Path, progress: Callable[[int, int], None]) -> Iterator[CaseFigures]:
    """The figures of each image, read in turn.

    Raises:
        ConfigError: an image or label cannot be read, or has a class that the list does not name.
    """
    total = len(datalist.entries)
    for done, entry in enumerate(datalist.entries):
        progress(done, total)
        yield _measured(entry, folder, datalist.labels)
    progress(total, total)


def _measured(entry: DatalistEntry, folder: Path, labels: Mapping[int, str]) -> CaseFigures:
    image = _read(folder, entry.image)
    check_values(entry.image, image.values)
    if isinstance(entry.label, str):
        drawn = _read(folder, entry.label).values
        classes = check_classes(entry.label, drawn)
        voxels = {_named(entry.label, each, labels): int((drawn == each).sum()) for each in classes}
        if drawn.shape != image.values.shape[: drawn.ndim]:
            raise ConfigError(f"label {shown(entry.label)} has another shape than its image; prepare the data again")
        foreground: NDArray[np.bool_] | None = drawn > 0
    else:
        foreground = None
        voxels = {} if entry.label is None else {_named(entry.image, entry.label, labels): 1}
    return CaseFigures(patient=entry.patient, figures=_figures(image, foreground), voxels=voxels)


def _read(folder: Path, name: str) -> Volume:
    path = folder / name
    if not os.path.isfile(path):  # nor a pipe, at which reading would wait
        raise ConfigError(f"{shown(name)} is not there, or is no file; put it there, or correct the datalist")
    kind = kind_of(path)
    if kind is None:
        raise ConfigError(f"{shown(name)} is neither NIfTI nor PNG; prepare the data with `fledge data prepare`")
    return read_volume(path, kind, name)


def _named(where: str, number: int, labels: Mapping[int, str]) -> str:
    name = labels.get(number)
    if name is None:
        raise ConfigError(
            f"{shown(where)} has the class {number}, which `labels` of the datalist does not name; add it"
        )
    return name


def _figures(image: Volume, foreground: NDArray[np.bool_] | None) -> dict[str, float]:
    shape = image.values.shape[:3] if image.affine is not None else image.values.shape[:2]
    found = {f"shape.{axis}": float(size) for axis, size in zip(_AXES, shape, strict=False)}
    found |= {f"spacing.{axis}": size for axis, size in zip(_AXES, image.spacing[: len(shape)], strict=False)}
    depth = len(shape)
    channels = np.moveaxis(image.values, -1, 0) if image.values.ndim > depth else image.values[None]
    for number, channel in enumerate(channels):
        found |= _intensity(f"intensity.c{number}.all", channel)
        if foreground is not None and foreground.any():
            found |= _intensity(f"intensity.c{number}.foreground", channel[foreground])
    return found


def _intensity(name: str, values: NDArray[np.number]) -> dict[str, float]:
    found = {f"{name}.mean": float(values.mean(dtype=np.float64)), f"{name}.std": float(values.std(dtype=np.float64))}
    percentiles = np.percentile(values, _PERCENTILES)
    return found | {f"{name}.p{q}": float(value) for q, value in zip(_PERCENTILES, percentiles, strict=True)}
