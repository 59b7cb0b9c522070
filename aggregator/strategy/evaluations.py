"""How versions did at the sites: the weighted mean of what they measured on their own data."""

from __future__ import annotations

import math
from collections import defaultdict

from aggregator.strategy.stopping import VersionScore
from protocol.messages import Evaluation

_ABSURD = 1e100
"""No measure is that large; sums over such values would overflow."""


class Evaluations:
    """Evaluations by version and site; the newest `kept` versions stay in memory."""

    def __init__(self, kept: int = 1024) -> None:
        self._by_version: dict[int, dict[str, Evaluation]] = defaultdict(dict)
        self._kept = kept

    def add(self, version: int, site: str, evaluation: Evaluation) -> None:
        """Keep a site's word on a version; a later one replaces it."""
        self._by_version[version][site] = evaluation
        while len(self._by_version) > self._kept:
            del self._by_version[min(self._by_version)]

    def history(self, metric: str | None, sites: int) -> list[VersionScore]:
        """The metric by version, ascending, for versions at least half of `sites` have evaluated.

        The mean is weighted by examples, as if their data had been evaluated together.
        """
        if metric is None:
            return []
        result = []
        for version in sorted(self._by_version):
            values = [
                (e.examples, e.metrics[metric])
                for e in self._by_version[version].values()
                if metric in e.metrics and e.examples > 0 and abs(e.metrics[metric]) < _ABSURD
            ]
            if values and len(values) * 2 >= sites:
                total = math.fsum(n for n, _ in values)
                result.append(VersionScore(version=version, value=math.fsum(n * v for n, v in values) / total))
        return result
