"""Who trains and who tests: each patient's own hash decides, so no patient's arrival moves another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol.errors import ConfigError

TRAINING, VALIDATION, TEST = SPLITS = ("training", "validation", "test")
_WHOLE = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How many of the patients are kept from training, and the seed of the split.

    Raises:
        ConfigError: a share is no share, or none is left to train on.
    """

    validation: float = 0.2
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise ConfigError(
                f"--validation {self.validation:g} and --test {self.test:g} are shares of the patients, from 0 up to "
                "less than 1 together; for example 0.2 and 0.1"
            )

    def of(self, patient: str) -> str:
        """The list that all images of a patient belong to."""
        digest = hashlib.sha256(f"{self.seed}\0{patient}".encode("utf-8", "surrogatepass")).digest()
        drawn = int.from_bytes(digest[:8], "big") / _WHOLE
        if drawn < self.test:
            return TEST
        return VALIDATION if drawn < self.test + self.validation else TRAINING


def split(patients: Iterable[str], shares: Shares) -> Mapping[str, str]:
    """The list of each patient.

    Raises:
        ConfigError: a list that was asked for would be empty, as happens with few patients.
    """
    found = {patient: shares.of(patient) for patient in patients}
    wanted = {TRAINING: True, VALIDATION: shares.validation > 0, TEST: shares.test > 0}
    for name in SPLITS:
        if wanted[name] and name not in found.values():
            raise ConfigError(
                f"with --seed {shares.seed} none of the {len(found)} patients falls into {name}; "
                "choose another seed, or other shares"
            )
    return found
