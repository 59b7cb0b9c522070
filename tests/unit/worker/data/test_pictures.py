"""A PNG file of any kind is read as a person sees it, or one sentence says why that does not follow from it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from protocol.errors import ConfigError
from tests.support.png import GREY, GREY_ALPHA, KINDS, PALETTE, RGB, RGBA, SAMPLES, png
from worker.data.images import read_image, read_label, save
from worker.data.pictures import alike, in_colour
from worker.data.sources import ImageKind
from worker.data.volumes import Volume

SHAPE = (9, 11)


def read(path: Path, raw: bytes) -> Volume:
    path.write_bytes(raw)
    return read_image(path, ImageKind.PNG, "x")


def refused(path: Path, raw: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(path, raw)


def drawn(depth: int, kind: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Samples of a kind, what a person sees of them, and the colours of a palette."""
    dice = np.random.default_rng(depth * 8 + kind)
    samples = dice.integers(0, 2**depth, (*SHAPE, SAMPLES[kind]))
    palette = [dice.integers(0, 256, 3).tolist() for _ in range(2**depth)] if kind == PALETTE else []
    if kind in (GREY_ALPHA, RGBA):
        samples[..., -1] = 2**depth - 1
    if kind == PALETTE:
        return samples, np.array(palette, np.uint8)[samples[..., 0]], palette
    seen = samples[..., :3] if kind in (RGB, RGBA) else samples[..., 0]
    return samples, seen if depth == 16 else seen * 255 // (2**depth - 1), palette


def test_the_table_of_kinds_is_what_pillow_knows() -> None:
    assert set(PngImagePlugin._MODES) == set(KINDS)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "kind"), KINDS)
def test_every_kind_is_what_a_person_sees_or_refused(tmp_path: Path, depth: int, kind: int, interlaced: bool) -> None:
    samples, seen, palette = drawn(depth, kind)
    raw = png(samples, depth, kind, interlaced=interlaced, palette=palette)
    if depth == 16 and kind != GREY:
        refused(tmp_path / "x.png", raw, "has 16 bits in colour or with transparency, of which only 8 would be read")
        return
    volume = read(tmp_path / "x.png", raw)
    assert (volume.values == seen).all()
    assert volume.values.shape == seen.shape
    assert in_colour(tmp_path / "x.png", "x") is (kind in (RGB, RGBA, PALETTE))
    # A file that stays as it is holds for any reader what was read here; another one does so once it is written anew.
    place = tmp_path / "x.png" if volume.plain else save(volume, tmp_path / "y")
    with Image.open(place) as stored:
        assert (np.asarray(stored) == seen).all()
        assert stored.mode in ("L", "I;16", "I", "RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"])
def test_every_mode_that_pillow_saves_shows_the_same_picture(tmp_path: Path, mode: str) -> None:
    black_and_white = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), SHAPE)
    picture = Image.fromarray(black_and_white)
    if mode == "I;16":
        picture = Image.fromarray(black_and_white.astype(np.uint16))
    (picture if mode in ("L", "I;16") else picture.convert(mode)).save(tmp_path / "x.png")
    volume = alike(read_image(tmp_path / "x.png", ImageKind.PNG, "x"), False, "x")
    assert (volume.values == black_and_white).all()
    assert not in_colour(tmp_path / "x.png", "x")


@pytest.mark.parametrize(
    ("depth", "kind", "chunk"),
    [
        *((depth, GREY, struct.pack(">H", 1)) for depth in (1, 2, 4, 8, 16)),
        (8, RGB, struct.pack(">HHH", 1, 1, 1)),
        *((depth, PALETTE, b"\xff\x7f") for depth in (1, 2, 4, 8)),
    ],
)
def test_transparency_is_refused_where_it_is_seen(tmp_path: Path, depth: int, kind: int, chunk: bytes) -> None:
    samples, _, palette = drawn(depth, kind)
    samples[0, 0] = 1
    raw = png(samples, depth, kind, palette=palette, chunks=[(b"tRNS", chunk)])
    refused(tmp_path / "x.png", raw, "is transparent in places")
    samples[samples == 1] = 0
    raw = png(samples, depth, kind, palette=palette, chunks=[(b"tRNS", chunk)])
    volume = read(tmp_path / "x.png", raw)
    assert not volume.plain
    assert (volume.values == read(tmp_path / "x.png", png(samples, depth, kind, palette=palette)).values).all()


@pytest.mark.parametrize("kind", [GREY_ALPHA, RGBA])
def test_a_layer_of_transparency_is_refused_where_it_is_seen(tmp_path: Path, kind: int) -> None:
    samples, _, _ = drawn(8, kind)
    samples[3, 4, -1] = 254
    refused(tmp_path / "x.png", png(samples, 8, kind), "is transparent in places")


@pytest.mark.parametrize("up", range(1, 9))
def test_a_picture_that_says_which_side_is_up_is_turned(tmp_path: Path, up: int) -> None:
    values = np.arange(99, dtype=np.uint8).reshape(SHAPE)
    ways = [
        values, values[:, ::-1], values[::-1, ::-1], values[::-1], values.T, values[::-1].T, values[::-1, ::-1].T,
        values[:, ::-1].T,
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = up
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    volume = read_image(tmp_path / "x.png", ImageKind.PNG, "x")
    assert (volume.values == ways[up - 1]).all()
    assert volume.plain is (up == 1)


@pytest.mark.parametrize(("gamma", "fine"), [(45455, True), (100000, False), (0, False)])
@pytest.mark.parametrize("srgb", [False, True])
def test_a_picture_that_is_shown_otherwise_than_stored_is_refused(
    tmp_path: Path, gamma: int, fine: bool, srgb: bool
) -> None:
    samples, seen, _ = drawn(8, GREY)
    chunks = [(b"gAMA", struct.pack(">I", gamma))] + ([(b"sRGB", b"\0")] if srgb else [])
    raw = png(samples, 8, GREY, chunks=chunks)
    if fine or srgb:
        assert (read(tmp_path / "x.png", raw).values == seen).all()
    else:
        refused(tmp_path / "x.png", raw, "is to be shown with a gamma of")


def test_a_film_is_no_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full(SHAPE, grey, np.uint8)) for grey in (0, 200)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ConfigError, match="is a film of several pictures"):
        read_image(tmp_path / "x.png", ImageKind.PNG, "x")


def test_a_grey_picture_among_colours_has_three_values_and_a_colour_without_colours_one(tmp_path: Path) -> None:
    grey = Volume(np.arange(99, dtype=np.uint8).reshape(SHAPE), None)
    three = alike(grey, True, "x")
    assert (three.values == grey.values[..., None]).all()
    assert not three.plain
    assert (alike(three, False, "x").values == grey.values).all()
    assert alike(grey, False, "x") is grey
    with pytest.raises(ConfigError, match="has 16 bits, and other pictures here are in colour"):
        alike(Volume(grey.values.astype(np.uint16), None), True, "x")


# ---- labels


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_classes_are_a_palettes_places_and_not_its_colours(tmp_path: Path, depth: int) -> None:
    samples, _, palette = drawn(depth, PALETTE)
    (tmp_path / "x.png").write_bytes(png(samples, depth, PALETTE, palette=palette))
    label = read_label(tmp_path / "x.png", ImageKind.PNG, "x")
    assert (label.values == samples[..., 0]).all()
    with Image.open(save(label, tmp_path / "y")) as stored:
        assert stored.mode == "L"
        assert (np.asarray(stored) == samples[..., 0]).all()


def test_white_on_black_is_class_one(tmp_path: Path) -> None:
    samples, _, _ = drawn(1, GREY)
    (tmp_path / "x.png").write_bytes(png(samples, 1, GREY))
    label = read_label(tmp_path / "x.png", ImageKind.PNG, "x")
    assert (label.values == samples[..., 0]).all()
    assert not label.plain


@pytest.mark.parametrize("kind", [RGB, RGBA, GREY_ALPHA])
def test_grey_classes_in_a_coloured_file_are_read_and_colours_are_refused(tmp_path: Path, kind: int) -> None:
    samples, _, _ = drawn(8, kind)
    samples[..., :3] = samples[..., :1]
    if kind in (RGBA, GREY_ALPHA):
        samples[..., -1] = 255
    (tmp_path / "x.png").write_bytes(png(samples, 8, kind))
    label = read_label(tmp_path / "x.png", ImageKind.PNG, "x")
    assert (label.values == samples[..., 0]).all()
    if kind != GREY_ALPHA:
        samples[0, 0] = (1, 2, 3, 255)[: SAMPLES[kind]]
        (tmp_path / "x.png").write_bytes(png(samples, 8, kind))
        with pytest.raises(ConfigError, match="label x is in colour"):
            read_label(tmp_path / "x.png", ImageKind.PNG, "x")


def test_a_picture_that_says_it_is_enormous_is_refused_unread(tmp_path: Path) -> None:
    raw = bytearray(png(np.zeros((1, 1, 1), np.uint8), 8, GREY))
    raw[16:24] = struct.pack(">II", 100_000, 100_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    refused(tmp_path / "x.png", bytes(raw), "x cannot be read|an image has 1 to")
