"""Which label belongs to which image, by their names alone."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from protocol.errors import ConfigError
from worker.data.sources import ImageSource, few, shown

Label = TypeVar("Label")
_PARTS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
"""What folders are called that hold parts of a split."""
_FIRST, _CHANNEL = "_0000", re.compile(r"_[0-9]{3}[1-9]$")
ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".png", ".jpg", ".jpeg", ".dcm")


def stem(path: str) -> str:
    """A path without the ending of an image."""
    for ending in ENDINGS:
        if path.lower().endswith(ending):
            return path[: -len(ending)]
    return path


def key_of(name: str) -> str:
    """What of a path an image and its label share, however a system writes it: no ending, / between, letters whole."""
    return unicodedata.normalize("NFC", str(PurePosixPath(stem(name).replace("\\", "/"))))


def keys_of(*names: str) -> frozenset[str]:
    """What a label of an image with these names may be called; nnU-Net numbers the channels of one image."""
    keys = {key_of(name) for name in names if name not in ("", ".")}
    return frozenset(keys | {key.removesuffix(_FIRST) for key in keys})


def pair(
    sources: Sequence[ImageSource],
    labels: Mapping[str, Label],
    *,
    unlabelled: bool = False,
    refused: Container[ImageSource] = (),
) -> list[tuple[ImageSource, Label]]:
    """Each image with its label; `labels` by path below their folder, `unlabelled` leaves out images without one.
    Those of `sources` that are `refused` need none; a label may be theirs all the same.

    An image's own path counts before a series' or a patient's name, and a whole path before its last part.

    Raises:
        ConfigError: an image has no label, a label no image, or either has several.
    """
    own: defaultdict[str, set[ImageSource]] = defaultdict(set)
    whole: defaultdict[str, set[ImageSource]] = defaultdict(set)
    last: defaultdict[str, set[ImageSource]] = defaultdict(set)
    for source in sources:
        own[key_of(source.name)].add(source)
        for key in source.keys:
            whole[key].add(source)
            last[PurePosixPath(key).name].add(source)
    found: defaultdict[ImageSource, list[str]] = defaultdict(list)
    for name in labels:
        key = key_of(name)
        images = own.get(key) or whole.get(key) or last.get(key) or last.get(PurePosixPath(key).name) or set()
        if not images:
            raise ConfigError(
                f"label {shown(name)} belongs to no image; give it the name of one (or of its series), or remove it"
            )
        if len(images) > 1:
            raise ConfigError(
                f"label {shown(name)} may belong to {few(sorted(image.name for image in images))}; "
                "give it the whole path of one of them, or its series' UID"
            )
        found[next(iter(images))].append(name)
    for source, names in found.items():
        if len(names) > 1:
            raise ConfigError(f"{shown(source.name)} has several labels: {few(names)}; leave one of them")
    missing = [source.name for source in sources if source not in found and source not in refused]
    channels = [name for name in missing if _CHANNEL.search(key_of(name)) and _first(key_of(name)) in own]
    if channels:
        raise ConfigError(
            f"{few(channels)}: further channels of an image, as nnU-Net names them; join the channels of each image in "
            "one NIfTI file, as its last axis"
        )
    if missing and not unlabelled:
        raise ConfigError(
            f"{few(missing)}: no label; add one of the same name, or leave images without a label out "
            "with --skip-unlabelled"
        )
    return [(source, labels[found[source][0]]) for source in sources if source in found]


def _first(key: str) -> str:
    """What nnU-Net calls the first channel of the image whose channel this is."""
    return _CHANNEL.sub(_FIRST, key)


def classes_by_folder(sources: Sequence[ImageSource]) -> list[tuple[ImageSource, str]]:
    """Each image with its class: the first folder of its path.

    Raises:
        ConfigError: an image lies in no folder, or the folders are those of a split.
    """
    bare = [source.name for source in sources if len(PurePosixPath(source.name).parts) < 2]
    if bare:
        raise ConfigError(
            f"{few(bare)}: without a list of classes every image lies in a folder named after its class; "
            "move it there, or name a list with --labels FILE.csv"
        )
    found = [(source, PurePosixPath(source.name).parts[0]) for source in sources]
    if (parts := {name for _, name in found}) and all(name.lower() in _PARTS for name in parts):
        raise ConfigError(
            f"the folders {few(sorted(parts))} are parts of a split and no classes; move the folders of the classes "
            "together (patients are split here), or name a list with --labels FILE.csv"
        )
    return found
