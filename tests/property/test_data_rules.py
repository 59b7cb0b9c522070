"""Patients in one list each, pseudonyms that tell nothing, and figures from which nobody can be worked out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from worker.data.datalist import Datalist, DatalistEntry, Task
from worker.data.datalist_parser import parse
from worker.data.matching import keys_of, pair
from worker.data.pseudonyms import KEY_BYTES, Pseudonyms
from worker.data.sources import ImageKind, ImageSource
from worker.data.splits import SPLITS, Shares, split
from worker.statistics.document import check, columns, document, from_columns
from worker.statistics.figures import MIN_CELL, CaseFigures, DataSummary

patients = st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=40)
shares = st.builds(
    Shares,
    validation=st.floats(0, 0.5),
    test=st.floats(0, 0.49),
    seed=st.integers(-(2**31), 2**31),
)
keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(Pseudonyms)


def source(patient: str, identity: str) -> ImageSource:
    return ImageSource(name=identity, kind=ImageKind.NIFTI, files=(Path(identity),), patient=patient, identity=identity)


# ---- splits


@given(patients, shares)
def test_every_patient_is_in_one_list_and_always_in_the_same(found: set[str], wanted: Shares) -> None:
    first = {patient: wanted.of(patient) for patient in found}
    assert set(first.values()) <= set(SPLITS)
    assert first == {patient: wanted.of(patient) for patient in sorted(found, reverse=True)}
    try:
        assert split(found, wanted) == first
    except ConfigError as error:  # few patients: a list that was asked for is empty, and the sentence says which
        missing = str(error).split("falls into ")[1].split(";")[0]
        assert missing not in first.values()


@given(patients, patients, shares)
def test_who_comes_later_moves_nobody(found: set[str], later: set[str], wanted: Shares) -> None:
    try:
        before = split(found, wanted)
        after = split(found | later, wanted)
    except ConfigError:
        assume(False)
    assert {patient: after[patient] for patient in found} == before


def test_shares_are_shares_and_another_seed_is_another_split() -> None:
    many = [str(number) for number in range(4000)]
    found = split(many, Shares(validation=0.2, test=0.1, seed=3))
    counts = {name: sum(each == name for each in found.values()) for name in SPLITS}
    # Five standard deviations of a binomial count around what is expected.
    for name, share in (("training", 0.7), ("validation", 0.2), ("test", 0.1)):
        assert abs(counts[name] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
    assert found != split(many, Shares(validation=0.2, test=0.1, seed=4))


@pytest.mark.parametrize("wrong", [{"validation": -0.1}, {"validation": 1.0}, {"validation": 0.6, "test": 0.4}])
def test_a_share_that_leaves_nobody_to_train_on_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shares of the patients"):
        Shares(**wrong)
    with pytest.raises(ConfigError, match="shares of the patients"):
        Shares(validation=float("nan"))


# ---- names


@given(keys, st.sets(st.tuples(st.text(max_size=9), st.text(max_size=9)), min_size=1, max_size=20))
def test_a_name_depends_on_the_key_alone_and_says_nothing(key: Pseudonyms, images: set[tuple[str, str]]) -> None:
    sources = [source(*each) for each in sorted(images)]
    named = key.names(sources)
    assert named == Pseudonyms(key.key).names(sources[::-1])
    assert len(named) == len(sources)
    who = {each.patient for each in sources}
    assert len({key.patient(patient) for patient in who}) == len(who)
    for name, each in named.items():
        assert name.startswith(key.patient(each.patient))
        assert len(name) == 22
        assert set(name) <= set("p-0123456789abcdef")
        assert Pseudonyms.new().case(each) != name


def test_an_image_that_is_there_twice_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="a, a are the same image twice"):
        Pseudonyms.new().names([source("1", "a"), source("1", "a")])
    with pytest.raises(ConfigError, match="has 32 bytes, not 3"):
        Pseudonyms(b"key")


# ---- labels and lists

names = st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}){0,2}", fullmatch=True)


@given(st.sets(names, min_size=1, max_size=8))
def test_labels_of_the_same_paths_find_their_images(paths: set[str]) -> None:
    sources = [
        ImageSource(name=n, kind=ImageKind.NIFTI, files=(), patient=n, identity=n, keys=keys_of(f"{n}.nii"))
        for n in sorted(paths)
    ]
    found = pair(sources, {f"{name}.nii.gz": name for name in paths})
    assert [(each.name, label) for each, label in found] == [(name, name) for name in sorted(paths)]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(SPLITS)), min_size=1, max_size=30),
    st.dictionaries(st.integers(0, 255), st.text(max_size=8), max_size=5),
)
def test_a_datalist_is_read_as_it_was_written(rows: list[tuple[int, str]], labels: dict[int, str]) -> None:
    entries = [
        DatalistEntry(image=f"imagesTr/{n}.nii.gz", label=f"labelsTr/{n}.nii.gz", patient=f"p{patient}", split=name)
        for n, (patient, name) in enumerate(rows)
    ]
    written = Datalist(entries=entries, labels=labels, name="liver", modality="CT")
    read = parse(written.text(), "dataset.json")
    assert sorted(read.entries, key=lambda e: e.image) == sorted(entries, key=lambda e: e.image)
    assert (read.labels, read.name, read.modality, read.patients_known) == (labels, "liver", "CT", True)


# ---- suppression

counts = st.lists(st.integers(0, 40), min_size=2, max_size=5)


def cohort(found: list[int], task: Task, total: int = 0) -> list[CaseFigures]:
    """Patients with classes: in a classification one each; in a segmentation those of `total` by turns."""
    if task is Task.CLASSIFICATION:
        owners = [{f"c{number}": 1} for number, count in enumerate(found) for _ in range(count)]
    else:
        owners = [{f"c{number}": 7 for number, count in enumerate(found) if who < count} for who in range(total)]
    return [
        CaseFigures(patient=f"p{who}", figures={"shape.x": 64.0}, voxels=classes) for who, classes in enumerate(owners)
    ]


def told(found: list[int], task: Task, total: int = 0) -> dict[str, object]:
    summary = DataSummary(task=task, classes=[f"c{number}" for number in range(len(found))])
    return dict(summary.of(cohort(found, task, total)))


@given(counts, st.data())
def test_a_suppressed_class_may_have_any_number_for_all_that_is_told(found: list[int], data: st.DataObject) -> None:
    assume(sum(found) >= 2 * MIN_CELL)
    hidden = [index for index, count in enumerate(found) if count < MIN_CELL]
    assume(hidden)
    other = list(found)
    for index in hidden:
        other[index] = data.draw(st.integers(0, MIN_CELL - 1))
    assume(sum(other) >= 2 * MIN_CELL)
    one, two = told(found, Task.CLASSIFICATION), told(other, Task.CLASSIFICATION)
    assert one == two
    assert isinstance(one["patients"], str)


@given(st.integers(2 * MIN_CELL, 60), st.data())
def test_neither_a_class_nor_its_absence_in_few_can_be_counted(total: int, data: st.DataObject) -> None:
    few = data.draw(st.sampled_from((range(MIN_CELL), range(total - MIN_CELL + 1, total))))
    shown = [told([total, count], Task.SEGMENTATION, total) for count in few]
    for each in shown:
        assert isinstance(each["patients.c1"], str)
        assert {name for name in each if "c1" in name} == {name for name in shown[0] if "c1" in name}
        assert each == shown[0] | {k: v for k, v in each.items() if k.startswith("voxels")}


@given(st.integers(MIN_CELL, 60), st.data())
def test_the_background_does_not_tell_what_a_suppressed_class_takes(total: int, data: st.DataObject) -> None:
    rare = data.draw(st.integers(0, total))
    found = told([total, rare], Task.SEGMENTATION, total)
    assert any(name.startswith("voxels.c0") for name in found) is (rare >= MIN_CELL)
    told_of = rare if rare == total else min(rare, total - MIN_CELL + 1) if total - rare < MIN_CELL else rare
    assert ("voxels.c1.mean" in found) is (told_of >= MIN_CELL)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_no_single_patient_is_an_extreme_that_is_told(values: list[float]) -> None:
    shown = DataSummary(task=Task.SEGMENTATION, classes=[]).spread("x", values, len(values))
    assert not {name for name in shown if name.endswith((".min", ".max"))}
    if len(values) < MIN_CELL:
        assert shown == {}
    for name, share in (("x.p25", 4), ("x.median", 2), ("x.p75", 4)):
        assert (name in shown) is (len(values) >= share * MIN_CELL)
        if name in shown:  # as many on either side: the smallest and the largest move nothing
            inner = sorted(values)
            inner[0], inner[-1] = inner[0] - 1e6, inner[-1] + 1e6
            assert DataSummary(task=Task.SEGMENTATION, classes=[]).spread("x", inner, len(inner))[name] == shown[name]


def test_a_patient_with_many_images_counts_once() -> None:
    one = [CaseFigures(patient="p", figures={"shape.x": float(n)}, voxels={"c0": 1}) for n in range(50)]
    summary = DataSummary(task=Task.SEGMENTATION, classes=["c0"])
    assert summary.of(one) == {"min_cell": MIN_CELL, "patients": f"<{MIN_CELL}"}


def test_people_of_the_hospital_see_everything() -> None:
    summary = DataSummary(task=Task.SEGMENTATION, classes=["c0", "c1"], suppressed=False)
    found = summary.of(cohort([3, 1], Task.SEGMENTATION, 3))
    assert (found["patients"], found["patients.c1"]) == (3, 1)
    assert (found["shape.x.min"], found["voxels.c1.max"], found["voxels.c0.median"]) == (64, 7, 7)


@given(counts, st.sampled_from(Task))
def test_what_is_suppressed_can_leave_and_arrives_as_it_left(found: list[int], task: Task) -> None:
    figures = DataSummary(task=task, classes=[f"c{n}" for n in range(len(found))]).of(cohort(found, task, max(found)))
    assert document(figures)["figures"] == figures
    assert from_columns(columns(figures)) == figures


BAD: list[dict[object, object]] = [
    {},
    {"min_cell": 9},
    {"min_cell": True},
    {"min_cell": 10, "patients": 9},
    {"min_cell": 10, "patients.liver": 3.0},
    {"min_cell": 10, "Doe Jane": 1.0},
    {"min_cell": 10, "x": "Doe"},
    {"min_cell": 10, "x": float("nan")},
    {"min_cell": 10, "x": float("inf")},
    {"min_cell": 10, "x": None},
    {"min_cell": 10, 7: 1.0},
    {"min_cell": 10, **{f"x{n}": 1.0 for n in range(600)}},
]


@pytest.mark.parametrize("figures", BAD)
def test_what_is_no_figure_neither_leaves_nor_arrives(figures: dict[object, object]) -> None:
    with pytest.raises(ConfigError):
        check(figures)
    with pytest.raises(ConfigError):
        from_columns({"figure": tuple(figures), "value": tuple(figures.values())})
