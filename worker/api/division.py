"""Dividing one site's data among several, as `fledge try` does to play a federation with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

Classes = Callable[[], Sequence[Hashable] | None]
"""Gives the class of every example; None: examples have none. It may have to read all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a trainer trains on, as far as dividing it has to know."""

    examples: int
    classes: Classes
    groups: Sequence[Hashable] | None = None
    """To whom every example belongs, such as a patient: what belongs to one stays together."""
    evaluates: bool = False
    """Whether it has examples to evaluate on besides."""


@runtime_checkable
class Divisible(Protocol):
    """A trainer whose examples can be divided; each method but the first is called once at most."""

    def holdings(self) -> Holdings:
        """What there is to divide."""

    def take(self, training: Sequence[int], held_out: Sequence[int]) -> None:
        """From now on train on these examples alone; and evaluate on those others, if there are any."""

    def join(self, others: Sequence[Self]) -> None:
        """From now on train on the examples of these trainers, too."""
