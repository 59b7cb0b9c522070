"""Datalists as people and their programs write them: read, or the one thing that is wrong in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from protocol import unique_json
from protocol.errors import ConfigError
from worker.data.datalist import LIMIT, Datalist, DatalistEntry
from worker.data.sources import few, shown
from worker.data.splits import SPLITS
from worker.data.text import read_text

_AS_WRITTEN = (
    "it has lists of image and label under training, validation and test, as `fledge data prepare` writes them"
)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_PATH = re.compile(r"[./\\]")
"""What is in a label's path and in no class's name."""
_WHOLE = re.compile(r"-?[0-9]{1,18}")
Table = Mapping[str, object]
Label = str | int | tuple[int, ...] | None


def read_datalist(path: Path) -> Datalist:
    """The datalist in a file.

    Raises:
        ConfigError: there is none; says what is wrong with it.
    """
    text, encoding = read_text(path, LIMIT, "the datalist, which `fledge data prepare` makes and --list names")
    return parse(text, path.name, folder=path.parent, encoding=encoding)


def read_labels(path: Path) -> Mapping[int, str]:
    """The classes that a list names by their numbers, whatever else is in it.

    Raises:
        ConfigError: they cannot be read.
    """
    text, _ = read_text(path, LIMIT, "the datalist")
    document = document_of(text, path.name)
    return _Parser(path.name, None).classes(document.get("labels")) if isinstance(document, dict) else {}


def parse(text: str, name: str, *, folder: Path | None = None, encoding: str = "utf-8") -> Datalist:
    """The list in a file's text, called `name` in errors; `folder` is where it lies, for paths from the root.

    Raises:
        ConfigError: it is none, or a path in it leads out of its folder.
    """
    return _Parser(name, None if folder is None else folder.resolve()).datalist(document_of(text, name), encoding)


def document_of(text: str, name: str) -> object:
    """The JSON of a datalist.

    Raises:
        ConfigError: it is none, or says something twice.
    """
    try:
        return unique_json.loads(text)
    except unique_json.SaidTwice as error:
        raise ConfigError(
            f"{shown(name)} has {shown(repr(error.name))} twice in one place; leave one of them"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{shown(name)} is no datalist, for it is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(name)} is no datalist ({type(error).__name__}); {_AS_WRITTEN}") from error


def unlike_utf8(name: str, encoding: str) -> Iterator[str]:
    """What MONAI does not read of a text in this encoding."""
    if encoding != "utf-8":
        mark = "UTF-8 with a byte order mark" if encoding == "utf-8-sig" else encoding.upper()
        yield f"{shown(name)} is in {mark}, which MONAI does not read; save it as UTF-8 without a byte order mark"


@dataclass(slots=True)
class _Parser:
    """Goes through one list."""

    name: str
    folder: Path | None
    labels: Mapping[int, str] = field(default_factory=dict)
    backslashes: bool = False
    words: bool = False

    def wrong(self, told: str) -> ConfigError:
        return ConfigError(f"{shown(self.name)} {told}")

    def datalist(self, document: object, encoding: str) -> Datalist:
        if isinstance(document, list) and document:
            raise self.wrong('is a list of examples alone; write {"training": …} around it')
        if not isinstance(document, dict):
            raise self.wrong(f"is no datalist; {_AS_WRITTEN}")
        self.labels = self.classes(document.get("labels"))
        known = self._patients(document.get("patients"))
        entries = [entry for split in SPLITS for entry in self._split(split, document.get(split), known)]
        if not entries:
            raise self._empty(document)
        self._one_kind([entry.label for entry in entries if entry.label is not None])
        cautions = list(unlike_utf8(self.name, encoding))
        if self.backslashes:
            cautions.append(f"{shown(self.name)} writes paths as Windows does; MONAI finds them with / alone")
        if self.words:
            cautions.append(f"{shown(self.name)} gives classes by their names; trainers take their numbers")
        return Datalist(
            entries=entries,
            labels=self.labels,
            name=str(document.get("name", "")),
            modality=self._modality(document.get("modality", document.get("channel_names"))),
            patients_known=all(entry.image in known for entry in entries),
            cautions=cautions,
        )

    def _empty(self, document: Table) -> ConfigError:
        lists = [key for key, value in document.items() if isinstance(value, list) and value and key != "labels"]
        if "file_ending" in document or "channel_names" in document:
            return self.wrong(
                "is nnU-Net's description of a data set, which lists no image; make a list of its folder with "
                "`fledge data prepare`"
            )
        if lists:
            return self.wrong(f"lists no image under {', '.join(SPLITS)}, but under {few(lists)}; call it training")
        return self.wrong("lists no image; name another one with --list")

    def classes(self, value: object) -> dict[int, str]:
        """The classes: names by number, as the Decathlon has them; numbers by name, as nnU-Net does; or a list."""
        if value is None:
            return {}
        if isinstance(value, list):
            pairs: list[tuple[object, object]] = [(number, name) for number, name in enumerate(value)]
        elif isinstance(value, dict):
            by_number = all(_number(key) is not None for key in value)
            pairs = [(key, each) if by_number else (each, key) for key, each in value.items()]
        else:
            raise self.wrong('has `labels` that are no table; write {"0": "background", "1": "liver"}')
        found: dict[int, str] = {}
        for key, name in pairs:
            if isinstance(key, list) and len(key) > 1:
                raise self.wrong(
                    f"gives {shown(repr(name))} several numbers in `labels` (a region, as nnU-Net has them); give each "
                    "number a name of its own"
                )
            number = _number(key[0] if isinstance(key, list) and key else key)
            if number is None or isinstance(name, list | dict) or name is None:
                raise self.wrong(f"has {shown(f'{key!r}: {name!r}')} in `labels`; a class is a number and a name")
            if number in found:
                raise self.wrong(f"gives {found[number]!r} and {str(name)!r} one number in `labels`; each has its own")
            found[number] = str(name)
        return found

    def _modality(self, value: object) -> str:
        if isinstance(value, dict):
            value = list(value.values())
        names = value if isinstance(value, list) else [value]
        return ", ".join(dict.fromkeys(str(each) for each in names if each not in (None, "")))

    def _patients(self, value: object) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(images, list) for images in value.values()):
            raise self.wrong("has `patients` that are no table; it gives each patient the list of their images")
        known: dict[str, str] = {}
        for patient, images in value.items():
            for image in images:
                if known.setdefault(path := _posix(str(image)), patient) != patient:
                    raise self.wrong(f"gives {shown(path)} to two patients; find out whose it is")
        return known

    def _split(self, split: str, items: object, known: Mapping[str, str]) -> Iterator[DatalistEntry]:
        if items is None:
            return
        if not isinstance(items, list):
            raise self.wrong(f"is no datalist: {split} is no list; {_AS_WRITTEN}")
        for number, item in enumerate(items, 1):
            where = f"entry {number} of {split}"
            table = item if isinstance(item, dict) else {"image": item}
            if "image" not in table:
                raise self.wrong(f"is no datalist: {where} has no image; it has {few(table) or 'nothing'}")
            value = table["image"]
            files = value if isinstance(value, list) else [value]
            if not files or not all(isinstance(each, str) for each in files):
                raise self.wrong(f"is no datalist: the image of {where} is no path and no list of paths")
            image, *channels = (self._path(each) for each in files)
            label = self._label(table.get("label"), where)
            yield DatalistEntry(
                image=image, label=label, patient=known.get(image, image), split=split, channels=tuple(channels)
            )

    def _label(self, value: object, where: str) -> Label:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or isinstance(value, str):
            return value if value is None else self._named(value, where)
        if isinstance(value, list):
            marks = tuple(_number(each) for each in value)
            if any(isinstance(each, str) for each in value):
                raise self.wrong(f"gives {where} several labels; join them in one file, a number for each class")
            if not value or not set(marks) <= {0, 1}:
                raise self.wrong(f"gives {where} a list of other values than zeros and ones; write one for each class")
            return tuple(int(mark or 0) for mark in marks)
        number = _number(value)
        if number is None:
            raise self.wrong(f"is no datalist: the label of {where} is {shown(repr(value))}, which is no class")
        return number

    def _named(self, text: str, where: str) -> str | int:
        """A label that is written as a text: a class's name or number, or a path."""
        if (named := next((each for each, name in self.labels.items() if name == text), None)) is not None:
            self.words = True
            return named
        if (number := _number(text)) is not None:
            self.words = True
            return number
        if text and not _PATH.search(text):
            classes = f", which are {few(self.labels.values())}" if self.labels else ""
            raise self.wrong(
                f"gives {where} the label {shown(repr(text))}, which is no path and none of the classes in `labels`"
                f"{classes}; correct one of them"
            )
        return self._path(text)

    def _path(self, text: str) -> str:
        """A path below the list's folder."""
        if _WINDOWS.match(text):
            raise self.wrong(f"names {shown(text)}, a path of a Windows machine; paths are below the list's folder")
        self.backslashes |= "\\" in text
        path = PurePosixPath(_posix(text))
        if path.is_absolute() and self.folder is not None and PurePath(path).is_relative_to(self.folder):
            path = path.relative_to(self.folder)
        if path.is_absolute() or ".." in path.parts:
            raise self.wrong(f"names {shown(text)}, which lies elsewhere; paths are below its folder")
        return str(path)

    def _one_kind(self, labels: Sequence[Label]) -> None:
        """Refuse a list in which labels are of several kinds, or of several lengths."""
        if len({type(label) for label in labels}) > 1:
            raise self.wrong("has labels of several kinds (files, classes, zeros and ones); write a list for each")
        lengths = {len(label) for label in labels if isinstance(label, tuple)}
        if lengths and len(lengths | ({len(self.labels)} if self.labels else set())) > 1:
            told = " and ".join(map(str, sorted(lengths)[:2]))
            classes = f", and {len(self.labels)} classes in `labels`" if self.labels else ""
            raise self.wrong(f"has labels of {told} zeros and ones{classes}; write one for each class, in their order")


def _posix(text: str) -> str:
    return str(PurePosixPath(text.replace("\\", "/")))


def _number(value: object) -> int | None:
    """A whole number, however it is written; None if it is none."""
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None
