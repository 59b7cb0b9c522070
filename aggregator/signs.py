"""A site's sign of life, as it is shown to operators."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Event


@dataclass(frozen=True, slots=True)
class Sign:
    """What a site said last, and about which run and version."""

    event: Event
    run: str
    version: int
