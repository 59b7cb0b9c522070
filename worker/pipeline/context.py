"""What all parts of one worker share: who it is, the registry in force, where events and lines of the log go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from structlog.typing import FilteringBoundLogger

from protocol.registry import Registry
from worker.domain.events import Event
from worker.intake import Reader


class ReaderInForce:
    """Reads by the registry in force; safe from any thread, since it is replaced as a whole."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self) -> Reader:
        """The reader of this moment."""
        return self._reader

    def follow(self, registry: Registry) -> None:
        """Read by another registry from now on."""
        self._reader = replace(self._reader, registry=registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteContext:
    """One worker's surroundings."""

    site: str
    reader: Callable[[], Reader]
    """Gives the one of the registry in force."""
    tell: Callable[[Event], None]
    """Takes events for the rules, from any thread."""
    log: FilteringBoundLogger
