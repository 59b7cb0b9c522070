"""An image and its label put into the folder that is made: as they are where that says all, or else written anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from protocol.errors import ConfigError
from worker.data.discovery import is_packed, kind_of
from worker.data.gatekeeper import volume_of
from worker.data.images import check_classes, on_grid, read_label, save
from worker.data.nifti import is_pair
from worker.data.pictures import alike, in_colour
from worker.data.sources import PICTURES, ImageKind, ImageSource, Refusals, few, shown
from worker.data.volumes import Volume

IMAGES, LABELS = "imagesTr", "labelsTr"
_WHITE = 255


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """Where an image lies, and what is drawn on it."""

    image: str
    label: str | int
    """A label's path, or the number of a class."""
    classes: tuple[int, ...]


@dataclass(slots=True)
class Duplicates:
    """Images by the SHA-256 of their voxels; `drop` leaves out repetitions within one patient."""

    drop: bool = False
    dropped: list[str] = field(default_factory=list)
    _seen: dict[str, ImageSource] = field(default_factory=dict)

    def is_new(self, source: ImageSource, digest: str) -> bool:
        """Whether an image is wanted.

        Raises:
            ConfigError: it is there already, under another patient, or under the same one and `drop` is not set.
        """
        other = self._seen.setdefault(digest, source)
        if other is source:
            return True
        both = few(sorted((other.name, source.name)))
        if other.patient != source.patient:
            raise ConfigError(
                f"{both} have the same voxels but two patients; find out whose image it is, and leave the other out"
            )
        if not self.drop:
            raise ConfigError(f"{both} have the same voxels; leave one out, or say --drop-duplicates")
        self.dropped.append(source.name)
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWriter:
    """How images are put into a folder."""

    folder: Path
    link: bool
    """Share files with the images' folder instead of copying them."""
    colour: bool
    """Whether there are pictures in colour, so that all of them have three values for each pixel."""
    white: bool
    """Whether labels are black and white, 0 and 255, so that white is class 1."""
    duplicates: Duplicates
    refusals: Refusals

    @classmethod
    def of(
        cls,
        pairs: Mapping[ImageSource, Path | int],
        folder: Path,
        link: bool,
        drop_duplicates: bool,
        refusals: Refusals,
    ) -> ImageWriter:
        """For these images and their labels.

        Raises:
            ConfigError: a label cannot be read, or a picture, which `refusals` may leave out.
        """
        pictures = (source for source in pairs if source.kind in PICTURES)
        return cls(
            folder=folder,
            link=link,
            colour=any(refusals.read(source, partial(in_colour, source.files[0], source.name)) for source in pictures),
            white=_black_and_white([label for label in pairs.values() if isinstance(label, Path)]),
            duplicates=Duplicates(drop=drop_duplicates),
            refusals=refusals,
        )

    def put(self, name: str, source: ImageSource, label: Path | int) -> PreparedImage | None:
        """Put an image there under a name of its own, and its label; None: it was there already, or is refused.

        Raises:
            ConfigError: image or label cannot be used, or do not fit each other.
        """
        image = None
        if source.kind is not ImageKind.DICOM:
            image = self._copy(source.files[0], source.kind, self.folder / IMAGES / name)
        volume = self.refusals.read(source, partial(self._read, image, source))
        if volume is None or not self.duplicates.is_new(source, volume.digest):
            if image is not None:
                image.unlink()
            return None
        image = self._written(image, volume, self.folder / IMAGES / name)
        at = image.relative_to(self.folder).as_posix()
        if isinstance(label, int):
            return PreparedImage(at, label, (label,))
        kind = kind_of(label) or ImageKind.NIFTI
        drawn = self._copy(label, kind, self.folder / LABELS / name)
        found = read_label(drawn or label, kind, label.name)
        turned = on_grid(found, volume, label.name, film=source.kind is ImageKind.DICOM)
        if self.white:
            turned = Volume((turned.values > 0).astype(np.uint8), turned.affine, False)
        classes = check_classes(label.name, turned.values)
        written = self._written(drawn, turned, self.folder / LABELS / name)
        return PreparedImage(at, written.relative_to(self.folder).as_posix(), classes)

    def _read(self, copy: Path | None, source: ImageSource) -> Volume:
        """An image, out of its copy in the folder where there is one."""
        volume = volume_of(source if copy is None else replace(source, files=(copy,)))
        return alike(volume, self.colour, source.name) if source.kind in PICTURES else volume

    def _written(self, copy: Path | None, volume: Volume, path: Path) -> Path:
        if copy is not None and volume.plain:
            return copy
        if copy is not None:
            copy.unlink()  # it may be a link: the hospital's own file stays as it is
        return save(volume, path)

    def _copy(self, file: Path, kind: ImageKind, path: Path) -> Path | None:
        """A file in the folder; None where voxels and header are two, or it is JPEG: those are written anew."""
        if kind is ImageKind.JPEG or (kind is ImageKind.NIFTI and is_pair(file)):
            return None
        to = path.with_name(path.name + (".png" if kind is ImageKind.PNG else ".nii.gz" if is_packed(file) else ".nii"))
        if not self.link:
            shutil.copyfile(file, to)
            return to
        try:
            os.link(file, to)
        except OSError as error:
            raise ConfigError(
                f"{shown(file)} cannot be linked from {to.parent} ({error.strerror}); say --copy"
            ) from error
        return to


def _black_and_white(labels: Sequence[Path]) -> bool:
    """Whether there is white in labels, and nothing between black and white; reads no further than it has to."""
    white = False
    for label in labels:
        values = read_label(label, kind_of(label) or ImageKind.NIFTI, label.name).values
        if not np.isin(values, (0, _WHITE)).all():
            return False
        white = white or bool((values == _WHITE).any())
    return white
