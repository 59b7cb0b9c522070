"""What the aggregator may do at the broker and the store beyond its own part, if it was given the keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol.messages import Request


class Granting(Protocol):
    """Signs URLs for sites without credentials; `broker.granting` has the real one."""

    def grant(self, site: str, request: Request, now: int) -> tuple[Sequence[str], int]:
        """A URL for each thing asked for, puts first, and until when they hold.

        Raises:
            WireError: the site may not have one of them.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Each is None where the aggregator cannot do it; whoever asks is told so."""

    cut_off: Callable[[str], None] | None = field(default=None)
    """Take a site's login at the broker away, its open connections included."""
    granting: Granting | None = field(default=None)
    depths: Callable[[], Sequence[tuple[str, int, int]]] | None = field(default=None)
    """Every queue with its waiting messages and its consumers."""
