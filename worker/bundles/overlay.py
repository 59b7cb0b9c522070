"""Pictures of results on their images: the slices that show most of a result, with its outlines or its strength."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from protocol.errors import ConfigError
from worker.data.discovery import kind_of
from worker.data.images import read_image
from worker.data.sources import ImageKind
from worker.data.volumes import TOLERANCE_MM, Volume

Array = NDArray[np.float32]
_Kind = TypeVar("_Kind", bound=np.generic)
_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255)),
)
"""Told apart also by those who see few colours; by Okabe and Ito."""
_SLICES, _SIDE, _GAP, _LINE, _THICK = 3, 384, 4, 12, 2
_MOST_CLASSES = 32
_ENDINGS = (".nii.gz", ".nii", ".png")
_PALE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlaid:
    """An image and its result on the image's grid, as (right, anterior, superior)."""

    image: Array
    masks: Mapping[str, NDArray[np.bool_]]
    """What is outlined, by its class."""
    strength: Array | None
    """What is coloured where there are no classes, from 0 to 1."""
    spacing: tuple[float, float, float]

    @property
    def window(self) -> tuple[float, float]:
        """The values from black to white: those around what is outlined, or of the whole image."""
        marked = np.zeros(self.image.shape, bool)
        for mask in self.masks.values():
            marked |= mask
        around = self.image
        for axis in range(3) if marked.any() else ():
            along = np.flatnonzero(marked.any(axis=tuple(each for each in range(3) if each != axis)))
            more = len(along) // 2
            slices = slice(max(0, along[0] - more), along[-1] + more + 1)
            around = np.moveaxis(np.moveaxis(around, axis, 0)[slices], 0, axis)
        low, high = np.percentile(around, (1, 99))
        return float(low), float(high) if high > low else float(low) + 1

    @property
    def axis(self) -> int:
        """Across which slices are shown: where they are thickest, else from above."""
        return max((2, 1, 0), key=lambda axis: (self.image.shape[axis] == 1, round(self.spacing[axis], 2)))


def results_of(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The images below a folder that begin with one of these names, with the name; the longest that fits."""
    for path in sorted(folder.rglob("*")):
        stem = stem_of(path)
        fitting = [name for name in names if stem is not None and (stem == name or stem.startswith(f"{name}_"))]
        if fitting and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield max(fitting, key=len), path


def stem_of(path: Path) -> str | None:
    """A result's name without its ending; None if it is none that can be drawn."""
    return next((path.name[: -len(ending)] for ending in _ENDINGS if path.name.endswith(ending)), None)


def read_result(path: Path) -> Volume:
    """A result that was just written.

    Raises:
        ConfigError: it cannot be read.
    """
    kind = kind_of(path)
    if kind is None or kind is ImageKind.DICOM:
        raise ConfigError(f"{path.name} is no image that can be drawn")
    return read_image(path, kind, path.name)


def lies_alike(result: Volume, image: Volume) -> bool:
    """Whether a result has its image's voxels in its image's place."""
    if result.affine is None or image.affine is None:
        return sorted(result.values.shape[:2]) == sorted(image.values.shape[:2])
    same = [(*each.values.shape, 1, 1)[:3] for each in (result, image)]  # MONAI drops a last axis of one
    return same[0] == same[1] and bool(np.abs(result.affine - image.affine).max() <= TOLERANCE_MM)


def picture(image: Volume, result: Volume) -> Image.Image:
    """The slices of an image that show most of its result, side by side."""
    overlaid = _overlaid(image, result)
    window = overlaid.window
    tiles = [_tile(overlaid, index, window) for index in _chosen(overlaid)]
    whole = Image.new("RGB", (sum(tile.width for tile in tiles) + _GAP * (len(tiles) - 1), tiles[0].height))
    left = 0
    for tile in tiles:
        whole.paste(tile, (left, 0))
        left += tile.width + _GAP
    return whole


def _overlaid(image: Volume, result: Volume) -> Overlaid:
    flat = image.affine is None
    grey = _grey(image)
    found = _on_grid(result, image, grey.shape)
    masks, strength = _shown(found)
    # A picture without a place is shown as it lies: its rows from above, its columns from the left.
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) if image.affine is None else image.affine
    turn = io_orientation(matrix)

    def turned(values: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.asarray(apply_orientation(values.swapaxes(0, 1) if flat else values, turn))

    sizes = np.linalg.norm(matrix[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    return Overlaid(
        image=turned(grey).astype(np.float32),
        masks={name: turned(mask).astype(bool) for name, mask in masks.items()},
        strength=None if strength is None else turned(strength).astype(np.float32),
        spacing=(float(sizes[0]), float(sizes[1]), float(sizes[2])),
    )


def _grey(image: Volume) -> Array:
    """One value a voxel: the first of several images, the mean of colours."""
    values = np.asarray(image.values)
    if image.affine is None:
        values = values[..., None] if values.ndim == 2 else values[..., :3].mean(axis=-1, keepdims=True)
    while values.ndim > 3:
        values = values[..., 0]
    return values.reshape(*values.shape, *(1,) * (3 - values.ndim)).astype(np.float32)


def _on_grid(result: Volume, image: Volume, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """A result at the image's voxels, with its channels last."""
    values = np.asarray(result.values)
    if image.affine is None:
        if result.affine is not None:
            values = values.swapaxes(0, 1)  # MONAI has the columns of a picture first
        if values.shape[:2] != shape[:2]:
            rows, columns = (np.arange(size) * old // size for size, old in zip(shape, values.shape[:2], strict=False))
            values = values[rows[:, None], columns]
        return values[..., None] if values.ndim == 2 else values.reshape(*values.shape[:2], 1, -1)
    if result.affine is None:
        values, affine = values[..., None] if values.ndim == 2 else values, image.affine
    else:
        affine = result.affine
        values = values.reshape(*values.shape, *(1,) * (3 - values.ndim))
    if values.shape[:3] == shape and np.abs(affine - image.affine).max() <= TOLERANCE_MM:
        return values
    step = np.linalg.inv(affine) @ image.affine
    where = [step[axis, 3] + sum(step[axis, k] * _line(shape, k) for k in range(3)) for axis in range(3)]
    inside = np.logical_and.reduce([(w > -0.5) & (w < n - 0.5) for w, n in zip(where, values.shape, strict=False)])
    index = tuple(np.clip(np.rint(w), 0, n - 1).astype(np.intp) for w, n in zip(where, values.shape, strict=False))
    found: NDArray[np.generic] = np.asarray(values)[index]
    return np.where(inside.reshape(*inside.shape, *(1,) * (found.ndim - 3)), found, 0)


def _line(shape: tuple[int, ...], axis: int) -> NDArray[np.float64]:
    return np.arange(shape[axis], dtype=np.float64).reshape([-1 if each == axis else 1 for each in range(3)])


def _shown(found: NDArray[np.generic]) -> tuple[dict[str, NDArray[np.bool_]], Array | None]:
    """What is outlined of a result, or how strong it is everywhere."""
    if found.ndim > 3 and found.shape[3] > 1:
        channels = found.reshape(*found.shape[:3], -1).astype(np.float32)
        shares = np.abs(channels.sum(axis=-1) - 1).max() < 0.01  # of all classes, with the background first
        return {str(number): channels[..., number] > 0.5 for number in range(int(shares), channels.shape[-1])}, None
    values = found.reshape(found.shape[:3])
    classes = np.unique(values)
    if len(classes) <= _MOST_CLASSES and (classes == np.rint(classes)).all():
        return {f"{int(each)}": values == each for each in classes if each}, None
    low, high = float(classes[0]), float(classes[-1])
    return {}, ((values.astype(np.float32) - low) / ((high - low) or 1)).astype(np.float32)


def _chosen(overlaid: Overlaid) -> Sequence[int]:
    """The slice with most of the result, and some through the rest of it; of the middle if there is nothing."""
    axis, length = overlaid.axis, overlaid.image.shape[overlaid.axis]
    rest = tuple(each for each in range(3) if each != axis)
    amount = np.zeros(length)
    for mask in overlaid.masks.values():
        amount += mask.sum(axis=rest)
    if overlaid.strength is not None:
        amount += overlaid.strength.mean(axis=rest)
    if not amount.any():
        return sorted({length // 4, length // 2, (3 * length) // 4})
    there = np.flatnonzero(amount)
    best = int(amount.argmax())
    through = [int(there[len(there) // 4]), int(there[(3 * len(there)) // 4])]
    return sorted({best, *through})[:_SLICES]


def _tile(overlaid: Overlaid, index: int, window: tuple[float, float]) -> Image.Image:
    axis = overlaid.axis
    across = [each for each in range(3) if each != axis]
    size = [overlaid.image.shape[each] * overlaid.spacing[each] for each in across]
    width, height = (max(1, round(_SIDE * each / max(size))) for each in size)

    def plane(values: NDArray[_Kind]) -> NDArray[_Kind]:
        """As radiologists look at it: the patient's right on the left, what is above or in front at the top."""
        return np.ascontiguousarray(np.moveaxis(values, axis, 0)[index].T[::-1, ::-1])

    low, high = window
    grey = np.clip((plane(overlaid.image) - low) / (high - low), 0, 1) * 255
    drawn = Image.fromarray(grey.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR).convert("RGB")
    pixels = np.asarray(drawn).copy()
    if overlaid.strength is not None:
        strong = Image.fromarray((plane(overlaid.strength) * 255).astype(np.uint8)).resize((width, height))
        share = np.asarray(strong)[..., None] / 255 * _PALE
        pixels = (pixels * (1 - share) + np.array(_COLOURS[0]) * share).astype(np.uint8)
    for number, mask in enumerate(overlaid.masks.values()):
        shape = Image.fromarray(plane(mask).astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
        pixels[_outline(np.asarray(shape) > 0)] = _COLOURS[number % len(_COLOURS)]
    tile = Image.fromarray(pixels)
    pen = ImageDraw.Draw(tile)
    pen.text((2, 2), f"{index + 1}/{overlaid.image.shape[axis]}", fill=(255, 255, 255))
    for number, name in enumerate(overlaid.masks if len(overlaid.masks) > 1 else ()):
        pen.text((2, 2 + _LINE * (number + 1)), name, fill=_COLOURS[number % len(_COLOURS)])
    return tile


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's own pixels that are near to what is outside of it."""
    inside = mask
    for _ in range(_THICK):
        inner = np.pad(inside, 1, constant_values=False)
        inside = inside & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask & ~inside
