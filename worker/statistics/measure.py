"""What the images of a datalist are like, one at a time: size, spacing, intensity, classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError
from worker.data.datalist import Datalist, DatalistEntry, Task
from worker.data.discovery import kind_of
from worker.data.images import check_classes, on_grid, read_image, read_label
from worker.data.sources import ImageKind, shown
from worker.data.volumes import Volume, check_values
from worker.statistics.figures import CaseFigures

_AXES = ("x", "y", "z")
_PERCENTILES = (1, 10, 50, 90, 99)


def task_of(datalist: Datalist) -> Task:
    """What the labels are for: files of them, numbers of classes, or a zero or a one for each class."""
    if any(isinstance(entry.label, tuple) for entry in datalist.entries):
        return Task.MULTILABEL
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
    image = _together([_image(folder, name) for name in (entry.image, *entry.channels)], entry.image)
    foreground: NDArray[np.bool_] | None = None
    voxels = {}
    if isinstance(entry.label, str):
        drawn = on_grid(read_label(*_file(folder, entry.label)), image, entry.label).values
        classes = check_classes(entry.label, drawn)
        voxels = {_named(entry.label, each, labels): int((drawn == each).sum()) for each in classes}
        foreground = drawn > 0
    elif isinstance(entry.label, tuple):
        voxels = {_named(entry.image, each, labels): 1 for each, mark in enumerate(entry.label) if mark}
    elif entry.label is not None:
        voxels = {_named(entry.image, entry.label, labels): 1}
    return CaseFigures(patient=entry.patient, figures=_figures(image, foreground), voxels=voxels)


def _image(folder: Path, name: str) -> Volume:
    image = read_image(*_file(folder, name))
    check_values(name, image.values)
    return image


def _together(files: Sequence[Volume], name: str) -> Volume:
    """Files that are the channels of one image."""
    first, *others = files
    if not others:
        return first
    if any(each.values.shape != first.values.shape or each.spacing != first.spacing for each in others):
        raise ConfigError(f"{shown(name)} and the other files of its image differ in size; resample them alike")
    return Volume(np.stack([each.values for each in files], -1), first.affine)


def _file(folder: Path, name: str) -> tuple[Path, ImageKind, str]:
    """What a reader is told of a file."""
    path = folder / name
    if not os.path.isfile(path):  # nor a pipe, at which reading would wait
        raise ConfigError(f"{shown(name)} is not there, or is no file; put it there, or correct the datalist")
    kind = kind_of(path)
    if kind is None or kind is ImageKind.DICOM:
        raise ConfigError(f"{shown(name)} is no NIfTI, PNG or JPEG file; prepare the data with `fledge data prepare`")
    return path, kind, name


def _named(where: str, number: int, labels: Mapping[int, str]) -> str:
    name = labels.get(number)
    if name is None:
        raise ConfigError(
            f"{shown(where)} has the class {number}, which `labels` of the datalist does not name; add it"
        )
    return name


def _figures(image: Volume, foreground: NDArray[np.bool_] | None) -> dict[str, float]:
    # A picture's rows come first, and x goes along them.
    shape = image.values.shape[:3] if image.affine is not None else image.values.shape[1::-1]
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
