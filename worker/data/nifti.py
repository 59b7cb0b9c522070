"""NIfTI files as programs write them: which of them say something else than they seem to, and what they mean."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from protocol.errors import ConfigError
from worker.data.discovery import is_packed
from worker.data.sources import shown
from worker.data.volumes import TOLERANCE_MM, Volume, check_size, corners, in_space, readable

_EXTENSIONS = 16 * 1024**2
_HEADER, _SECOND = 540, (b"n+2", b"ni2")
_MAGIC = 344
_MOST_PACKED = 1032
"""How many times smaller gzip makes anything, at most."""
_SPACE = 3
_SMALL = 2
"""Bytes of a class's number in what is left as it is; others are written anew with less."""
_HAIR = 1e-3
"""By how much a class may miss a whole number, where a scale factor was rounded."""


def read_nifti(path: Path, name: str) -> Volume:
    """An image, called `name` in errors: 2-D or 3-D, perhaps with channels as its last axis.

    Raises:
        ConfigError: it is damaged or too large, or lies nowhere.
    """
    with readable(name), _opened(path, name) as image:
        affine = _place(image, name)
        values = np.asanyarray(image.dataobj)
        shape = _without_ones(values.shape)
        if len(shape) > _SPACE + 1:
            raise ConfigError(
                f"{shown(name)} has {len(shape)} axes; an image has at most four, the last for its channels: save it so"
            )
        plain = shape == values.shape and not is_pair(path) and np.array_equal(affine, image.affine)
        plain = plain and not _contradicts(image, affine, name)
        return Volume(values.reshape(shape), affine, plain)


def read_drawn(path: Path, name: str) -> Volume:
    """A label: whole numbers, also where they were written with a scale factor, and no channels.

    Raises:
        ConfigError: it has several channels; and all that `read_nifti` raises.
    """
    read = read_nifti(path, name)
    if read.values.ndim > _SPACE:
        raise ConfigError(
            f"label {shown(name)} has {read.values.shape[_SPACE]} channels; a label has one number for each voxel, "
            "that of its class: save it so"
        )
    if read.values.dtype.kind != "f":
        return replace(read, plain=read.plain and read.values.dtype.itemsize <= _SMALL)
    whole = np.rint(read.values)
    # What is no number stays so, for whoever looks at the classes.
    near = (whole == read.values) | (np.abs(read.values - whole) <= _HAIR)
    return Volume(np.where(near, whole, read.values), read.affine, False)


def is_pair(path: Path) -> bool:
    """Whether the voxels of this header lie in a file of their own, so that no copy of one file is the image."""
    head = _head(path)
    return head[_MAGIC : _MAGIC + 3] == b"ni1" or head[4:7] == b"ni2"


def check_extensions(path: Path) -> None:
    """Refuse a NIfTI file that puts more between header and voxels than any software writes; it would be read at once.

    Raises:
        ConfigError: it does.
    """
    head = _head(path)
    second = head[4:7] in _SECOND
    header = nibabel.Nifti2Header(head, check=False) if second else nibabel.Nifti1Header(head[:348], check=False)
    if not float(header["vox_offset"]) <= _EXTENSIONS:
        raise ConfigError(
            f"{shown(path.name)} says that its voxels begin behind {_EXTENSIONS:,} bytes; save it without extensions"
        )


def _head(path: Path) -> bytes:
    with _stream(path) as file:
        return file.read(_HEADER)


def _stream(path: Path) -> BufferedIOBase:
    """A file's content, unpacked if it is packed."""
    return gzip.open(path) if is_packed(path) else path.open("rb")


def save_nifti(volume: Volume, path: Path) -> None:
    """Write a NIfTI file with a header that says nothing but type, shape and place."""
    nibabel.save(nibabel.Nifti1Image(_smallest(volume.values), volume.affine), path)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[SpatialImage]:
    """The image in a file by what is in it: many a `.nii` is packed, and endings are not believed."""
    check_extensions(path)
    with _stream(path) as file:
        if is_pair(path):
            image = nibabel.load(path)
        else:
            kind = nibabel.Nifti2Image if _head(path)[4:7] in _SECOND else nibabel.Nifti1Image
            image = kind.from_file_map({"image": nibabel.FileHolder(fileobj=file)})
        if not isinstance(image, SpatialImage):
            raise TypeError("it holds no image")
        check_size(name, image.shape)
        _check_there(name, Path(image.file_map["image"].filename or path) if is_pair(path) else path, image)
        if len(image.shape) < 2:
            raise ConfigError(f"{shown(name)} is a row of {image.shape[0]} values and no image; leave it out")
        yield image


def _check_there(name: str, path: Path, image: SpatialImage) -> None:
    """Refuse a file that cannot hold the voxels of its header, for which memory would be taken before they are read.

    Raises:
        ConfigError: it cannot.
    """
    needed, there = math.prod(image.shape) * image.get_data_dtype().itemsize, path.stat().st_size
    if needed > there * (_MOST_PACKED if is_packed(path) else 1):
        raise ConfigError(
            f"{shown(name)} says that it has {needed:,} bytes of voxels, and its file has {there:,}; copy it here "
            "again, or leave it out"
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of one behind those of space."""
    return (*shape[:_SPACE], *(size for size in shape[_SPACE:] if size != 1))


def _place(image: SpatialImage, name: str) -> NDArray[np.float64]:
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= in_mm(image)
    if (*image.shape, 1)[2] == 1 and np.isfinite(affine).all() and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])  # some programs give a slice no thickness
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    try:
        return in_space(affine)
    except ValueError as error:
        raise ConfigError(
            f"{shown(name)} lies nowhere: the axes in its header (sform or qform) are not three directions; correct "
            "the header, or leave it out"
        ) from error


def in_mm(image: SpatialImage) -> float:
    """How many millimetres the unit of a header is; most say millimetres, or nothing."""
    unit = image.header.get_xyzt_units()[0] if isinstance(image.header, nibabel.Nifti1Header) else "mm"
    return {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)


def _contradicts(image: SpatialImage, affine: NDArray[np.float64], name: str) -> bool:
    """Whether the header names two places, as it may; the sform counts, as in training.

    Raises:
        ConfigError: they are turned against each other, so that left may be right.
    """
    header = image.header
    if not isinstance(header, nibabel.Nifti1Header) or not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return False
    other = header.get_qform()
    other[:3] *= in_mm(image)
    if not np.isfinite(other).all() or np.linalg.matrix_rank(other[:3, :3]) < _SPACE:
        return True
    if aff2axcodes(affine) != aff2axcodes(other):
        raise ConfigError(
            f"{shown(name)} says twice where it lies, and turned against each other (sform "
            f"{''.join(aff2axcodes(affine))}, qform {''.join(aff2axcodes(other))}); find out which is right, and save "
            "it with that one"
        )
    return bool(np.abs((affine - other) @ corners(image.shape)).max() > TOLERANCE_MM)


def _smallest(values: NDArray[np.number]) -> NDArray[np.number]:
    """The same values as 8 or 16 bits where they are whole and fit, else as float32."""
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "biu" or all((plane == np.round(plane)).all() for plane in np.moveaxis(values, -1, 0))
    for kind in (np.uint8, np.int16, np.int32) if whole else ():
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return values.astype(kind)
    return values.astype(np.float32)
