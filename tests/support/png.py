"""PNG files of every kind that the format knows, packed by hand: no library decides what stands in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
KINDS = [
    *((depth, GREY) for depth in (1, 2, 4, 8, 16)),
    *((depth, RGB) for depth in (8, 16)),
    *((depth, PALETTE) for depth in (1, 2, 4, 8)),
    *((depth, kind) for kind in (GREY_ALPHA, RGBA) for depth in (8, 16)),
]
"""Bits of a sample, and what samples are: all pairs that there may be."""
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: the first column and row of each pass, and the steps between."""


def png(
    samples: np.ndarray,
    depth: int,
    kind: int,
    *,
    interlaced: bool = False,
    palette: Sequence[Sequence[int]] = (),
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """The file of these samples (rows, columns, samples of a pixel); `chunks` come before them."""
    rows, columns = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in _PASSES] if interlaced else [samples]
    raw = b"".join(b"\0" + _packed(row, depth) for each in passes if each.size for row in each)
    head = struct.pack(">IIBBBBB", columns, rows, depth, kind, 0, 0, interlaced)
    colours = [(b"PLTE", bytes(value for colour in palette for value in colour))] if len(palette) else []
    parts = [(b"IHDR", head), *colours, *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, data = part
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()
