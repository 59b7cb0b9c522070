"""How much an update counts that was trained from an older version.

Staleness tau is the version current at the merge minus the update's base version; it is never negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from broker.runtime.plugins import FAILURES, ExtensionPoint
from protocol.errors import ConfigError, StrategyFailed


class StalenessPolicy(Protocol):
    """Maps staleness to a weight."""

    def weight(self, staleness: int) -> float:
        """Return the factor in [0, 1] for an update this many versions old; the same for the same argument, always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Every update counts fully, however old."""

    def weight(self, staleness: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """(1 + tau) ** -exponent: FedBuff's rule (Nguyen 2022), the square root by default."""

    exponent: float = 0.5

    def __post_init__(self) -> None:
        power = self.exponent
        if not isinstance(power, int | float) or isinstance(power, bool) or not 0 <= power <= 100:
            raise ConfigError("the staleness exponent must be a number from 0 to 100: age is never rewarded")

    def weight(self, staleness: int) -> float:
        """Return (1 + staleness) ** -exponent."""
        # 1/sqrt and not `**`: IEEE 754 rounds sqrt correctly, so a replay on another machine gives the same bits.
        if self.exponent == 0.5:
            return 1.0 / math.sqrt(1 + staleness)
        return float((1 + staleness) ** -self.exponent)


STALENESS = ExtensionPoint[StalenessPolicy](
    "fledge.staleness", "staleness rule", {"constant": Constant, "polynomial": Polynomial}
)
_TRIED = (*range(1025), *(2**power for power in range(11, 32)))
"""Ages: every one that a federation sees, and then as far as there can be any."""


def staleness_policy(name: str, **parameters: object) -> StalenessPolicy:
    """Make a policy by its name in the configuration; third parties register in `fledge.staleness`.

    Raises:
        ConfigError: the name is unknown, a parameter is wrong, or what a package registered gives no weights.
    """
    made = STALENESS.build(name, parameters)
    if name not in STALENESS.builtins:
        check_policy(made, f"staleness rule {name!r}")
    return made


def check_policy(policy: StalenessPolicy, said: str) -> None:
    """Refuse a policy that does not give a weight in [0, 1] for every age; `said` is how errors call it.

    Raises:
        ConfigError: says what is wrong.
    """
    if not callable(getattr(policy, "weight", None)):
        raise ConfigError(f"{said} has no method weight(staleness), which gives the factor for an update's age")
    for age in _TRIED:
        try:
            value, again = weight_at(policy, age), weight_at(policy, age)
        except StrategyFailed as error:
            raise ConfigError(f"{said}: {error}") from error
        if value != again:
            raise ConfigError(f"{said}: weight({age}) is {value!r}, then {again!r}; it has to be the same each time")


def weight_at(policy: StalenessPolicy, age: int) -> float:
    """The factor of an update this many versions old.

    Raises:
        StrategyFailed: the policy gives none, or none from 0 to 1.
    """
    try:
        value: object = policy.weight(age)
    except FAILURES as error:
        raise StrategyFailed(f"weight({age}) fails: {type(error).__name__}: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise StrategyFailed(f"weight({age}) is {value!r}; it has to be a number from 0 to 1")
    return float(value)
