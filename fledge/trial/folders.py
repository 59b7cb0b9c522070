"""A folder with a `dataset.json` divided among sites: patients stay together, images stay where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.trial.division import Terms, divide
from protocol.errors import ConfigError
from worker.data.datalist import DATASET, LIMIT
from worker.data.datalist_parser import document_of
from worker.data.splits import TRAINING, VALIDATION
from worker.data.text import read_text

_Item = Mapping[str, object] | str


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """A site's folder."""

    folder: Path
    images: int
    """To train on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedList:
    """What became of a list."""

    shares: Sequence[SiteFolder]
    pooled: SiteFolder
    """What all sites have, in the list's own folder or one like it."""
    held_out: int
    """Images of `validation`."""


def is_listed(folder: Path) -> bool:
    """Whether a folder holds a dataset.json."""
    return (folder / DATASET).is_file()


def divide_list(folder: Path, terms: Terms, place: Path) -> DividedList:
    """Divide the training list by patient into folders below `place`, beside links to all that `folder` holds.

    What the list keeps for validation is what everything is measured on; where it keeps nothing, a share of the
    patients is.

    Raises:
        ConfigError: the list cannot be read, or has too few patients.
    """
    if terms.alpha is not None:
        raise ConfigError(f"--alpha divides by class, and {folder / DATASET} is divided by patient; leave it out")
    document = _read(folder / DATASET)
    training, validation = (_items(document, name, folder) for name in (TRAINING, VALIDATION))
    patients = _patients(document)
    wanted = terms if not validation else Terms(sites=terms.sites, seed=terms.seed, held_out=0.0)
    dealt = divide(len(training), wanted, groups=[patients.get(_image(each), _image(each)) for each in training])
    validation = validation or [training[index] for index in dealt.held_out]
    pooled = [training[index] for index in dealt.pooled]
    shares = []
    for index, share in enumerate(dealt.shares):
        own = [training[number] for number in share]
        # A bundle may want something to validate on where it is trained; what counts is measured in one place.
        some = validation[index :: terms.sites] or validation[:1]
        shares.append(_written(folder, place / f"site-{index + 1}", document, own, some))
    return DividedList(
        shares=shares,
        pooled=_written(folder, place / "pooled", document, pooled, validation),
        held_out=len(validation),
    )


def _read(path: Path) -> dict[str, object]:
    document = document_of(read_text(path, LIMIT, "the datalist")[0], path.name)
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is no datalist; it has lists under training and validation")
    return document


def _items(document: Mapping[str, object], name: str, folder: Path) -> list[_Item]:
    items = document.get(name) or []
    listed: list[_Item] = items if isinstance(items, list) else []
    good = listed is items and all(isinstance(each, str) or _named(each) for each in listed)
    if not good or (name == TRAINING and not items):
        raise ConfigError(
            f"{folder / DATASET} has no list of images under {name!r}; `fledge data prepare` writes such lists"
        )
    return listed


def _named(item: object) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("image"), str | list) and bool(item["image"])


def _image(item: _Item) -> str:
    image = item if isinstance(item, str) else item["image"]
    return str(image[0] if isinstance(image, list) else image)


def _patients(document: Mapping[str, object]) -> dict[str, str]:
    """Each image's patient, where the list says so, as `fledge data prepare` does."""
    known = document.get("patients")
    if not isinstance(known, Mapping):
        return {}
    return {
        str(image): str(patient) for patient, images in known.items() if isinstance(images, list) for image in images
    }


def _written(
    folder: Path, place: Path, document: Mapping[str, object], training: Sequence[_Item], validation: Sequence[_Item]
) -> SiteFolder:
    place.mkdir(parents=True)
    for entry in folder.resolve().iterdir():
        if entry.name != DATASET:
            (place / entry.name).symlink_to(entry)
    own = {**document, TRAINING: list(training), VALIDATION: list(validation), "numTraining": len(training)}
    (place / DATASET).write_text(json.dumps(own, ensure_ascii=False) + "\n", encoding="utf-8")
    return SiteFolder(place, len(training))
