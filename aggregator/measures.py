"""What operators can do to a site, as the journal keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["revoked", "quarantined", "none"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What operators did to a site, and the version of the root's registry at that time."""

    measure: Measure
    registry: int
