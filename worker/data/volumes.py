"""An image's values and where they lie in space: read one at a time, checked before anything large is read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from PIL import Image

from protocol.errors import ConfigError
from worker.data.sources import ImageKind, shown

VOXELS = 2**31
"""Of one image, at most: 1024 slices of 1024 × 1024 are half of it."""
_EXTENSIONS = 16 * 1024**2
_HEADER, _SECOND = 540, b"n+2"
TOLERANCE_MM = 0.01
"""By how much the corners of an image and its label may be apart."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Values, and for volumes the matrix from indices to millimetres (right, anterior, superior)."""

    values: NDArray[np.number]
    affine: NDArray[np.float64] | None

    @property
    def digest(self) -> str:
        """SHA-256 of shape and values, in hex, whatever their type and the file's format."""
        total = hashlib.sha256(repr(self.values.shape).encode())
        for plane in range(self.values.shape[-1]):  # a copy of one plane at a time
            total.update(np.ascontiguousarray(self.values[..., plane], dtype="<f8").tobytes())
        return total.hexdigest()

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between neighbours along each axis; nothing where the file does not say."""
        if self.affine is None:
            return ()
        return tuple(float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))


def read_volume(path: Path, kind: ImageKind, name: str) -> Volume:
    """A NIfTI or PNG file, called `name` in errors.

    Raises:
        ConfigError: it is damaged, or too large; says which.
    """
    with _readable(name):
        if kind is ImageKind.PNG:
            with Image.open(path) as picture:
                check_size(name, (*picture.size, len(picture.getbands())))
                return Volume(np.asarray(picture), None)
        check_extensions(path)
        image = nibabel.load(path)
        if not isinstance(image, SpatialImage):
            raise ValueError
        check_size(name, image.shape)
        return Volume(np.asanyarray(image.dataobj), in_space(np.asarray(image.affine)))


def check_extensions(path: Path) -> None:
    """Refuse a NIfTI file that puts more between header and voxels than any software writes; it would be read at once.

    Raises:
        ConfigError: it does.
    """
    with nibabel.openers.Opener(str(path)) as file:
        head = file.read(_HEADER)
    second = head[4:7] == _SECOND
    header = nibabel.Nifti2Header(head, check=False) if second else nibabel.Nifti1Header(head[:348], check=False)
    if not float(header["vox_offset"]) <= _EXTENSIONS:
        raise ConfigError(
            f"{shown(path.name)} says that its voxels begin behind {_EXTENSIONS:,} bytes; save it without extensions"
        )


def in_space(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix of an image that lies somewhere: its axes are finite, and none follows from the others.

    Raises:
        ValueError: it lies nowhere.
    """
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError("the image has no place in space")
    return affine


def check_size(name: object, shape: Sequence[int]) -> None:
    """Let an image be read that fits into memory.

    Raises:
        ConfigError: it has more than `VOXELS` voxels, or none.
    """
    count = math.prod(shape)
    if not 0 < count <= VOXELS or not shape:
        raise ConfigError(
            f"{shown(name)} has {' × '.join(map(str, shape))} voxels; an image has 1 to {VOXELS:,} of them: "
            "cut it to the part that matters, or leave it out"
        )


def check_values(name: str, values: NDArray[np.number]) -> None:
    """Let an image pass whose values are finite numbers.

    Raises:
        ConfigError: they are not.
    """
    if values.dtype.kind not in "biuf":
        raise ConfigError(f"{shown(name)} is in colour or has complex values; save it as grey values, or leave it out")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ConfigError(f"{shown(name)} holds values that are no numbers (NaN or infinite); mend or leave it out")


def on_grid(label: Volume, image: Volume, name: str) -> Volume:
    """A label in the orientation of its image: axes are swapped and turned round, nothing is interpolated.

    Raises:
        ConfigError: it lies elsewhere, or has other voxels.
    """
    if label.affine is None or image.affine is None or image.values.ndim < 3:
        turned = label
    else:
        turn = ornt_transform(io_orientation(label.affine), io_orientation(image.affine))
        values = apply_orientation(label.values, turn)
        back = nibabel.orientations.inv_ornt_aff(turn, label.values.shape)
        turned = Volume(values, label.affine @ back)
    shapes = turned.values.shape, image.values.shape[: turned.values.ndim]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"label {shown(name)} has {_by(shapes[0])} voxels and its image {_by(shapes[1])}; "
            "it has to be drawn on this very image"
        )
    if turned.affine is not None and image.affine is not None:
        apart = np.abs((turned.affine - image.affine) @ _corners(image.values.shape)).max()
        if apart > TOLERANCE_MM:
            raise ConfigError(
                f"label {shown(name)} lies up to {apart:.3g} mm beside its image; save it with its geometry"
            )
    return turned


def check_classes(name: str, values: NDArray[np.number]) -> tuple[int, ...]:
    """The classes in a label, smallest first.

    Raises:
        ConfigError: its values are no whole numbers from 0 to 255.
    """
    found = np.unique(values)
    if found.dtype.kind not in "iuf" or (found != np.round(found)).any() or found[0] < 0 or found[-1] > 255:
        raise ConfigError(f"label {shown(name)} holds other values than the whole numbers 0 to 255; is it the image?")
    return tuple(int(value) for value in found)


def save_nifti(volume: Volume, path: Path) -> None:
    """Write a NIfTI file with a header that says nothing but type, shape and place."""
    nibabel.save(nibabel.Nifti1Image(_smallest(volume.values), volume.affine), path)


def _smallest(values: NDArray[np.number]) -> NDArray[np.number]:
    """The same values as 8 or 16 bits where they are whole and fit, else as float32."""
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "biu" or all((plane == np.round(plane)).all() for plane in np.moveaxis(values, -1, 0))
    for kind in (np.uint8, np.int16, np.int32) if whole else ():
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return values.astype(kind)
    return values.astype(np.float32)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged file makes of a reader
        raise ConfigError(
            f"{shown(name)} cannot be read ({type(error).__name__}); copy it here again, or leave it out"
        ) from error


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    ends = [(0, size - 1) for size in shape[:3]]
    return np.array([[*corner, 1.0] for corner in np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)]).T


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
