"""Trained weights that come with a starting point of the zoo, and the card that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError

WEIGHTS, CARD = "models/pretrained.safetensors", "models/pretrained.json"
"""Where they stand in a bundle and in the zoo."""
_CARD_BYTES = 64 * 1024


class WeightsCard(BaseModel):
    """What has to be known of weights before they are used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: str
    metric: str
    value: float
    """Of the weights as they are in the file."""
    measured_on: str
    held_out: int = Field(ge=1)
    """How many images it was measured on."""
    trained_on: int = Field(ge=1)
    data: str
    licence: str
    citation: str
    recipe: str
    epochs: int
    seed: int
    versions: Mapping[str, str]
    bytes: int = Field(ge=1, le=64 * 1024**2)
    sha256: str

    def told(self) -> str:
        """What they can do, in a few words."""
        return f"{self.metric} {self.value:.3f} on {self.held_out} images that were not trained on"


def card_of(folder: Traversable) -> WeightsCard | None:
    """The card of a bundle's pretrained weights, or of an entry's of the zoo; None if it has none.

    Raises:
        ConfigError: what is there is no card.
    """
    place = folder / CARD
    if not place.is_file():
        return None
    try:
        with place.open("rb") as file:
            return WeightsCard.model_validate_json(file.read(_CARD_BYTES))
    except ValidationError as error:
        raise ConfigError(f"{place} is no card of weights; make the bundle again with `fledge bundle new`") from error


def weights_of(folder: Traversable, card: WeightsCard) -> bytes:
    """The weights that a card is about.

    Raises:
        ConfigError: they are not there, or others.
    """
    place = folder / WEIGHTS
    try:
        with place.open("rb") as file:
            raw = file.read(card.bytes + 1)
    except FileNotFoundError:
        raise ConfigError(f"{place} is not there, and {CARD} is about it; make the bundle again") from None
    if len(raw) != card.bytes or hashlib.sha256(raw).hexdigest() != card.sha256:
        raise ConfigError(
            f"{place} does not hold the weights that {CARD} is about (another SHA-256): it was damaged or exchanged; "
            "make the bundle again, or install fledge again"
        )
    return raw


def pretrained(bundle: Path) -> tuple[Path, WeightsCard] | None:
    """A bundle's pretrained weights, looked at, with their card; None if it begins with random ones.

    Raises:
        ConfigError: the weights and their card do not belong together.
    """
    card = card_of(bundle)
    if card is None:
        return None
    weights_of(bundle, card)
    return bundle / WEIGHTS, card
