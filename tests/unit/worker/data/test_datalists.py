"""A datalist is read however people and their programs write it, or one sentence says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from protocol.errors import ConfigError
from worker.data.datalist import Datalist, Task
from worker.data.datalist_parser import parse, read_datalist
from worker.statistics.figures import MIN_CELL, CaseFigures, DataSummary
from worker.statistics.measure import class_names, measure, task_of

ENTRY = {"image": "a.png", "label": 1}
GOOD: Mapping[str, object] = {"labels": {"0": "well", "1": "ill"}, "modality": {"0": "CT"}, "training": [ENTRY]}


def read(**changes: object) -> Datalist:
    return parse(json.dumps({**GOOD, **changes}), "x.json")


def label_of(label: object, **changes: object) -> object:
    return read(training=[{"image": "a.png", "label": label}], **changes).entries[0].label


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_list_is_read_in_every_encoding_that_says_itself(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({**GOOD, "name": "Süd"}, ensure_ascii=False)
    (tmp_path / "x.json").write_bytes(text.encode(encoding))
    found = read_datalist(tmp_path / "x.json")
    assert (found.name, len(found.entries)) == ("Süd", 1)
    assert [*found.cautions] == [] if encoding == "utf-8" else "which MONAI does not read" in found.cautions[0]
    (tmp_path / "x.json").write_bytes(text.encode("cp1252"))
    with pytest.raises(ConfigError, match=r"it is no text in UTF-8 .*save the datalist"):
        read_datalist(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"0": "well", "1": "ill"}, {0: "well", 1: "ill"}),
        ({"well": 0, "ill": 1}, {0: "well", 1: "ill"}),
        ({"well": 0, "ill": [1]}, {0: "well", 1: "ill"}),
        ({"well": "0", "ill": 1.0}, {0: "well", 1: "ill"}),
        ({"0": 0, "1": 1}, {0: "0", 1: "1"}),
        (["well", "ill"], {0: "well", 1: "ill"}),
        ({}, {}),
        (None, {}),
    ],
)
def test_classes_are_named_in_any_of_the_usual_ways(labels: object, found: Mapping[int, str]) -> None:
    assert read(labels=labels).labels == found


@pytest.mark.parametrize(
    ("modality", "found"),
    [("CT", "CT"), ({"0": "CT"}, "CT"), (["T1", "T2"], "T1, T2"), ({"0": "T1", "1": "T2"}, "T1, T2"), (None, "")],
)
def test_a_modality_is_a_text_or_several(modality: object, found: str) -> None:
    assert read(modality=modality).modality == found


def test_the_channels_of_nnu_net_are_modalities() -> None:
    document = {"channel_names": {"0": "T1", "1": "T2"}, "training": [ENTRY]}
    assert parse(json.dumps(document), "x.json").modality == "T1, T2"


@pytest.mark.parametrize(
    ("label", "found"),
    [
        *((label, 1) for label in (1, 1.0, True, "1", "ill", [1], [1.0], ["ill"])),
        *((label, (0, 1)) for label in ([0, 1], [0.0, 1.0], [False, True])),
        *((label, "labels/a.nii") for label in ("labels/a.nii", "./labels/a.nii", "labels\\a.nii", ["labels/a.nii"])),
        (None, None),
    ],
)
def test_a_label_is_a_class_a_list_of_them_or_a_file_however_it_is_written(label: object, found: object) -> None:
    assert label_of(label) == found


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("a.png", ("a.png",)),
        ("./b/a.png", ("b/a.png",)),
        ("b\\a.png", ("b/a.png",)),
        (["a.png"], ("a.png",)),
        (["t1.nii", "t2.nii"], ("t1.nii", "t2.nii")),
    ],
)
def test_an_image_is_a_file_or_several(image: object, found: tuple[str, ...]) -> None:
    for item in ({"image": image}, *([image] if isinstance(image, str) else ())):
        (entry,) = read(training=[item]).entries
        assert (entry.image, *entry.channels) == found


def test_paths_from_the_root_are_taken_where_they_lead_below_the_list(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"training": [str(tmp_path.resolve() / "b" / "a.png")]}))
    assert read_datalist(tmp_path / "link" / "x.json").entries[0].image == "b/a.png"


def test_what_monai_does_not_understand_is_said() -> None:
    assert read().cautions == []
    (told,) = read(training=["b\\a.png"]).cautions
    assert "MONAI finds them with / alone" in told
    (told,) = read(training=[{"image": "a.png", "label": "ill"}]).cautions
    assert "trainers take their numbers" in told


def test_a_patient_is_known_whichever_way_the_path_is_written() -> None:
    found = read(training=["./b/a.png", "b\\c.png"], patients={"p": ["b/a.png", "./b/c.png"]})
    assert {entry.patient for entry in found.entries} == {"p"}
    assert found.patients_known


WRONG: Mapping[str, tuple[object, str]] = {
    "alone": ([ENTRY], "is a list of examples alone"),
    "a text": ("x", "is no datalist; it has lists"),
    "nothing": ({}, "lists no image"),
    "train": ({"train": [ENTRY], "val": []}, "lists no image under training, validation, test, but under train; call"),
    "nnU-Net": ({"channel_names": {"0": "CT"}, "labels": {"a": 0}, "file_ending": ".nii.gz"}, "nnU-Net's description"),
    "no image": ({"training": [ENTRY, {"img": "a.png"}]}, "entry 2 of training has no image; it has img"),
    "an empty entry": ({"training": [{}]}, "entry 1 of training has no image; it has nothing"),
    "a table": ({"training": ENTRY}, "training is no list"),
    "no path": ({"training": [{"image": 3}]}, "the image of entry 1 of training is no path and no list of paths"),
    "no paths": ({"training": [{"image": ["a.png", None]}]}, "is no path and no list of paths"),
    "Windows": ({"training": ["C:\\data\\a.png"]}, r"names C:\\data\\a.png, a path of a Windows machine"),
    "a share": ({"training": ["\\\\nas\\a.png"]}, "a path of a Windows machine"),
    "elsewhere": ({"training": ["b\\..\\..\\a.png"]}, "which lies elsewhere"),
    "the root": ({"training": ["/data/a.png"]}, "which lies elsewhere"),
    "half a class": ({**GOOD, "test": [{"image": "b.png", "label": 0.5}]}, "entry 1 of test is 0.5, which is no class"),
    "an unknown class": (
        {**GOOD, "training": [{"image": "a.png", "label": "flu"}]},
        "the label 'flu', which is no path and none of the classes in `labels`, which are well, ill; correct",
    ),
    "two files": ({"training": [{"image": "a.png", "label": ["a.nii", "b.nii"]}]}, "gives entry 1 .* several labels"),
    "shares": ({"training": [{"image": "a.png", "label": [0.2, 0.8]}]}, "other values than zeros and ones"),
    "no marks": ({"training": [{"image": "a.png", "label": []}]}, "other values than zeros and ones"),
    "few marks": ({**GOOD, "training": [{"image": "a.png", "label": [0, 1, 1]}]}, "of 3 zeros and ones, and 2 classes"),
    "two lengths": (
        {"training": [{"image": "a.png", "label": [0, 1]}, {"image": "b.png", "label": [0, 1, 1]}]},
        "of 2 and 3 zeros and ones",
    ),
    "mixed": ({"training": [ENTRY, {"image": "b.png", "label": "b.nii"}]}, "has labels of several kinds"),
    "regions": ({**GOOD, "labels": {"a": 0, "whole": [1, 2]}}, "gives 'whole' several numbers in `labels`"),
    "one number": ({**GOOD, "labels": {"a": 0, "b": 0}}, "gives 'a' and 'b' one number"),
    "no number": ({**GOOD, "labels": {"a": "b"}}, "in `labels`; a class is a number and a name"),
    "no names": ({**GOOD, "labels": 3}, "`labels` that are no table"),
    "no patients": ({**GOOD, "patients": ["p"]}, "`patients` that are no table"),
    "two patients": ({**GOOD, "patients": {"p": ["a.png"], "q": ["./a.png"]}}, "gives a.png to two patients"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_one_thing_that_is_wrong_is_said(what: str) -> None:
    document, sentence = WRONG[what]
    with pytest.raises(ConfigError, match=f"^x.json .*{sentence}"):
        parse(json.dumps(document), "x.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"training": [{"image": "a"},]}', "it is no JSON: line 1, column"),
        ('{"training": [],\n "test": []\n "x": 1}', "it is no JSON: line 3, column 2"),
        ("{'training': []}", "it is no JSON: line 1, column 2"),
        ("", "it is no JSON: line 1, column 1"),
        ('{"training": [], "training": []}', "has 'training' twice"),
        ("[" * 100_000, "is no datalist"),
        ('{"labels": {"' + "9" * 5000 + '": "x"}, "training": ["a"]}', "a class is a number and a name"),
    ],
)
def test_what_is_no_json_is_shown_by_its_place(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(text, "x.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "label", "training", "labels", "0"]) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)
keys = st.sampled_from(["training", "validation", "test", "labels", "patients", "modality", "name"])


@given(st.dictionaries(keys, values) | values)
def test_whatever_a_list_holds_it_is_read_or_refused(document: object) -> None:
    try:
        found = parse(json.dumps(document), "x.json")
    except ConfigError as error:
        told = str(error)
    else:
        told, again = "x.json", parse(found.text(), "x.json")
        assert again.entries == found.entries
    assert told.startswith("x.json")


# ---- figures of what a list says


def test_channels_in_files_of_their_own_are_one_image(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        shape = (3, 4) if name != "c.png" else (4, 3)
        Image.fromarray(np.full(shape, number * 10, np.uint8)).save(tmp_path / name)
    (case,) = measure(read(training=[{"image": ["a.png", "b.png"]}]), tmp_path, lambda done, total: None)
    assert (case.figures["intensity.c0.all.mean"], case.figures["intensity.c1.all.mean"]) == (0, 10)
    assert (case.figures["shape.x"], case.figures["shape.y"]) == (4, 3)
    with pytest.raises(ConfigError, match=r"a.png and the other files of its image differ in size"):
        list(measure(read(training=[{"image": ["a.png", "c.png"]}]), tmp_path, lambda done, total: None))


def test_a_list_of_zeros_and_ones_counts_each_class_that_is_there(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.png")
    found = read(training=[{"image": "a.png", "label": [0, 1]}])
    (case,) = measure(found, tmp_path, lambda done, total: None)
    assert (task_of(found), class_names(found), case.voxels) == (Task.MULTILABEL, ["well", "ill"], {"ill": 1})


@given(st.integers(MIN_CELL, 40), st.integers(MIN_CELL, 40), st.data())
def test_zeros_and_ones_hide_a_rare_class_and_a_rare_absence(many: int, more: int, data: st.DataObject) -> None:
    """Whether each image has one class, or any number of them, does not follow from a list."""
    few = data.draw(st.integers(0, MIN_CELL - 1))
    owners = [{"a": 1}] * many + [{"b": 1}] * more + [{"c": 1}] * few
    cases = [CaseFigures(patient=str(n), figures={}, voxels=classes) for n, classes in enumerate(owners)]
    found = DataSummary(task=Task.MULTILABEL, classes=["a", "b", "c"]).of(cases)
    assert (found["patients"], found["patients.c"]) == ("withheld", f"<{MIN_CELL}")
    common = [{"a": 1}] * many + [{}] * data.draw(st.integers(1, MIN_CELL - 1))
    cases = [CaseFigures(patient=str(n), figures={}, voxels=classes) for n, classes in enumerate(common)]
    assert DataSummary(task=Task.MULTILABEL, classes=["a"]).of(cases)["patients.a"] == f"all but <{MIN_CELL}"
