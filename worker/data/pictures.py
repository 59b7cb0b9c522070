"""PNG and JPEG files as a person sees them: grey, or in colour; a number means the same however it is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from protocol.errors import ConfigError
from worker.data.sources import shown
from worker.data.volumes import Volume, check_size, readable

_HEAD = 26
_DEPTH, _COLOUR = 24, 25
"""Where a PNG file says how many bits a sample has, and of what kind it is."""
_GREY, _BYTE = 0, 8
_ORIENTATION = 0x0112
"""Where Exif says which side is up."""
_GAMMA = 1 / 2.2
"""What every screen assumes; a file may say otherwise."""
_GREYS = ("1", "L")
_PRINT = "CMYK"
_ALPHA = ("LA", "PA", "RGBA")
_BITS16 = ("I;16", "I")


def read_picture(path: Path, name: str) -> Volume:
    """Grey values of 8 or 16 bits, or three of 8 bits in colour; `name` stands for the file in errors.

    Raises:
        ConfigError: it is damaged or too large, or what a person sees does not follow from it.
    """
    with readable(name):
        with Image.open(path) as opened:
            picture, depth = _checked(opened, path, name)
            plain = as_seen(picture)
            values = _seen(ImageOps.exif_transpose(picture), depth, name)
        return Volume(values, None, plain)


def read_drawn(path: Path, name: str) -> Volume:
    """The numbers of classes in a drawn label: a palette's places, not its colours, and one for white.

    Raises:
        ConfigError: it is damaged or too large, or its numbers do not follow from it.
    """
    with readable(name):
        with Image.open(path) as opened:
            picture, depth = _checked(opened, path, name)
            mode, turned = picture.mode, ImageOps.exif_transpose(picture)
            values = np.asarray(turned) if mode in ("1", "P") else _seen(turned, depth, name)
        if values.ndim == 3:
            if coloured(values):
                raise ConfigError(
                    f"label {shown(name)} is in colour; save the numbers of its classes as grey values, or as the "
                    "places of a palette"
                )
            values = values[..., 0]
        return Volume(np.asarray(values, values.dtype if mode in _BITS16 else np.uint8), None, mode == "L")


def as_seen(picture: Image.Image) -> bool:
    """Whether the numbers in a file are what a person sees, the right side up, for whatever reads it."""
    upright = bool(picture.getexif().get(_ORIENTATION, 1) == 1)
    return picture.mode in ("L", "RGB", *_BITS16) and "transparency" not in picture.info and upright


def in_colour(path: Path, name: str) -> bool:
    """Whether a person sees colours; files that have none by their kind are not read for it.

    Raises:
        ConfigError: as `read_picture`.
    """
    with readable(name), Image.open(path) as opened:
        if opened.mode in ("1", "L", "LA", *_BITS16):
            return False
    return coloured(read_picture(path, name).values)


def coloured(values: NDArray[np.number]) -> bool:
    """Whether any pixel is something else than grey."""
    return values.ndim == 3 and bool((values != values[..., :1]).any())


def alike(volume: Volume, colour: bool, name: str) -> Volume:
    """The same picture with three values for each pixel if the others are in colour, and with one if they are grey.

    Raises:
        ConfigError: it has 16 bits, and the others are in colour.
    """
    if (volume.values.ndim == 3) is colour:
        return volume
    if not colour:
        return Volume(volume.values[..., 0], None, False)
    if volume.values.dtype != np.uint8:
        raise ConfigError(f"{shown(name)} has 16 bits, and other pictures here are in colour; prepare each by itself")
    return Volume(np.repeat(volume.values[..., None], 3, -1), None, False)


def save_picture(values: NDArray[np.number], path: Path) -> None:
    """Write a PNG file of whole numbers: grey of 8 or 16 bits, or colours."""
    Image.fromarray(np.ascontiguousarray(values)).save(path, "png")


def _checked(picture: Image.Image, path: Path, name: str) -> tuple[Image.Image, int]:
    """A picture that is small enough to be read and whose samples are all read, and the bits of each as stored."""
    check_size(name, (*picture.size, len(picture.getbands())))
    if picture.mode == _PRINT:
        raise ConfigError(
            f"{shown(name)} has colours for print (CMYK), which every screen shows otherwise; save it as grey values "
            "or RGB"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise ConfigError(f"{shown(name)} is a film of several pictures; save each as a file, or leave it out")
    if picture.format != "PNG":
        picture.load()
        return picture, _BYTE
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[_DEPTH] == 16 and head[_COLOUR] != _GREY:
        raise ConfigError(
            f"{shown(name)} has 16 bits in colour or with transparency, of which only 8 would be read; save it as grey "
            "with 16 bits, or in colour with 8"
        )
    gamma = picture.info.get("gamma")
    if isinstance(gamma, float) and "srgb" not in picture.info and abs(gamma - _GAMMA) > 0.01:
        raise ConfigError(
            f"{shown(name)} is to be shown with a gamma of {gamma:g}, so its values are not what is seen; save it "
            "without that"
        )
    picture.load()
    return picture, head[_DEPTH]


def _seen(picture: Image.Image, depth: int, name: str) -> NDArray[np.number]:
    if picture.mode in (*_GREYS, *_BITS16):
        values = np.asarray(picture).astype(np.uint16) if picture.mode in _BITS16 else np.asarray(picture.convert("L"))
        if (values == _clear(picture, depth)).any():
            raise _transparent(name)
        return values
    if picture.mode in _ALPHA or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            raise _transparent(name)
    if picture.mode != "RGB":
        values = np.asarray(picture.convert("RGB"))
        return values if coloured(values) else values[..., 0]
    return np.asarray(picture)


def _clear(picture: Image.Image, depth: int) -> int:
    """The grey that is transparent; -1: none. It is named as it is stored, and Pillow spreads samples over 8 bits."""
    stored = int(picture.info.get("transparency", -1))
    if stored < 0 or depth >= _BYTE:
        return stored
    most: int = 2**depth - 1
    return min(stored, most) * (255 // most)


def _transparent(name: str) -> ConfigError:
    return ConfigError(
        f"{shown(name)} is transparent in places, so what is seen depends on what lies behind; save it without "
        "transparency"
    )
