"""Images and the labels drawn on them, out of NIfTI, PNG and JPEG files: one at a time, checked before much is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray

from protocol.errors import ConfigError
from worker.data import nifti, pictures
from worker.data.sources import PICTURES, ImageKind, shown
from worker.data.volumes import TOLERANCE_MM, Volume, corners

_CLASSES = 255


def read_image(path: Path, kind: ImageKind, name: str) -> Volume:
    """An image as a person sees it, called `name` in errors.

    Raises:
        ConfigError: it is damaged or too large, or what it shows does not follow from it; says which.
    """
    return pictures.read_picture(path, name) if kind in PICTURES else nifti.read_nifti(path, name)


def read_label(path: Path, kind: ImageKind, name: str) -> Volume:
    """The numbers of classes in a label.

    Raises:
        ConfigError: as `read_image`; or it holds no numbers of classes.
    """
    if kind is ImageKind.JPEG:
        raise ConfigError(
            f"label {shown(name)} is JPEG, which does not keep numbers of classes; save it as PNG where it was drawn"
        )
    return pictures.read_drawn(path, name) if kind is ImageKind.PNG else nifti.read_drawn(path, name)


def save(volume: Volume, path: Path) -> Path:
    """Write what was read as a file that says nothing else: `path` with the ending of its kind, which is returned."""
    if volume.affine is None:
        path = path.with_name(f"{path.name}.png")
        pictures.save_picture(volume.values, path)
    else:
        path = path.with_name(f"{path.name}.nii.gz")
        nifti.save_nifti(volume, path)
    return path


def on_grid(label: Volume, image: Volume, name: str, *, film: bool = False) -> Volume:
    """A label in the orientation of its image: axes are swapped and turned round, nothing is interpolated.

    Args:
        film: the image is one of DICOM without a place in space, on which a picture may have been drawn.

    Raises:
        ConfigError: it lies elsewhere, or has other voxels.
    """
    size = image.values.shape[:2] if image.affine is None else image.values.shape[:3]
    if label.affine is None and image.affine is not None and film:
        label = Volume(label.values.T, image.affine, False)  # a picture's rows come first
    if (label.affine is None) is not (image.affine is None):
        raise ConfigError(
            f"label {shown(name)} and its image are a picture and a volume; save the label in the format of its image"
        )
    turned = label if label.affine is None or image.affine is None else _turned(label, label.affine, image.affine, size)
    if turned.values.shape != size:
        raise ConfigError(
            f"label {shown(name)} has {_by(turned.values.shape)} voxels and its image {_by(size)}; "
            "it has to be drawn on this very image"
        )
    if turned.affine is not None and image.affine is not None:
        apart = np.abs((turned.affine - image.affine) @ corners(size)).max()
        if apart > TOLERANCE_MM:
            raise ConfigError(
                f"label {shown(name)} lies up to {apart:.3g} mm beside its image; save it with its geometry"
            )
    return replace(turned, affine=image.affine)  # to the last digit, where it is written anew


def check_classes(name: str, values: NDArray[np.number]) -> tuple[int, ...]:
    """The classes in a label, smallest first.

    Raises:
        ConfigError: its values are no whole numbers from 0 to 255.
    """
    found = np.unique(values)
    if found.dtype.kind not in "biuf" or (found != np.rint(found)).any() or found[0] < 0 or found[-1] > _CLASSES:
        raise ConfigError(
            f"label {shown(name)} holds other values than the whole numbers 0 to {_CLASSES}; is it the image?"
        )
    return tuple(int(value) for value in found)


def _turned(label: Volume, affine: NDArray[np.float64], wanted: NDArray[np.float64], size: tuple[int, ...]) -> Volume:
    """A label along its image's axes, with as many of them where the last is one."""
    values = label.values.reshape((*label.values.shape, 1)[:3])
    turn = ornt_transform(io_orientation(affine), io_orientation(wanted))
    moved = (turn != [[0, 1], [1, 1], [2, 1]]).any()
    back = nibabel.orientations.inv_ornt_aff(turn, values.shape)
    values = apply_orientation(values, turn)
    if len(size) == 2 and values.shape[2] == 1:
        values = values[..., 0]
    plain = label.plain and not moved and values.ndim == label.values.ndim
    return Volume(values, affine @ back, plain)


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
