"""Which number a class has: the federation's list says so, or else the names that are here, in their order."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from protocol.errors import ConfigError, DataError
from worker.data.datalist import DATASET
from worker.data.datalist_parser import read_labels
from worker.data.sources import few, shown
from worker.data.text import read_text

_LIST_BYTES = 16 * 1024**2
_MOST = 256
_GREYS = 64
"""Classes of one label, at most, that need no list."""
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_DELIMITERS = ",;\t"
_BEYOND = ""
"""What is said to stand in columns beyond those of the first line."""


def class_list(text: str) -> tuple[str, ...]:
    """The classes in the order of their numbers: names with commas between, or a file with one on each line.

    Raises:
        ConfigError: it names fewer than two, too many, or one twice.
    """
    if os.path.isfile(text):
        given = read_text(Path(text), _LIST_BYTES, "a list of classes, one on each line")[0].splitlines()
        names = [plain(line) for line in given if line.strip()]
    else:
        names = [plain(name) for name in text.split(",")]
    if not 2 <= len(names) <= _MOST or not all(names):
        raise ConfigError(
            f"--classes {shown(text)} names {len([name for name in names if name])} classes; write 2 to {_MOST} names "
            "in the order of their numbers, such as covid,normal, or a file that is there, with one on each line"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--classes names {few(twice)} more than once; every class has one number")
    return tuple(names)


def plain(name: str) -> str:
    """A name as it is compared: without blanks at its ends, and composed as most systems write it, unlike macOS."""
    return unicodedata.normalize("NFC", name.strip())


def numbered(found: Iterable[str], wanted: Sequence[str] = ()) -> dict[str, int]:
    """The number of each class: its place in `wanted`; without a list, among those found, 2 before 10.

    Raises:
        ConfigError: one is not in the list.
    """
    names = {plain(name) for name in found}
    if wanted and (unknown := names - set(wanted)):
        raise ConfigError(
            f"the classes {few(sorted(unknown))} are not among those of --classes ({few(wanted)}); call them as the "
            "federation does, or leave their images out"
        )
    return {name: number for number, name in enumerate(wanted or in_order(names))}


def in_order(names: Iterable[str]) -> list[str]:
    """Names by the numbers in them, and where there are none by their letters."""
    listed = sorted(names)
    if all(_NUMBER.fullmatch(name) for name in listed):
        return sorted(listed, key=float)
    return sorted(listed, key=_parts)


def _parts(name: str) -> list[tuple[int, str]]:
    """Letters and numbers by turns; a number counts by how long it is, then by its digits."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(digits := part.lstrip("0")), digits) if n % 2 else (0, part) for n, part in enumerate(parts)]


def check_seen(label: str, seen: Sequence[int], wanted: Sequence[str]) -> None:
    """Let the label of a segmentation pass whose values the list names; without a list, one of few enough.

    Raises:
        ConfigError: it holds another, or so many that they are rather grey values.
    """
    if not wanted and len(seen) > _GREYS:
        raise ConfigError(
            f"the label of {shown(label)} holds {len(seen)} different values; is it an image, or was it resampled or "
            "saved as JPEG? If not, name its classes with --classes"
        )
    if wanted and (unknown := [str(number) for number in seen if number >= len(wanted)]):
        raise ConfigError(
            f"label {shown(label)} holds {few(unknown)}, and --classes names 0 to {len(wanted) - 1}; correct one of "
            "them"
        )


def check_renamed(given: Mapping[int, str], names: Mapping[int, str]) -> None:
    """Let classes of a classification get other names as long as no name changes its number.

    Raises:
        ConfigError: a class is named that is not here, or one that has a name already.
    """
    for number, name in given.items():
        own = names.get(number)
        if own is None:
            raise ConfigError(
                f"--label-name {number}={shown(name)}: no image here has class {number}; --classes names the classes "
                "of all sites in the order of their numbers"
            )
        if own not in (name, str(number)):
            raise ConfigError(
                f"--label-name {number}={shown(name)}: class {number} here is {shown(own)}, and another name would not "
                "give it another number; --classes names the classes of all sites in the order of their numbers"
            )


def read_classes(path: Path) -> dict[str, str]:
    """The class of each image in a CSV file, whose columns may be separated by commas, semicolons or tabs.

    Raises:
        ConfigError: it is no such file.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; the classes of a classification stand in a CSV file (image,label)")
    lines = read_text(path, _LIST_BYTES, "a CSV file (image,label)")[0].splitlines()
    header = lines[0] if lines else ""
    by = max(_DELIMITERS, key=header.count)
    columns = _columns(header, by)
    if columns.count("image") != 1 or columns.count("label") != 1:
        raise ConfigError(f"{path}: the first line has to be image,label; then one line for each image")
    rows = csv.DictReader([by.join(columns), *lines[1:]], delimiter=by, restkey=_BEYOND, strict=True)
    classes: dict[str, str] = {}
    try:
        for row in rows:
            _add_class(classes, row, f"{path}, line {rows.line_num}")
    except csv.Error as error:  # such as a quote that is never closed, which would swallow the lines after it
        raise ConfigError(f"{path}, behind line {rows.line_num}: {error}; close every quote, or write none") from error
    return classes


def _add_class(classes: dict[str, str], row: Mapping[str, str | None], where: str) -> None:
    if "".join(row.get(_BEYOND) or ""):
        raise ConfigError(f"{where} has more columns than the first line; put names with a comma in them in quotes")
    image, name = ((row[key] or "").strip() for key in ("image", "label"))
    if not image or not name:
        raise ConfigError(f"{where}: write an image and its class")
    if classes.setdefault(image, plain(name)) != plain(name):
        raise ConfigError(f"{where}: {shown(image)} has two classes, {few((classes[image], name))}; leave one of them")


def _columns(header: str, by: str) -> list[str]:
    return [column.strip().strip('"').lower() for column in header.split(by)]


def check_run(task: Mapping[str, object], options: Mapping[str, object]) -> None:
    """Let a site train in a run whose task has `classes` if its prepared data number them the same way.

    Data without a list in `dataset_dir` say nothing of classes, and pass.

    Raises:
        DataError: a number stands for another class here.
        ConfigError: the list cannot be read.
    """
    wanted, folder = task.get("classes"), options.get("dataset_dir")
    if not isinstance(wanted, list | tuple) or not all(isinstance(name, str) for name in wanted):
        return  # `classes` of a trainer's own, such as their number
    if not isinstance(folder, str) or not os.path.isfile(path := Path(folder, DATASET)):
        return
    names = [plain(name) for name in wanted]
    for number, name in sorted(read_labels(path).items()):
        there = names[number] if 0 <= number < len(names) else "no class"
        if plain(name) != there:
            listed = ",".join(names)
            again = listed if shown(listed) == listed and "," not in "".join(names) else "and a file of the run's names"
            raise DataError(
                f"{path} calls class {number} {shown(name)}, and in the run it is {shown(there)}; prepare the data "
                f"again with --classes {again}"
            )
