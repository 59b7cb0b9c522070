"""An image's values and where they lie in space, whatever file they came from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError
from worker.data.sources import shown

VOXELS = 2**31
"""Of one image, at most: 1024 slices of 1024 × 1024 are half of it."""
_LARGEST = float(np.finfo(np.float32).max)
TOLERANCE_MM = 0.01
"""By how much the corners of an image and its label may be apart."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Values, and for volumes the matrix from indices to millimetres (right, anterior, superior)."""

    values: NDArray[np.number]
    affine: NDArray[np.float64] | None
    plain: bool = True
    """Whether the file holds just these values in this place, for whatever reads it; otherwise it is written anew."""

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
    if values.dtype.kind == "f" and values.dtype.itemsize > 4 and np.abs(values).max() > _LARGEST:
        raise ConfigError(f"{shown(name)} holds values over {_LARGEST:.2g}, which training cannot hold; scale them")


@contextmanager
def readable(
    name: object, told: str = " cannot be read", advice: str = "copy it here again, or leave it out"
) -> Iterator[None]:
    """What a damaged file makes of a reader becomes a sentence about it.

    Raises:
        ConfigError: that sentence.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged file makes of a reader
        raise ConfigError(f"{shown(name)}{told} ({type(error).__name__}); {advice}") from error


def corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """The corner voxels of an image of this shape as columns, to be multiplied by its matrix."""
    ends = [(0, size - 1) for size in (*shape, 1, 1)[:3]]
    return np.array([[*corner, 1.0] for corner in np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)]).T
