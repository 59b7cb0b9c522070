"""A class has the same number at every hospital, whatever classes a hospital has."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, DataError
from worker.data.classes import check_renamed, check_run, check_seen, class_list, in_order, numbered, read_classes

ALL = ("covid", "normal", "pneumonia")
names = st.text(st.characters(codec="utf-8", exclude_characters=",\n\r"), min_size=1, max_size=8)


@given(st.sets(st.sampled_from(ALL)), st.sets(st.sampled_from(ALL)))
def test_the_federations_list_gives_a_class_one_number_everywhere(here: set[str], there: set[str]) -> None:
    assert numbered(here, ALL) == numbered(there, ALL) == {"covid": 0, "normal": 1, "pneumonia": 2}


def test_a_class_that_the_list_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"the classes Covid, flu are not among those of --classes \(covid, normal"):
        numbered(["covid", "flu", "Covid"], ALL)


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (["10", "2", "0"], ["0", "2", "10"]),
        (["10", "2.5", "-1"], ["-1", "2.5", "10"]),
        (["grade 10", "grade 2"], ["grade 2", "grade 10"]),
        (["b", "a", "10"], ["10", "a", "b"]),
        (["T1", "T1b2", "T1b10", "T1a"], ["T1", "T1a", "T1b2", "T1b10"]),
        (["01", "1"], ["01", "1"]),
        (["²", "1"], ["1", "²"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
    ],
)
def test_without_a_list_numbers_are_in_their_order(found: Sequence[str], order: Sequence[str]) -> None:
    assert in_order(found) == order


@given(st.sets(names, min_size=1))
def test_any_names_have_an_order_of_their_own(found: set[str]) -> None:
    assert in_order(found) == in_order(sorted(found, reverse=True))
    assert set(in_order(found)) == found
    numbers = numbered(found)
    assert sorted(numbers.values()) == list(range(len(numbers)))


def test_a_name_written_on_a_mac_is_the_same_name() -> None:
    apart = unicodedata.normalize("NFD", "Lungenentzündung")
    assert numbered([apart, "gesund"], class_list("gesund,Lungenentzündung"))["Lungenentzündung"] == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_may_stand_in_a_file(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "classes.txt").write_bytes(end.join(["covid ", "normal, really", "", "Süd", ""]).encode(encoding))
    assert class_list(str(tmp_path / "classes.txt")) == ("covid", "normal, really", "Süd")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("classes.txt", "names 1 classes; .* a file that is there"),
        ("", "names 0 classes"),
        ("a,,b", "write 2 to 256 names"),
        ("a,b,a", "names a more than once"),
        (",".join(map(str, range(257))), "names 257 classes"),
    ],
)
def test_what_is_no_list_of_classes_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        class_list(text)


@pytest.mark.parametrize(
    ("given", "fine"),
    [({0: "healthy"}, True), ({1: "normal"}, True), ({1: "covid"}, False), ({2: "pneumonia"}, False)],
)
def test_another_name_changes_no_number(given: Mapping[int, str], fine: bool) -> None:
    here = {0: "0", 1: "normal"}
    if fine:
        check_renamed(given, here)
    else:
        with pytest.raises(ConfigError, match="--classes names the classes of all sites"):
            check_renamed(given, here)


def test_a_label_of_grey_values_is_no_label_unless_its_classes_are_named() -> None:
    check_seen("x", range(64), ())
    with pytest.raises(ConfigError, match=r"the label of x holds 65 different values; is it an image, or was it"):
        check_seen("x", range(65), ())
    check_seen("x", range(200), [str(number) for number in range(200)])
    with pytest.raises(ConfigError, match=r"label x holds 2, and --classes names 0 to 1"):
        check_seen("x", [0, 2], ("background", "liver"))


@pytest.mark.parametrize("by", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("header", [("image", "label"), ("Label ", "age", '"Image"')])
def test_a_table_of_classes_is_read_as_spreadsheets_write_it(
    tmp_path: Path, by: str, encoding: str, header: Sequence[str]
) -> None:
    row = {"image": "a 1.png", "label": "ill", "age": "7"}
    lines = [by.join(header), by.join(row[name.strip(' "').lower()] for name in header)]
    (tmp_path / "x.csv").write_bytes("\r\n".join(lines).encode(encoding))
    assert read_classes(tmp_path / "x.csv") == {"a 1.png": "ill"}


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("image,label\na.png,Süd\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"save a CSV file .* as UTF-8"):
        read_classes(tmp_path / "x.csv")


# ---- a run's classes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path


def listed(folder: Path, labels: object) -> None:
    document = {"labels": labels, "training": [{"image": "a.png", "label": 0}]}
    (folder / "dataset.json").write_text(json.dumps(document))


@pytest.mark.parametrize("labels", [{"0": "covid", "1": "normal"}, dict(enumerate(ALL)), {"2": "pneumonia"}, {}])
def test_data_that_number_their_classes_as_the_run_does_are_trained_on(data: Path, labels: object) -> None:
    listed(data, labels)
    check_run({"classes": ALL}, {"dataset_dir": str(data)})


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"0": "normal", "1": "pneumonia"}, "calls class 0 normal, and in the run it is covid"),
        ({"0": "covid", "3": "flu"}, "calls class 3 flu, and in the run it is no class"),
        ({"-1": "covid"}, "calls class -1 covid, and in the run it is no class"),
    ],
)
def test_data_that_number_them_otherwise_are_refused(data: Path, labels: object, sentence: str) -> None:
    listed(data, labels)
    with pytest.raises(DataError, match=f"{sentence}; prepare the data again with --classes covid,normal,pneumonia"):
        check_run({"classes": ALL}, {"dataset_dir": str(data)})


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("[]", True),
        ('{"train": [{"img": "a.png"}]}', True),
        ('{"train": [], "labels": ["covid", "normal"]}', True),
        ('{"train": [], "labels": ["normal"]}', False),
    ],
)
def test_a_list_of_another_make_is_compared_by_its_labels_alone(data: Path, text: str, fine: bool) -> None:
    (data / "dataset.json").write_text(text)
    if fine:
        check_run({"classes": ALL}, {"dataset_dir": str(data)})
    else:
        with pytest.raises(DataError, match="calls class 0 normal"):
            check_run({"classes": ALL}, {"dataset_dir": str(data)})


def test_names_that_do_not_fit_on_a_line_are_to_be_written_into_a_file(data: Path) -> None:
    listed(data, {"0": "flu"})
    for names in (["covid, severe", "normal"], [f"a rather long name {number}" for number in range(20)]):
        with pytest.raises(DataError, match=r"--classes and a file of the run's names$"):
            check_run({"classes": names}, {"dataset_dir": str(data)})


@pytest.mark.parametrize("task", [{}, {"classes": 3}, {"classes": (1, 2)}])
def test_a_run_without_names_of_classes_asks_nothing(data: Path, task: Mapping[str, object]) -> None:
    listed(data, {"0": "flu"})
    check_run(task, {"dataset_dir": str(data)})


@pytest.mark.parametrize("options", [{}, {"dataset_dir": 7}, {"dataset_dir": "/nowhere"}])
def test_data_without_a_list_say_nothing_of_classes(options: Mapping[str, object]) -> None:
    check_run({"classes": ALL}, options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('image,label\na,"ill\nb,well\nc,ill\n', "behind line 1: unexpected end of data; close every quote"),
        ('image,label\na,well\nb,"ill"x\n', "behind line 2: .*close every quote"),
        (f"image,label\na,{'x' * 200_000}\n", "behind line 1: field larger than field limit"),
        ("image,label\na,left, upper lobe\n", "line 2 has more columns than the first line; .*in quotes"),
        ("image,image,label\na,b,ill\n", "the first line has to be image,label"),
        ("image,label,Label\na,ill,well\n", "the first line has to be image,label"),
    ],
)
def test_no_line_of_a_list_of_classes_is_swallowed(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_classes(tmp_path / "x.csv")


def test_empty_columns_at_the_end_of_a_line_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('image;label\na;"left; upper";;\n')
    assert read_classes(tmp_path / "x.csv") == {"a": "left; upper"}
