"""A site's sign of life, as it is shown to operators."""

from __future__ import annotations

from dataclasses import dataclass, replace

from protocol.messages import EXAMINED, Event


@dataclass(frozen=True, slots=True)
class Sign:
    """What a site said last, and about which run and version."""

    event: Event
    run: str
    version: int
    doctor: Event | None = None
    """What its doctor found last."""

    @property
    def alive(self) -> bool:
        """Whether its worker said so; a doctor also speaks where no worker runs."""
        return self.event.state != EXAMINED

    def after(self, before: Sign | None) -> Sign:
        """This sign with what is still to be known of the one before: a doctor says nothing of what a worker does."""
        if not self.alive:
            return replace(before or self, doctor=self.event)
        return self if before is None else replace(self, doctor=before.doctor)
