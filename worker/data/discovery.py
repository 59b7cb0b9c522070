"""Files of a folder by what is in them: endings are not believed, and links do not lead out."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import ConfigError
from worker.data.sources import ImageKind, shown

_PREAMBLE = 128
_HEAD = 352
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GZIP = b"\x1f\x8b"
_WITHOUT_PREAMBLE = (b"\x08\x00", b"\x02\x00")
"""DICOM files of old begin with their first group."""
_FOREIGN = (b"BM", b"II*\0", b"MM\0*", b"NRRD0", b"ObjectType = ", b"GIF8")
"""How BMP, TIFF, NRRD, MetaImage and GIF files begin."""
_DIRECTORY = "DICOMDIR"


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """Paths below a folder, in order."""

    folder: Path
    files: dict[ImageKind, list[Path]] = field(default_factory=lambda: {kind: [] for kind in ImageKind})
    foreign: list[Path] = field(default_factory=list)
    """Images in formats that only a bundle's own readers may know: BMP, TIFF, NRRD, MetaImage."""
    others: list[Path] = field(default_factory=list)
    """What is no image."""

    def name(self, path: Path) -> str:
        """A file's path below the folder."""
        return path.relative_to(self.folder).as_posix()


def find(folder: Path) -> FoundFiles:
    """Every file below a folder by what it holds; hidden ones and a medium's DICOMDIR are passed over.

    Raises:
        ConfigError: there is no such folder, a file cannot be read, or a link leads out of it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name the one that holds the images")
    found = FoundFiles(folder)
    for path in _files(folder):
        kind = kind_of(path)
        if kind is not None:
            found.files[kind].append(path)
        else:
            (found.foreign if _is_foreign(path) else found.others).append(path)
    apart = {path.with_name(path.name.replace(".hdr", ".img")) for path in found.files[ImageKind.NIFTI]}
    found.others[:] = [path for path in found.others if path not in apart]  # voxels of a header beside them
    return found


def kind_of(path: Path) -> ImageKind | None:
    """What a file holds; None if it is no image.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(_GZIP):
            with gzip.open(path) as unpacked:
                head = unpacked.read(_HEAD)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    except OSError as error:
        _unreadable(error)
    if head.startswith(_PNG):
        return ImageKind.PNG
    if head.startswith(_JPEG):
        return ImageKind.JPEG
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return ImageKind.NIFTI
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM" or (head[:2] in _WITHOUT_PREAMBLE and head[3:4] == b"\0"):
        return ImageKind.DICOM
    return None


def is_packed(path: Path) -> bool:
    """Whether a file is packed by gzip, whatever its name says."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _is_foreign(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(_HEAD).startswith(_FOREIGN)


def _files(folder: Path) -> Iterator[Path]:
    real = folder.resolve()
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted((*folders, *names)):
            path = Path(place, name)
            if path.is_symlink():
                # What it leads to within the folder is found by itself.
                if not Path(os.path.realpath(path)).is_relative_to(real):
                    raise ConfigError(
                        f"{shown(path)} is a link that leads out of {folder}; copy what it leads to, or remove it"
                    )
            elif not name.startswith(".") and name.upper() != _DIRECTORY and path.is_file():
                yield path


def _unreadable(error: OSError) -> None:
    raise ConfigError(f"{shown(error.filename)}: {error.strerror}; let the user that you are read it") from error
