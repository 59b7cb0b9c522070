"""How much a site's update counts besides its age: examples, participation, and a bound on its norm.

An asynchronous merge hears fast sites more often. Multiplying a site's examples by its seconds per update undoes
that: c_i = N * n_i * T_i / sum_j n_j * T_j over the N sites known, 1 on average. Everything here is a function of
values the workers signed and the journal keeps, so an audit computes the same numbers again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aggregator.strategy.plan import Member
from protocol.errors import ConfigError

# What a site says of itself may never give it more than half of all weight, where at least four sites take part. Half,
# because a third already costs 2 points of pooled accuracy on Fed-Heart, whose largest hospital may be the slowest.
MAX_SHARE = 1 / 2
_SITES_FOR_CAP = 4
_MEMORY = 0.2  # weight of a new training time in its running mean, once there are five of them
_LEAST_SECONDS = 1e-3  # below this a clock tells noise, not speed
_MOST_SECONDS = 1e9  # thirty years; with more, products of what sites say of themselves would overflow
_CLIP_LIMIT = 10.0
_NORMS_NEEDED = 5
NORMS_KEPT = 64  # how many recent norms the running median looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStats:
    """What one site said of itself in the updates merged so far.

    Args:
        examples: training examples, as of its newest update.
        seconds: running mean of its training seconds per update.
        updates: how many updates are in that mean.
    """

    examples: int
    seconds: float
    updates: int

    def __post_init__(self) -> None:
        if self.examples < 0 or self.updates < 1 or not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ConfigError(f"a site's statistics must be positive and finite: {self}")


def observe(stats: SiteStats | None, *, examples: int, seconds: float) -> SiteStats:
    """Return a site's statistics after one more update; `stats` is None at its first.

    The mean of the training time is plain over the first five updates, then exponential, so that one slow start
    does not linger and a changed machine is noticed. Times below a millisecond count as one.

    Args:
        examples: training examples as signed by the worker.
        seconds: training seconds of this update as signed by the worker.
    """
    seconds = min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)
    if stats is None:
        return SiteStats(examples=examples, seconds=seconds, updates=1)
    share = max(_MEMORY, 1 / (stats.updates + 1))
    mean = stats.seconds + share * (seconds - stats.seconds)
    return SiteStats(examples=examples, seconds=mean, updates=stats.updates + 1)


def example_weights(population: Mapping[str, SiteStats], *, corrected: bool) -> dict[str, float]:
    """Return each site's example weight; they average 1.

    Args:
        population: asynchronous: the live sites heard so far, and the members; synchronous: the members.
        corrected: multiply examples by seconds per update (asynchronous strategies); otherwise examples alone.
    """
    sites = sorted(population)
    raw = [population[site].examples * (population[site].seconds if corrected else 1.0) for site in sites]
    total = math.fsum(raw)
    if total <= 0.0:
        return dict.fromkeys(sites, 1.0)
    shares = [value / total for value in raw]
    if corrected and len(sites) >= _SITES_FOR_CAP:
        shares = _capped(shares)
    return {site: len(sites) * share for site, share in zip(sites, shares, strict=True)}


def _capped(shares: list[float]) -> list[float]:
    """Return the shares with the one above `MAX_SHARE`, if any, cut to it; the others get the rest in proportion."""
    greatest = max(range(len(shares)), key=shares.__getitem__)
    if shares[greatest] <= MAX_SHARE:
        return shares
    rest = math.fsum(share for index, share in enumerate(shares) if index != greatest)
    left = 1.0 - MAX_SHARE
    even = left / (len(shares) - 1)
    others = [share * left / rest if rest > 0.0 else even for share in shares]
    return [MAX_SHARE if index == greatest else others[index] for index in range(len(shares))]


def clip_factor(norm: float, recent: Sequence[float]) -> float:
    """Return min(1, 10 x median / norm): the factor that keeps one diverged site from carrying the model away.

    Args:
        norm: L2 norm of the whole delta.
        recent: norms of the deltas merged before, the newest last; only the last `NORMS_KEPT` count, and with fewer
            than five there is no bound yet.
    """
    known = [value for value in recent[-NORMS_KEPT:] if value > 0.0]
    if norm <= 0.0 or len(known) < _NORMS_NEEDED:
        return 1.0
    return min(1.0, _CLIP_LIMIT * statistics.median(known) / norm)


@dataclass(slots=True)
class SiteStatistics:
    """What is known of the sites from the updates merged so far."""

    stats: dict[str, SiteStats] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def copy(self) -> SiteStatistics:
        """An independent copy."""
        return SiteStatistics(dict(self.stats), list(self.norms))

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
