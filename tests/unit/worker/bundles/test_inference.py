"""A bundle infers with what training would take: one result a series, drawn on its image, or a sentence why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation

from protocol.errors import ConfigError
from tests.support.dicom import write_series
from tests.support.monai_marks import MONAI
from worker.api.weights import Weights
from worker.bundles.inference import OVERLAY, SCRATCH, BundleInference, Drawn
from worker.bundles.inputs import Reading, images_below
from worker.bundles.overlay import lies_alike, picture, results_of
from worker.data.sources import Admission
from worker.data.volumes import Volume
from worker.trainers.initial import spec_and_payload

pytestmark = MONAI
AS_EVER = Reading()


def bundle(folder: Path, pattern: str = "/listed/*", *, resample: float = 0) -> Path:
    """One convolution that gives an image back, and the bundle saves where it is bright."""
    load: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
    ]
    if resample:
        load.append({"_target_": "Spacingd", "keys": "image", "pixdim": [resample] * 3})
    config = {
        "imports": ["$import glob"],
        "dataset_dir": "data",
        "output_dir": "out",
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
        "dataset": {
            "_target_": "Dataset",
            "data": f"$[{{'image': i}} for i in sorted(glob.glob(@dataset_dir + {pattern!r}, include_hidden=True))]",
            "transform": {"_target_": "Compose", "transforms": [*load, {"_target_": "EnsureTyped", "keys": "image"}]},
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
            "network": "@network_def",
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
                    {
                        "_target_": "SaveImaged",
                        "keys": "pred",
                        "output_dir": "@output_dir",
                        "output_postfix": "seg",
                        "separate_folder": False,
                        "resample": False,
                        "print_log": False,
                    },
                ],
            },
        },
    }
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    return folder


def inferred(root: Path, images: Path, output: Path, **more: Any) -> tuple[BundleInference, Drawn]:
    output.mkdir()
    inference = BundleInference(root, images=images, output=output, **more)
    for value in inference.network.parameters():
        value.data.fill_(1 if value.ndim > 1 else 0)
    spec, records = spec_and_payload(inference.network)
    payload = list(records)
    return inference, inference.run(Weights(spec, lambda: iter(payload)))


def results(output: Path) -> dict[str, Any]:
    return {path.name: nibabel.load(path) for path in sorted(output.rglob("*.nii.gz"))}


def as_x_ray(image: Dataset, _: int) -> None:
    del image.ImagePositionPatient, image.ImageOrientationPatient
    image.Modality, image.SOPClassUID = "DX", DigitalXRayImageStorageForPresentation


def nifti(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(6, 5, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), path)


# ---- one result a series


def test_every_series_has_one_result_in_its_place_whose_name_says_no_patient(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "Doe_Jane"
    written = write_series(folder, seed=1)
    write_series(tmp_path / "other", seed=2)
    for path in (tmp_path / "other").iterdir():
        shutil.copy(path, folder / f"post {path.name}")
    write_series(tmp_path / "in" / "x-rays", slices=2, change=as_x_ray)
    told: list[tuple[int, int]] = []
    inference, drawn = inferred(
        bundle(tmp_path / "bundle"),
        tmp_path / "in",
        tmp_path / "out",
        reading=Reading(progress=lambda *moved: told.append(moved)),
    )
    found = results(tmp_path / "out")
    assert sorted(image.shape for image in found.values()) == [(6, 8), (6, 8), (6, 8, 5), (6, 8, 5)]
    assert not inference.own_list
    assert [name[:3] for name in found] == ["ct-", "ct-", "dx-", "dx-"]
    turned = np.abs(next(iter(found.values())).affine[:3, :3])
    assert np.allclose(turned, np.abs(written.affine[:3, :3]), atol=1e-5)
    assert sorted(drawn.pictures) == [name.replace(".nii.gz", OVERLAY) for name in found]
    assert drawn.elsewhere == []
    assert not (tmp_path / "out" / SCRATCH).exists()
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_names_stay_the_same_from_one_inference_to_the_next(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_series(tmp_path / "in" / name, seed=seed)
    both = images_below(tmp_path / "in", tmp_path / "s", AS_EVER).images
    shutil.rmtree(tmp_path / "in" / "a")
    (alone,) = images_below(tmp_path / "in", tmp_path / "s", AS_EVER).images
    assert alone.name in {image.name for image in both}


Fill = Callable[[Path], object]


def twice(folder: Path) -> None:
    for path in list(write_series(folder / "p").folder.iterdir()):
        shutil.copy(path, path.with_name(f"copy {path.name}"))


def not_finite(folder: Path) -> None:
    folder.mkdir()
    values = np.full((3, 3, 3), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "x.nii.gz")


def mixed(folder: Path) -> None:
    write_series(folder / "p")
    nifti(folder / "q" / "x.nii.gz")


def same_names(folder: Path) -> None:
    for place in "pq":
        (folder / place).mkdir(parents=True)
        (folder / place / "x.bmp").write_bytes(b"BM")


REFUSED: Mapping[str, tuple[Fill, str]] = {
    "gap": (lambda folder: write_series(folder / "p", skip=[2]), "p: slices are missing or unevenly spaced"),
    "twice": (twice, "are the same image twice"),
    "nan": (not_finite, "x.nii.gz holds values that are no numbers"),
    "mixed": (mixed, "holds DICOM and other images; take each by itself"),
    "names": (same_names, "have the same name, and so would their results"),
    "nothing": (lambda folder: (folder / "p").mkdir(parents=True), "holds no images"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_training_would_refuse_is_refused_with_the_same_sentence(tmp_path: Path, what: str) -> None:
    fill, sentence = REFUSED[what]
    fill(tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=sentence):
        BundleInference(bundle(tmp_path / "bundle"), images=tmp_path / "in", output=tmp_path / "out")


SKIP = Reading(Admission(nameless=True, skip_refused=True))


@pytest.mark.parametrize("place", ["listed", "elsewhere"])
def test_what_would_be_refused_is_left_out_if_that_is_wanted(tmp_path: Path, place: str) -> None:
    not_finite(tmp_path / "in")
    (tmp_path / "in" / place).mkdir()
    shutil.copy(tmp_path / "in" / "x.nii.gz", tmp_path / "in" / place / "a.nii.gz")
    (tmp_path / "in" / "x.nii.gz").rename(tmp_path / "in" / place / "b.nii.gz")
    root = bundle(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="with --skip-refused"):
        BundleInference(root, images=tmp_path / "in", output=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"in holds no image that can be used: 2 images cannot be used: .*NaN.*NaN"):
        BundleInference(root, images=tmp_path / "in", output=tmp_path / "none", reading=SKIP)
    nifti(tmp_path / "in" / place / "right.nii.gz")
    inference, drawn = inferred(root, tmp_path / "in", tmp_path / "out", reading=SKIP)
    assert inference.own_list is (place == "listed")
    assert [name.partition("_")[0] for name in results(tmp_path / "out")] == ["right"]
    assert len(drawn.pictures) == inference.count == 1
    assert [reason.partition(" holds")[0] for reason in inference.inputs.refused] == [
        f"{place}/a.nii.gz",
        f"{place}/b.nii.gz",
    ]


def test_series_that_would_be_refused_are_left_out_if_that_is_wanted(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "gap", skip=[2])
    with pytest.raises(ConfigError, match="holds no image that can be used: gap: slices are missing"):
        images_below(tmp_path / "in", tmp_path / "s", SKIP)
    write_series(tmp_path / "in" / "right", seed=1)
    found = images_below(tmp_path / "in", tmp_path / "s", SKIP)
    assert [image.source.name for image in found.images if image.source] == ["right"]
    assert len(found.refused) == 1


def test_images_of_one_name_have_results_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate(("p/ct.nii.gz", "q/ct.nii.gz", "q/mr.nii")):
        nifti(tmp_path / "in" / name, number)
    inference, drawn = inferred(bundle(tmp_path / "bundle"), tmp_path / "in", tmp_path / "out")
    found = results(tmp_path / "out")
    assert len(found) == len(drawn.pictures) == 3
    assert [name.partition("-")[0] for name in found] == ["ct", "ct", "mr_seg.nii.gz"]
    named = {image.name: image.source.name for image in inference.inputs.images if image.source is not None}
    for name, image in found.items():
        source = nibabel.load(tmp_path / "in" / named[name.removesuffix("_seg.nii.gz")])
        assert ((source.get_fdata() >= 0.5) == (image.get_fdata() > 0)).all()


def test_images_without_a_patient_are_no_trouble_and_what_is_there_twice_may_be_dropped(tmp_path: Path) -> None:
    for path in list(write_series(tmp_path / "in", None).folder.iterdir()):
        shutil.copy(path, path.with_name(f"copy {path.name}"))
    found = images_below(tmp_path / "in", tmp_path / "s", Reading(Admission(nameless=True, drop_duplicates=True)))
    assert len(found.images) == 1
    assert len(found.dropped) == 5


def test_what_only_a_bundles_own_readers_know_is_given_to_them(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "a" / "x.nii.gz")
    for name, content in (("y.bmp", b"BM"), ("z.nrrd", b"NRRD0004"), ("notes.txt", b"x"), ("._x.png", b"")):
        (tmp_path / "in" / name).write_bytes(content)
    found = images_below(tmp_path / "in", tmp_path / "s", AS_EVER)
    assert [image.path.name for image in found.images] == ["x.nii.gz", "y.bmp", "z.nrrd"]
    assert found.left_out == {"files that are no images": ["notes.txt"]}


# ---- the bundle's own list


def test_hidden_files_in_a_bundles_own_list_are_passed_over(tmp_path: Path) -> None:
    for number in range(2):
        nifti(tmp_path / "in" / "listed" / f"c{number}.nii.gz", number)
        (tmp_path / "in" / "listed" / f"._c{number}.nii.gz").write_bytes(b"\0\5\26\7")
    inference, drawn = inferred(bundle(tmp_path / "bundle"), tmp_path / "in", tmp_path / "out")
    assert list(results(tmp_path / "out")) == ["c0_seg.nii.gz", "c1_seg.nii.gz"]
    assert (inference.count, inference.own_list) == (2, True)
    assert len(drawn.pictures) == 2


def test_a_folder_of_slices_in_a_bundles_own_list_is_read_by_series(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "listed" / "p", skip=[1])
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="listed/p: slices are missing"):
        BundleInference(bundle(tmp_path / "bundle"), images=tmp_path / "in", output=tmp_path / "out")


def test_a_result_on_another_grid_than_its_image_is_said(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "listed" / "c.nii.gz")
    inference, drawn = inferred(bundle(tmp_path / "bundle", resample=0.7), tmp_path / "in", tmp_path / "out")
    assert inference.own_list
    assert list(drawn.elsewhere) == ["c_seg.nii.gz"]
    assert list(drawn.pictures) == [f"c_seg{OVERLAY}"]


# ---- pictures


def colours(drawn: Image.Image) -> set[tuple[int, ...]]:
    found = np.asarray(drawn).reshape(-1, 3)
    return {tuple(map(int, each)) for each in np.unique(found, axis=0) if len(set(map(int, each))) > 1}


@pytest.mark.parametrize("turn", [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]])
def test_a_result_is_drawn_where_it_lies_as_radiologists_look_at_it(turn: list[list[int]]) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    canonical = np.zeros((20, 20, 20), np.uint8)
    canonical[14:18, 13:18, 8:12] = 1  # right, in front
    image = nibabel.Nifti1Image(canonical, np.eye(4))
    back = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.io_orientation(matrix)
    )
    values = np.asarray(image.as_reoriented(back).dataobj)
    drawn = picture(Volume(values.astype(np.float32), matrix), Volume(values, matrix))
    pixels = np.asarray(drawn)[:, :200].astype(int)
    coloured = np.argwhere(np.ptp(pixels, axis=-1) > 60)
    assert coloured[:, 0].max() < 384 / 2  # in front is at the top
    assert coloured[:, 1].max() < 384 / 2  # the patient's right is on the left


@pytest.mark.parametrize(
    ("shape", "many"), [((9, 8, 7), 1), ((9, 8, 7, 3), 3), ((9, 8, 7, 1), 1), ((9, 8), 1), ((9, 1, 7), 1)]
)
def test_labels_channels_and_flat_results_have_a_colour_for_each_class(shape: Sequence[int], many: int) -> None:
    result = np.zeros(shape, np.float32)
    if many > 1:
        for channel in range(many):
            result[2 : 5 + channel, 1:5, 1:5, channel] = 0.9
    else:
        result.reshape(9, -1)[2:6] = 1
    image = np.random.default_rng(0).normal(size=(*result.shape, 1, 1)[:3]).astype(np.float32)
    drawn = picture(Volume(image, np.diag([1.0, 1.0, 3.0, 1.0])), Volume(result, np.diag([1.0, 1.0, 3.0, 1.0])))
    assert len(colours(drawn)) >= many
    assert drawn.height <= 384


def test_what_is_no_class_is_coloured_by_its_strength() -> None:
    dice = np.random.default_rng(0)
    image = Volume(dice.normal(size=(9, 8, 7)).astype(np.float32), np.eye(4))
    assert len(colours(picture(image, Volume(dice.random((9, 8, 7), np.float32), np.eye(4))))) > 20


@pytest.mark.parametrize("fill", [0, 1])
def test_a_constant_image_and_an_empty_result_are_drawn_too(fill: int) -> None:
    image = Volume(np.zeros((5, 5, 5), np.int16), np.eye(4))
    result = Volume(np.full((5, 5, 5), fill, np.uint8), np.eye(4))
    assert picture(image, result).width > 384
    assert lies_alike(result, image)


@pytest.mark.parametrize("shape", [(30, 20), (30, 20, 3)])
def test_a_picture_without_a_place_is_shown_as_it_lies(shape: Sequence[int]) -> None:
    image = np.zeros(shape, np.uint8)
    mask = np.zeros((30, 20), np.uint8)
    mask[2:8, 12:18] = 1
    for result in (Volume(mask, None), Volume(mask.T, np.eye(4)), Volume(mask.T[..., None], np.eye(4))):
        drawn = np.asarray(picture(Volume(image, None), result)).astype(int)
        coloured = np.argwhere(np.ptp(drawn, axis=-1) > 60)
        assert coloured[:, 0].max() < drawn.shape[0] / 2
        assert coloured[:, 1].min() > drawn.shape[1] / 2


def test_results_belong_to_the_longest_name_that_fits(tmp_path: Path) -> None:
    for name in ("c1/c1_seg.nii.gz", "c1_b_seg.nii.gz", "c10.nii.gz", "other.png", ".images/c1.nii.gz", "c1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {path.relative_to(tmp_path).as_posix(): name for name, path in results_of(tmp_path, ["c1", "c1_b"])}
    assert found == {"c1/c1_seg.nii.gz": "c1", "c1_b_seg.nii.gz": "c1_b"}
