"""How versions did at the sites: what they measured on their own data, version by version, and which one did best.

A version's value is the mean over all sites that report the metric, weighted by their examples, as if their data had
been evaluated together. A site that did not measure a version counts with what it measured nearest before it, or else
first after it: otherwise a version would be good because the sites with the easy images happened to look at it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from aggregator.strategy.stopping import Stopping, VersionScore
from protocol.messages import Evaluation
from protocol.metrics import Direction, direction_of, key_of

_ABSURD = 1e100
"""No measure is that large; sums over such values would overflow."""


@dataclass(frozen=True, slots=True)
class _Course:
    """How one metric went."""

    measured: dict[str, list[int]]
    """The versions that each site has reported it of, ascending."""
    scores: list[VersionScore]
    """By version, ascending."""


class Evaluations:
    """Evaluations by version and site; the newest `kept` versions stay in memory."""

    def __init__(self, kept: int = 1024) -> None:
        self._by_version: dict[int, dict[str, Evaluation]] = defaultdict(dict)
        self._kept = kept
        self._sites: set[str] = set()
        """Who has measured anything."""
        self._names: set[str] = set()
        self._courses: dict[str, _Course] = {}
        """What was worked out since the last word of a site, by metric."""

    def add(self, version: int, site: str, evaluation: Evaluation) -> None:
        """Keep a site's word on a version; a later one replaces it."""
        self._courses.clear()
        self._sites.add(site)
        self._names |= {name for name in evaluation.metrics if _counts(evaluation, name)}
        self._by_version[version][site] = evaluation
        while len(self._by_version) > self._kept:
            del self._by_version[min(self._by_version)]

    def names(self) -> list[str]:
        """The metrics that any site reports a number for, in alphabetical order."""
        return sorted(self._names)

    def reporters(self, metric: str) -> frozenset[str]:
        """The sites that have measured it."""
        return frozenset(self._course(metric).measured)

    @property
    def measuring(self) -> frozenset[str]:
        """The sites that have measured anything, or have said that they have nothing to measure on."""
        return frozenset(self._sites)

    def newest(self, metric: str) -> dict[str, float]:
        """What each site came to in the newest version that it measured by this metric."""
        last = {site: own[-1] for site, own in self._course(metric).measured.items()}
        return {site: self._by_version[version][site].metrics[metric] for site, version in last.items()}

    def able(self, metric: str, live: Collection[str]) -> frozenset[str]:
        """The `live` sites and all that have reported the metric, but for those that measure without it."""
        return self.reporters(metric) | (frozenset(live) - self._sites)

    def history(self, metric: str | None, live: Collection[str] = ()) -> list[VersionScore]:
        """The metric by version, ascending, for versions that at least half of those measured who are `able`.

        There is no history before more than half of them have reported it at least once.
        """
        if metric is None:
            return []
        course, able = self._course(metric), self.able(metric, live)
        if len(course.measured) * 2 <= len(able):
            return []
        return [score for score in course.scores if score.sites * 2 >= len(able)]

    def _course(self, metric: str) -> _Course:
        if metric not in self._courses:
            measured: dict[str, list[int]] = {}
            for version in sorted(self._by_version):
                for site, said in self._by_version[version].items():
                    if _counts(said, metric):
                        measured.setdefault(site, []).append(version)
            versions = sorted({version for own in measured.values() for version in own})
            scores = [self._score(metric, version, measured) for version in versions]
            self._courses[metric] = _Course(measured, scores)
        return self._courses[metric]

    def _score(self, metric: str, version: int, measured: Mapping[str, Sequence[int]]) -> VersionScore:
        nearest = {site: own[max(0, bisect_right(own, version) - 1)] for site, own in measured.items()}
        said = [self._by_version[at][site] for site, at in nearest.items()]
        total = math.fsum(each.examples for each in said)
        value = math.fsum(each.examples * each.metrics[metric] for each in said) / total
        return VersionScore(version=version, value=value, sites=sum(at == version for at in nearest.values()))


def _counts(said: Evaluation, metric: str) -> bool:
    """Whether it holds a number that is one: not on nothing, not infinite, not absurd."""
    return said.examples > 0 and metric in said.metrics and abs(said.metrics[metric]) < _ABSURD


def best_of(scores: Sequence[VersionScore], direction: Direction) -> VersionScore | None:
    """The version that did best, of equal ones the newest; values that are not finite are passed over."""
    sign = 1.0 if direction == "max" else -1.0
    finite = [score for score in scores if math.isfinite(score.value)]
    return max(finite, key=lambda score: (sign * score.value, score.version), default=None)


def compared_by(stopping: Stopping, evaluations: Evaluations) -> tuple[str, Direction]:
    """By what a run's versions are compared, and whether more of it is better; empty while no site reports such."""
    if stopping.metric is not None:
        return stopping.metric, stopping.direction
    chosen = key_of(evaluations.names())
    return chosen, direction_of(chosen) or "max"


def best_version(stopping: Stopping, evaluations: Evaluations) -> VersionScore | None:
    """The version of a run that did best at its sites so far; None if none was measured by that metric."""
    name, direction = compared_by(stopping, evaluations)
    return best_of(evaluations.history(name), direction) if name else None


def why(stopping: Stopping, evaluations: Evaluations, best: VersionScore | None) -> str:
    """Why this version is taken, or (None) the newest, where nobody named one."""
    if best is None:
        return "the newest, because no site has measured one"
    return f"the best by {compared_by(stopping, evaluations)[0]}: {best.value:.5g}"
