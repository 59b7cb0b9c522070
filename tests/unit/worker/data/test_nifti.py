"""NIfTI files as programs write them become what they mean, or one sentence says what is wrong with them."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from protocol.errors import ConfigError
from worker.data.discovery import find, kind_of
from worker.data.images import check_classes, on_grid, read_image, read_label, save
from worker.data.sources import ImageKind
from worker.data.volumes import Volume, check_values

Array = np.ndarray[Any, Any]
Made = Any
"""An image of nibabel, which has no types."""
PLACE = np.diag([0.8, 0.8, 3.0, 1.0])
dice = np.random.default_rng(0)
VALUES = dice.integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
DRAWN = dice.integers(0, 3, (6, 5, 4)).astype(np.uint8)


def made(values: Array, affine: Array | None = PLACE, **given: Any) -> Made:
    return nibabel.Nifti1Image(values, affine, **given)


def written(image: Made, folder: Path, name: str = "x.nii.gz") -> Path:
    folder.mkdir(exist_ok=True)
    nibabel.save(image, folder / name)
    return folder / ("x.hdr" if name.endswith(".img") else name)


def taken(image: Made, label: Made, folder: Path, name: str = "x.nii.gz") -> tuple[Volume, Volume]:
    """What an image and its label are, as `prepare` and `stats` find them."""
    places = written(image, folder / "image", name), written(label, folder / "label", name)
    assert {kind_of(place) for place in places} == {ImageKind.NIFTI}
    volume = read_image(places[0], ImageKind.NIFTI, "x")
    check_values("x", volume.values)
    drawn = on_grid(read_label(places[1], ImageKind.NIFTI, "x"), volume, "x")
    check_classes("x", drawn.values)
    return volume, drawn


def scaled(image: Made, slope: float) -> Made:
    image.header.set_slope_inter(slope, 0)
    return image


def forms(image: Made, qform: Array | None, sform: Array | None) -> Made:
    image.set_qform(qform, 0 if qform is None else 1)
    image.set_sform(sform, 0 if sform is None else 1)
    return image


def mirrored() -> Made:
    affine = PLACE.copy()
    affine[0, 0], affine[0, 3] = -0.8, 0.8 * 5
    return made(DRAWN[::-1], affine)


def thin() -> Made:
    """A slice to which a program gave no thickness."""
    affine = PLACE.copy()
    affine[2, 2] = 0
    image = made(VALUES[..., 0])
    image.header["srow_z"], image.header["sform_code"] = 0, 1
    return nibabel.Nifti1Image(VALUES[..., 0], affine, image.header)


def measured(image: Made, unit: str, size: float) -> Made:
    """The same in another unit."""
    affine = image.affine.copy()
    affine[:3] /= size
    image = image.__class__(np.asanyarray(image.dataobj), affine)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units(unit)
    return image


MOVED = PLACE.copy()
MOVED[0, 3] = 30
SHEARED = PLACE.copy()
SHEARED[0, 1] = 0.3
FINE: Mapping[str, Callable[[], tuple[Made, Made]]] = {
    "int64": lambda: (made(VALUES.astype(np.int64), dtype=np.int64), made(DRAWN.astype(np.int64), dtype=np.int64)),
    "floats": lambda: (made(VALUES.astype(np.float64)), made(DRAWN.astype(np.float64))),
    "a scale of 1/255": lambda: (made(VALUES), scaled(made(DRAWN * np.float32(255)), 1 / 255)),
    "a fourth axis of one": lambda: (made(VALUES[..., None]), made(DRAWN[..., None])),
    "a fifth axis of one": lambda: (made(VALUES[..., None, None]), made(DRAWN[..., None, None])),
    "big-endian": lambda: (
        nibabel.Nifti1Image(VALUES, PLACE, nibabel.Nifti1Header(endianness=">")),
        nibabel.Nifti1Image(DRAWN, PLACE, nibabel.Nifti1Header(endianness=">")),
    ),
    "NIfTI-2": lambda: (nibabel.Nifti2Image(VALUES, PLACE), nibabel.Nifti2Image(DRAWN, PLACE)),
    "either form": lambda: (forms(made(VALUES), None, PLACE), forms(made(DRAWN), PLACE, None)),
    "no form": lambda: (forms(made(VALUES), None, None), forms(made(DRAWN), None, None)),
    "two forms that differ": lambda: (forms(made(VALUES), MOVED, PLACE), made(DRAWN)),
    "sheared": lambda: (made(VALUES, SHEARED), made(DRAWN, SHEARED)),
    "mirrored": lambda: (made(VALUES), mirrored()),
    "microns": lambda: (measured(made(VALUES), "micron", 0.001), made(DRAWN)),
    "metres": lambda: (made(VALUES), measured(made(DRAWN), "meter", 1000)),
    "a hair beside": lambda: (made(VALUES), made(DRAWN, PLACE + np.eye(4, k=3) * 0.001)),
}


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".img"])
@pytest.mark.parametrize("what", FINE)
def test_files_that_mean_the_same_are_read_the_same(tmp_path: Path, what: str, ending: str) -> None:
    image, label = FINE[what]()
    if ending == ".img":
        kind = nibabel.Nifti2Pair if what == "NIfTI-2" else nibabel.Nifti1Pair
        slope = label.header.get_slope_inter()[0] or 1
        image, label = (kind(np.asanyarray(each.dataobj), each.affine, each.header) for each in (image, label))
        scaled(label, slope)
    volume, drawn = taken(image, label, tmp_path, f"x{ending}")
    assert volume.values.shape == drawn.values.shape == VALUES.shape
    assert (volume.values == VALUES).all()
    assert (drawn.values == DRAWN).all()
    # What stays as it is says the same to MONAI, which takes the sform; the rest is written anew.
    for each, values, place in ((volume, VALUES, "image"), (drawn, DRAWN, "label")):
        path = tmp_path / place / f"x{ending}" if each.plain else save(each, tmp_path / place / "y")
        again = nibabel.load(path)
        assert again.shape == VALUES.shape
        assert (np.asanyarray(again.dataobj) == values).all()
        assert np.allclose(again.affine, volume.affine, atol=0.01)
        if not each.plain:
            assert again.get_data_dtype() in (np.uint8, np.int16)
            assert (again.get_qform(), again.get_sform())[1] == pytest.approx(volume.affine, abs=1e-5)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_label_along_any_axes_is_turned_onto_its_image(order: tuple[int, ...]) -> None:
    oblique = PLACE @ np.array([[0.9, -0.2, 0.1, 5], [0.2, 0.9, 0.3, 7], [-0.1, -0.3, 0.9, -3], [0, 0, 0, 1]])
    image = Volume(VALUES, oblique)
    for flips in product((1, -1), repeat=3):
        there = made(DRAWN, oblique).as_reoriented(np.array([*zip(order, flips, strict=True)]))
        label = Volume(np.asanyarray(there.dataobj), np.asarray(there.affine))
        found = on_grid(label, image, "x")
        assert (found.values == DRAWN).all()
        assert found.affine is oblique
        assert found.plain is ((order, flips) == ((0, 1, 2), (1, 1, 1)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.img", "x.hdr", "x.png", "x", "x.nii.gz.bak"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_file_is_what_is_in_it_whatever_it_is_called(tmp_path: Path, name: str, packed: bool, kind: Made) -> None:
    raw = kind(VALUES, PLACE).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
    assert kind_of(tmp_path / name) is ImageKind.NIFTI
    assert (read_image(tmp_path / name, ImageKind.NIFTI, "x").values == VALUES).all()


@pytest.mark.parametrize("image", [(6, 5), (6, 5, 1), (6, 5, 1, 1)])
@pytest.mark.parametrize("label", [(6, 5), (6, 5, 1), (6, 5, 1, 1)])
def test_a_slice_has_two_axes_or_a_third_of_one(tmp_path: Path, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    volume, drawn = taken(made(VALUES[..., 0].reshape(image)), made(DRAWN[..., 0].reshape(label)), tmp_path)
    assert volume.values.shape == image[:3]
    assert (drawn.values == DRAWN[..., 0].reshape(image[:3])).all()


def test_a_slice_without_thickness_lies_where_its_axes_say(tmp_path: Path) -> None:
    volume = read_image(written(thin(), tmp_path), ImageKind.NIFTI, "x")
    assert volume.affine is not None
    assert volume.affine[:3, :3] == pytest.approx(np.diag([0.8, 0.8, 1]))
    assert not volume.plain


def test_channels_are_the_last_axis_and_no_matter_for_the_label(tmp_path: Path) -> None:
    channels = np.stack([VALUES, -VALUES], -1)
    for image in (made(channels), made(channels[..., None, :])):  # a time series, and a vector
        volume, drawn = taken(image, made(DRAWN), tmp_path)
        assert (volume.values == channels).all()
        assert drawn.values.shape == VALUES.shape


def complex_values() -> Array:
    return VALUES + 1j * VALUES


def colours() -> Array:
    return np.zeros(VALUES.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


def float_values(value: float, kind: str = "f4") -> Array:
    values = VALUES.astype(kind)
    values[0, 0, 0] = value
    return values


WRONG: Mapping[str, tuple[Callable[[], Made], Callable[[], Made], str]] = {
    "NaN": (lambda: made(float_values(np.nan)), lambda: made(DRAWN), "no numbers"),
    "infinite": (lambda: made(float_values(np.inf)), lambda: made(DRAWN), "no numbers"),
    "enormous": (lambda: made(float_values(1e60, "f8")), lambda: made(DRAWN), "which training cannot hold"),
    "complex": (lambda: made(complex_values()), lambda: made(DRAWN), "in colour or has complex"),
    "colours": (lambda: made(colours()), lambda: made(DRAWN), "in colour or has complex"),
    "five axes": (
        lambda: made(np.stack([np.stack([VALUES] * 2, -1)] * 3, -1)),
        lambda: made(DRAWN),
        "has 5 axes; an image has at most four",
    ),
    "a row": (lambda: made(VALUES[:, 0, 0]), lambda: made(DRAWN), "is a row of 6 values and no image"),
    "turned forms": (
        lambda: forms(made(VALUES), PLACE @ np.diag([-1, 1, 1, 1]), PLACE),
        lambda: made(DRAWN),
        r"x says twice where it lies, and turned against each other \(sform RAS, qform LAS\)",
    ),
    "label of channels": (
        lambda: made(np.stack([VALUES] * 3, -1)),
        lambda: made(np.stack([DRAWN] * 3, -1)),
        "label x has 3 channels; a label has one number",
    ),
    "label of halves": (lambda: made(VALUES), lambda: made(DRAWN * np.float32(0.5)), "other values than the whole"),
    "label NaN": (lambda: made(VALUES), lambda: made(float_values(np.nan) * 0), "other values than the whole"),
    "label -1": (lambda: made(VALUES), lambda: made(-DRAWN.astype(np.int16)), "other values than the whole"),
    "label 300": (lambda: made(VALUES), lambda: made(DRAWN.astype(np.int16) * 300), "other values than the whole"),
    "label complex": (lambda: made(VALUES), lambda: made(DRAWN + 0j), "other values than the whole"),
    "label beside": (lambda: made(VALUES), lambda: made(DRAWN, MOVED), "lies up to 30 mm beside its image"),
    "label of another size": (lambda: made(VALUES), lambda: made(DRAWN[:, :, :3]), "6 × 5 × 3 voxels and its image"),
    "label of a slice": (lambda: made(VALUES), lambda: made(DRAWN[..., 0]), "6 × 5 × 1 voxels and its image"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    image, label, sentence = WRONG[what]
    with pytest.raises(ConfigError, match=sentence):
        taken(image(), label(), tmp_path)


def test_a_picture_is_drawn_on_a_film_and_on_no_other_volume() -> None:
    film = Volume(np.zeros((7, 4, 1), np.int16), PLACE)
    picture = Volume(np.arange(28, dtype=np.uint8).reshape(4, 7) % 3, None)
    assert (on_grid(picture, film, "x", film=True).values[..., 0] == picture.values.T).all()
    with pytest.raises(ConfigError, match="are a picture and a volume; save the label in the format of its image"):
        on_grid(picture, film, "x")
    with pytest.raises(ConfigError, match="are a picture and a volume"):
        on_grid(film, picture, "x")


def test_header_and_voxels_apart_are_one_image(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VALUES, PLACE), tmp_path / "a.img")
    found = find(tmp_path)
    assert [path.name for path in found.files[ImageKind.NIFTI]] == ["a.hdr"]
    (tmp_path / "a.img").unlink()
    with pytest.raises(ConfigError, match="x cannot be read"):
        read_image(tmp_path / "a.hdr", ImageKind.NIFTI, "x")
