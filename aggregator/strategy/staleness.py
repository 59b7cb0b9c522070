"""How much an update counts that was trained from an older version.

Staleness tau is the version current at the merge minus the update's base version; it is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from broker.runtime.plugins import build
from protocol.errors import ConfigError


class StalenessPolicy(Protocol):
    """Maps staleness to a weight."""

    def weight(self, staleness: int) -> float:
        """Return the factor in [0, 1] for an update this many versions old; the same for the same argument, always."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Every update counts fully, however old."""

    def weight(self, staleness: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """(1 + tau) ** -exponent: FedBuff's rule (Nguyen 2022), the square root by default."""

    exponent: float = 0.5

    def __post_init__(self) -> None:
        if (
            not isinstance(self.exponent, int | float)
            or isinstance(self.exponent, bool)
            or not 0 <= self.exponent <= 100
        ):
            raise ConfigError("the staleness exponent must be a number from 0 to 100: age is never rewarded")

    def weight(self, staleness: int) -> float:
        """Return (1 + staleness) ** -exponent."""
        # 1/sqrt and not `**`: IEEE 754 rounds sqrt correctly, so a replay on another machine gives the same bits.
        if self.exponent == 0.5:
            return 1.0 / math.sqrt(1 + staleness)
        return float((1 + staleness) ** -self.exponent)


STALENESS: dict[str, Callable[..., StalenessPolicy]] = {"constant": Constant, "polynomial": Polynomial}


def staleness_policy(name: str, **parameters: object) -> StalenessPolicy:
    """Make a policy by its name in the configuration; third parties register in `fledge.staleness`.

    Raises:
        ConfigError: the name is unknown or a parameter is wrong.
    """
    return build("fledge.staleness", STALENESS, name, parameters)
