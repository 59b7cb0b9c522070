"""From a choice of updates to a plan: every scalar a merge uses, as a pure function of journal values.

The same functions serve the running aggregator and the audit, which folds over the stored members and must find the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aggregator.domain.state import RunRules, UpdateRow
from aggregator.strategy.base import Strategy, ema_decay
from aggregator.strategy.plan import Member, MergePlan
from aggregator.strategy.staleness import weight_at
from aggregator.strategy.weighting import SiteStatistics, clip_factor, example_weights

FAILED = "strategy_failed"
"""Why a run pauses whose strategy or staleness rule cannot be used as it behaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBase:
    """What the next version rests on."""

    version: int
    digest: bytes
    """Of the plaintext of that version."""
    population: tuple[str, ...]
    """The sites that are live."""
    divisor: int
    """What the weighted sum is divided by."""
    registry: int
    """Version of the registry that its record is wrapped for."""


def next_plan(
    run: RunRules,
    rows: Sequence[UpdateRow],
    base: PlanBase,
    *,
    site_statistics: SiteStatistics,
    new_id: Callable[[], bytes],
) -> MergePlan:
    """The plan of the version after `base` from these updates, in their order.

    Raises:
        StrategyFailed: the staleness rule gives no weight for an update's age.
    """
    chosen, number = run.strategy, base.version + 1
    return MergePlan(
        run=run.run,
        version=number,
        parent=base.digest,
        strategy=chosen.name,
        parameters=run.parameters,
        members=members(rows, base.version, chosen, site_statistics, base.population),
        population=base.population,
        divisor=float(base.divisor),
        rate=chosen.rate,
        release_decay=ema_decay(number, run.release_decay),
        ids=tuple(new_id() for _ in range(2 + len(chosen.state))),
        registry=base.registry,
    )


def members(
    rows: Sequence[UpdateRow],
    version: int,
    strategy: Strategy,
    site_statistics: SiteStatistics,
    population: Iterable[str],
) -> tuple[Member, ...]:
    """The members of the version after `version`, in merge order, with their scalars.

    Args:
        site_statistics: before this merge; not changed.
        population: the sites whose example weights average 1; sites never heard of are left out.

    Raises:
        StrategyFailed: the staleness rule gives no weight for an update's age.
    """
    view = site_statistics.copy()
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
                staleness_weight=weight_at(strategy.staleness, staleness),
                examples=row.examples,
                seconds=row.seconds,
                example_weight=weights[row.site],
                norm=row.norm,
                clip=clip_factor(row.norm, site_statistics.norms),
                absent=row.absent,
            )
        )
    return tuple(result)
