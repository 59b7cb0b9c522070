"""What is known of the sites from the updates merged so far; the next merge's scalars follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from aggregator.plan import Member
from aggregator.weighting import NORMS_KEPT, SiteStats, observe


@dataclass(slots=True)
class Standing:
    """What is known of the sites from the updates merged so far."""

    stats: dict[str, SiteStats] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def copy(self) -> Standing:
        """An independent copy."""
        return Standing(dict(self.stats), list(self.norms))

    def max_wait(self) -> float:
        """Seconds a half-filled buffer waits by default: a minute, or twice the median training time if longer."""
        seconds = [stats.seconds for stats in self.stats.values()]
        return max(60.0, 2 * statistics.median(seconds)) if seconds else 60.0

    def observe(self, site: str, examples: int, seconds: float) -> None:
        """Take one more update of a site into account."""
        self.stats[site] = observe(self.stats.get(site), examples=examples, seconds=seconds)

    def merged(self, members: Iterable[Member]) -> None:
        """Take a committed version's members into account."""
        for member in members:
            self.observe(member.site, member.examples, member.seconds)
            self.norms.append(member.norm)
        del self.norms[:-NORMS_KEPT]
