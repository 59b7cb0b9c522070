"""An image as it was found, before it has a name that says nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from pathlib import Path, PurePath
from typing import TypeVar

from protocol.errors import ConfigError
from worker.data.dicom_kinds import Beside

Read = TypeVar("Read")
_SHOWN, _REASONS = 5, 10
_LONGEST = 120


class ImageKind(Enum):
    """What a file holds, by its content."""

    DICOM = "DICOM"
    NIFTI = "NIfTI"
    PNG = "PNG"
    JPEG = "JPEG"


PICTURES = (ImageKind.PNG, ImageKind.JPEG)
"""What lies nowhere in space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """One image: a file, or the files of one DICOM series."""

    name: str
    """Where it was found, for people at the hospital; it is written nowhere but in a mapping they ask for."""
    kind: ImageKind
    files: tuple[Path, ...]
    patient: str
    """The patient's ID, or what stands for it in the path."""
    identity: str
    """What this image is called wherever it lies: a UID, or its path below the folder."""
    keys: frozenset[str] = frozenset()
    """What a label's name may be to belong to it."""
    modality: str = ""
    units: str = ""
    """In which units its values say they are, such as HU or BQML; nothing if they do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """On which terms images are taken."""

    patients: re.Pattern[str] | None = None
    """Where a patient stands in a path; else DICOM says it, and every other file is one."""
    nameless: bool = False
    """Whether images may come without a patient, where nobody asks whose they are."""
    drop_duplicates: bool = False
    """Leave out what is there twice, instead of refusing it."""
    skip_refused: bool = False
    """Leave out series that cannot be used, instead of refusing all."""
    also: frozenset[Beside] = frozenset()
    """What is taken although it is left out by itself."""
    progress: Callable[[int, int], None] | None = None
    """Takes how many files have been looked at, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImages:
    """The images of a folder, and what lies beside them."""

    sources: Sequence[ImageSource]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The files that are not taken, by what they are."""
    dropped: Sequence[str] = ()
    """What is there twice."""
    refused: Mapping[ImageSource, str] = field(default_factory=dict)
    """What cannot be used, as far as it is known, and why."""


@dataclass(slots=True)
class Refusals:
    """Images that cannot be used, and why; the first stops everything, unless `skip` leaves them out."""

    skip: bool = False
    found: dict[ImageSource, str] = field(default_factory=dict)

    def read(self, source: ImageSource, read: Callable[[], Read]) -> Read | None:
        """What `read` makes of an image; None: it cannot be used, and is left out.

        Raises:
            ConfigError: it cannot be used, and `skip` is not set.
        """
        try:
            return read()
        except ConfigError as error:
            self.found[source] = str(error)
            self.check()
            return None

    def check(self) -> None:
        """Say of all images at once why they cannot be used, so that nobody mends an archive one by one.

        Raises:
            ConfigError: there are such images, and `skip` is not set.
        """
        if self.found and not self.skip:
            raise ConfigError(f"{told(self.found.values())}; or go on without such images, with --skip-refused")

    def nothing_left(self, folder: Path) -> ConfigError:
        """What is wrong where every image is left out."""
        return ConfigError(f"{folder} holds no image that can be used: {told(self.found.values())}")


def patient_in_path(path: PurePath, pattern: re.Pattern[str]) -> str:
    """What `pattern` finds in a path: its first group, or all of it.

    Raises:
        ConfigError: it finds nothing.
    """
    found = pattern.search(path.as_posix())
    patient = (found[1] if pattern.groups else found[0]) if found else None
    if not patient:
        raise ConfigError(
            f"{shown(path)}: --patients {pattern.pattern!r} finds no patient in this path; "
            "correct the expression, or leave the file out"
        )
    return patient


def counted(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """What was left out, in a line for each kind: how many, and the first names."""
    return [f"{kind}: {len(names)} ({few(names)})" for kind, names in left_out.items()]


def told(reasons: Iterable[str]) -> str:
    """Why images cannot be used: the first sentences of many, and how many there are."""
    listed = list(reasons)
    if len(listed) == 1:
        return listed[0]
    more = " · …" if len(listed) > _REASONS else ""
    return f"{len(listed)} images cannot be used: {' · '.join(listed[:_REASONS])}{more}"


def told_lines(refused: Iterable[str]) -> Iterator[str]:
    """What was left out because it cannot be used, in lines: how many, and the first sentences."""
    listed = list(refused)
    if listed:
        yield f"left out, images that cannot be used: {len(listed)}"
        yield from (f"  {reason}" for reason in listed[:_REASONS])
        if len(listed) > _REASONS:
            yield f"  and {len(listed) - _REASONS} more"


def few(names: Iterable[object]) -> str:
    """The first names of many, each short enough for a sentence."""
    listed = [shown(name) for name in names]
    more = len(listed) - _SHOWN
    return ", ".join(islice(listed, _SHOWN)) + (f" and {more} more" if more > 0 else "")


def shown(name: object) -> str:
    """A file's name as a sentence can hold it: printable, and its end if it is long."""
    text = "".join(char if char.isprintable() else "?" for char in str(name))
    return text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"
