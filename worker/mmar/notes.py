"""What a conversion tells people, and where it asks what MONAI has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from worker.mmar.entries import Role


class Kind(StrEnum):
    """What a note says."""

    MAPPED = "mapped"
    LEFT_OUT = "left out"
    TO_SET = "to be set"


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that was mapped or left out, or that a site has to set."""

    kind: Kind
    what: str
    why: str


class Catalogue(Protocol):
    """What the installed MONAI and torch have."""

    def find(self, role: Role, name: str) -> str | None:
        """What a configuration calls the class of this name, or None if there is none."""
        ...

    def nearest(self, role: Role, name: str) -> Sequence[str]:
        """Names of classes that read like this one."""
        ...

    def unknown(self, target: str, arguments: Collection[str]) -> Sequence[str]:
        """Those of the arguments that the class does not take."""
        ...
