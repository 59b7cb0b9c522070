"""Histograms and counts of classes as one PNG picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError
from worker.statistics.figures import PATIENTS, Value
from worker.statistics.histograms import Bar, Histogram

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

WIDTH, HEIGHT, MARGIN, LINE = 400, 260, 24, 18
COLUMNS = 3
INK, PAPER, BAR = (40, 40, 40), (255, 255, 255), (62, 114, 176)
_CLASSES = 40
_LONGEST = 26


def draw(found: Sequence[Histogram], told: Mapping[str, Value], path: Path) -> None:
    """Write the picture; what is not told has no bar in it.

    Raises:
        ConfigError: there is nothing to draw, the file is there already, or it cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    classes = {name.removeprefix(f"{PATIENTS}."): value for name, value in told.items() if name.startswith(PATIENTS)}
    if not found and not any(isinstance(value, int) for value in classes.values()):
        raise ConfigError(
            f"nothing is of {told['min_cell']} patients or more, so {path} is not drawn; --unsuppressed draws "
            "everything, for eyes at the hospital"
        )
    rows = math.ceil(len(found) / COLUMNS)
    top = MARGIN + LINE * (min(len(classes), _CLASSES) + 2)
    picture = Image.new("RGB", (WIDTH * COLUMNS, top + rows * HEIGHT), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    _classes(pen, font, classes)
    for number, each in enumerate(found):
        row, column = divmod(number, COLUMNS)
        _panel(pen, font, each, column * WIDTH, top + row * HEIGHT)
    check_free(path)
    try:
        with path.open("xb") as file:
            picture.save(file, "png")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; name another place") from error


def check_free(path: Path) -> None:
    """Let a picture be written into a folder that is there, where nothing is.

    Raises:
        ConfigError: something is, or there is no folder.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: {path.parent} is no folder; make it, or name another place")
    if os.path.lexists(path):
        raise ConfigError(f"{path} is there already; nothing is overwritten: remove it, or name another")


def _classes(pen: ImageDraw, font: FreeTypeFont | ImageFont, classes: Mapping[str, Value]) -> None:
    """A line for each class, with a bar for a number that is told."""
    most = max((value for value in classes.values() if isinstance(value, int)), default=1) or 1
    left, wide = 260, WIDTH * COLUMNS - 420
    for number, (name, value) in enumerate(list(classes.items())[:_CLASSES]):
        y = MARGIN + LINE * number
        pen.text((MARGIN, y), _short("patients" if name == PATIENTS else f"with {name}"), INK, font)
        end = left + (wide * value // most if isinstance(value, int) else 0)
        if end > left:
            pen.rectangle((left, y + 2, end, y + LINE - 4), BAR)
        pen.text((end + 6, y), str(value), INK, font)
    if len(classes) > _CLASSES:
        y = MARGIN + LINE * _CLASSES
        pen.text((MARGIN, y), f"and {len(classes) - _CLASSES} classes more", INK, font)


def _panel(pen: ImageDraw, font: FreeTypeFont | ImageFont, found: Histogram, x: int, y: int) -> None:
    """One histogram: bars as wide as their values, numbers of patients above, bounds below."""
    pen.text((x + MARGIN, y), found.name, INK, font)
    bounds = [_bounds(bar, found.step) for bar in found.bars]
    low, high = bounds[0][0], bounds[-1][1]
    scale = (WIDTH - 2 * MARGIN) / ((high - low) or 1)
    floor, tall = y + HEIGHT - 2 * MARGIN, HEIGHT - 5 * MARGIN
    most = max(bar.count for bar in found.bars)
    written = x
    for bar, (start, end) in zip(found.bars, bounds, strict=True):
        left, right = x + MARGIN + (start - low) * scale, x + MARGIN + (end - low) * scale
        if bar.count:
            pen.rectangle((left + 1, floor - tall * bar.count / most, max(right - 1, left + 2), floor), BAR)
            pen.text((left + 2, floor - tall * bar.count / most - LINE), str(bar.count), INK, font)
        edge = f"{bar.low:.4g}" if bar.low is not None else ""
        if edge and left >= written:
            pen.text((left - 6, floor + 4), edge, INK, font)
            written = int(left + pen.textlength(edge, font) + 4)
    pen.line((x + MARGIN, floor, x + WIDTH - MARGIN, floor), INK)


def _bounds(bar: Bar, step: float) -> tuple[float, float]:
    """Where a bar is drawn; one without a bound is as wide as the others, and that of a single value too."""
    low = bar.low if bar.low is not None else (bar.high or 0.0) - step
    high = bar.high if bar.high is not None else low + step
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _short(text: str) -> str:
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= _LONGEST else f"{clean[: _LONGEST - 1]}…"
