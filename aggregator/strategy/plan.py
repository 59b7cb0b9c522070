"""A merge as values: who is in a version, with which weights, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One update in a version, with every scalar its weight came from."""

    id: bytes
    order: int
    site: str
    base_version: int
    staleness: int
    staleness_weight: float
    examples: int
    seconds: float
    example_weight: float
    norm: float
    clip: float
    absent: tuple[str, ...]

    @property
    def weight(self) -> float:
        """The factor on the member's delta."""
        return self.staleness_weight * self.example_weight * self.clip


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """Everything a version is computed from; stored with it, so that a replay gives the same bytes."""

    run: str
    version: int
    parent: bytes
    strategy: str
    parameters: Mapping[str, object]
    members: tuple[Member, ...]
    population: tuple[str, ...]
    divisor: float
    rate: float
    release_decay: float
    ids: tuple[bytes, ...]
    """Message ids of the version record and of each state stream's record."""
    registry: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What a merge made: digests of the plaintext payload and the stored records."""

    digest: bytes
    record: bytes
    """The signed version record's bytes."""
    states: Mapping[str, bytes]
    """The signed record of each state stream, by name (`released` is the average)."""
