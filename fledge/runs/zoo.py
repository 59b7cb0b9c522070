"""Starting points: complete MONAI bundles that come with fledge, and a bundle made of one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from protocol.errors import ConfigError
from worker.monai.pretrained import CARD, WEIGHTS, WeightsCard, card_of, weights_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LICENCE = "LICENSE"
_METADATA = PurePosixPath("configs/metadata.json")
_README = PurePosixPath("docs/README.md")
_MODEL = PurePosixPath("models/model.pt")
_RANDOM_README = "The weights are random: nothing has been learned yet."
_RANDOM_METADATA = "a starting point, not yet trained"
RANDOM, PRETRAINED = "random", "pretrained"


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """One of the bundles of the zoo."""

    name: str
    description: str
    """A sentence."""
    pretrained: str
    """What its pretrained weights can do; empty if it has none."""


def starting_points() -> tuple[StartingPoint, ...]:
    """All of them, by name."""
    folders = sorted((each for each in _zoo().iterdir() if each.is_dir()), key=lambda entry: entry.name)
    return tuple(_starting_point(folder, card_of(folder)) for folder in folders)


def _starting_point(folder: Traversable, card: WeightsCard | None) -> StartingPoint:
    description = json.loads((folder / str(_METADATA)).read_text(encoding="utf-8"))["description"]
    return StartingPoint(folder.name, description, "" if card is None else card.told())


def new_bundle(folder: Path, start: str, *, weights: str = RANDOM) -> WeightsCard | None:
    """Make a bundle of the starting point `start` in a new folder, whose name becomes the bundle's.

    With `pretrained` weights it gets them, looked at, and the card that says what they are, which is returned; they
    also stand where the bundle's own inference looks for them.

    Raises:
        ConfigError: there is no such starting point or none with such weights, the folder is in use, or its name is
            none for a bundle.
    """
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a bundle; use letters, digits and . _ -, at most 64 of them")
    known = [each.name for each in starting_points()]
    if start not in known:
        raise ConfigError(f"there is no starting point {start!r}; there are: {', '.join(known)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; name a new folder")
    card = _card(start, weights)
    trained = None if card is None else weights_of(_zoo() / start, card)
    contents = {path: file.read_text(encoding="utf-8") for path, file in _walk(_zoo() / start) if not _weighs(path)}
    contents[PurePosixPath(_LICENCE)] = (_zoo() / _LICENCE).read_text(encoding="utf-8")
    if card is not None:
        contents |= _saying(contents, card)
    written = {path: text.encode() for path, text in named(contents, start, name).items()}
    if trained is not None:
        written |= {PurePosixPath(WEIGHTS): trained, _MODEL: _as_monai_saves(trained)}
    for path, raw in written.items():
        place = folder / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(raw)
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror}; name a folder that can be made") from error
    return card


def named(contents: dict[PurePosixPath, str], start: str, name: str) -> dict[PurePosixPath, str]:
    """A bundle's files with `name` in the place of the starting point's, where a bundle says what it is called."""
    return {
        **contents,
        _METADATA: contents[_METADATA].replace(f'"name": "{start}"', f'"name": "{name}"', 1),
        _README: contents[_README].replace(f"# {start}\n", f"# {name}\n", 1),
    }


def _card(start: str, weights: str) -> WeightsCard | None:
    """The card of the weights that are wanted; None for random ones."""
    if weights == RANDOM:
        return None
    if weights != PRETRAINED:
        raise ConfigError(f"there are no weights {weights!r} for a starting point; say {PRETRAINED} or {RANDOM}")
    card = card_of(_zoo() / start)
    if card is None:
        trained = [each.name for each in starting_points() if each.pretrained]
        raise ConfigError(
            f"there are no pretrained weights for {start}; there are some for {', '.join(trained)}: leave --weights "
            "out, and the bundle begins with random ones"
        )
    return card


def _weighs(path: PurePosixPath) -> bool:
    """Whether a file belongs to an entry's pretrained weights."""
    return path.parts[0] == _MODEL.parts[0]


def _saying(contents: Mapping[PurePosixPath, str], card: WeightsCard) -> dict[PurePosixPath, str]:
    """What a bundle says of its weights, if they are trained."""
    trained = f"The weights are trained: {card.told()}. `{CARD}` says by which recipe, and under which licence."
    return {
        _README: contents[_README].replace(_RANDOM_README, trained, 1),
        _METADATA: contents[_METADATA].replace(_RANDOM_METADATA, "a starting point with pretrained weights", 1),
        PurePosixPath(CARD): card.model_dump_json(indent=2) + "\n",
    }


def _as_monai_saves(weights: bytes) -> bytes:
    """The same weights as the inference of a bundle loads them."""
    import torch
    from safetensors.torch import load

    saved = io.BytesIO()
    torch.save({name: tensor.float() for name, tensor in load(weights).items()}, saved)
    return saved.getvalue()


def _zoo() -> Traversable:
    return files("fledge") / "zoo"


def _walk(folder: Traversable, above: str = "") -> Iterator[tuple[PurePosixPath, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{above}{entry.name}/")
        else:
            yield PurePosixPath(above + entry.name), entry
