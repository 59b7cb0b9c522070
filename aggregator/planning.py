"""From a choice of updates to a plan: every scalar a merge uses, as a pure function of journal values.

The same functions serve the running aggregator and the audit, which folds over the stored members and must find the
same numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aggregator.events import UpdateRow
from aggregator.plan import Member
from aggregator.strategies import Strategy
from aggregator.weighting import NORMS_KEPT, SiteStats, clip_factor, example_weights, observe


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


def members(
    rows: Sequence[UpdateRow], version: int, strategy: Strategy, standing: Standing, population: Iterable[str]
) -> tuple[Member, ...]:
    """The members of the version after `version`, in merge order, with their scalars.

    Args:
        standing: before this merge; not changed.
        population: the sites whose example weights average 1; sites never heard of are left out.
    """
    view = standing.copy()
    for row in rows:
        view.observe(row.site, row.examples, row.seconds)
    sites = {row.site for row in rows}
    if strategy.corrected:
        sites |= set(population)
    weights = example_weights({s: view.stats[s] for s in sites if s in view.stats}, corrected=strategy.corrected)
    result = []
    for row in rows:
        staleness = version - row.base_version
        result.append(
            Member(
                id=row.id,
                order=row.order,
                site=row.site,
                base_version=row.base_version,
                staleness=staleness,
                staleness_weight=strategy.staleness.weight(staleness),
                examples=row.examples,
                seconds=row.seconds,
                example_weight=weights[row.site],
                norm=row.norm,
                clip=clip_factor(row.norm, standing.norms),
                absent=row.absent,
            )
        )
    return tuple(result)
