"""Histograms over a hospital's patients that tell no more of a few of them than the figures do."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev

from worker.statistics.figures import PATIENTS, VOXELS, Cohort, DataSummary, Value

_DRAWN = re.compile(rf"shape\..+|spacing\..+|intensity\..+\.mean|{VOXELS}\..+")
_QUARTILES = 1.35
"""Standard deviations that the middle half of a normal distribution spans."""
_MOST = 40
"""Bars of one histogram, where those of a few patients are shown too."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How many patients have a value from `low` to below `high`; None: there is no bound that may be told."""

    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """How a figure is spread over patients."""

    name: str
    step: float
    """The width of a bar without a bound."""
    bars: Sequence[Bar]


def histograms(summary: DataSummary, cohort: Cohort, told: Mapping[str, Value]) -> Iterator[Histogram]:
    """The histograms of what is `told` of these patients.

    Every bar is of as many patients as a figure needs, so that narrower ones are joined. A figure is left out whose
    number of patients is not told: the bars add up to it.
    """
    for name in sorted(filter(_DRAWN.fullmatch, cohort.columns)):
        values = cohort.columns[name]
        counts = (told.get(PATIENTS), told.get(f"{PATIENTS}.{name.removeprefix(f'{VOXELS}.')}"))
        if summary.suppressed and (f"{name}.mean" not in told or len(values) not in counts):
            continue
        found = histogram(name, values, summary.min_cell if summary.suppressed else 0, _middle(name, told))
        if len(found.bars) > 1 or found.step == 0:
            yield found


def histogram(name: str, values: Sequence[float], least: int, middle: float = math.inf) -> Histogram:
    """Bars of at least `least` patients between round bounds; 0 for bars of one width.

    `middle` is what the middle half of them spans, where that is told: a few patients far from the others then do not
    make one bar of all others.
    """
    spread = pstdev(values)
    if not 0 < spread < math.inf:
        return Histogram(name, 0.0, [Bar(values[0], values[0], len(values))])
    spread = min(spread, middle / _QUARTILES)
    step = _round(spread / 2)
    if not least:
        while (max(values) - min(values)) / step > _MOST:
            step = _round(step * 2)
    places = Counter(math.floor(value / step) for value in values)
    if not least:
        low, high = min(places), max(places)
        return Histogram(name, step, [Bar(n * step, (n + 1) * step, places[n]) for n in range(low, high + 1)])
    bars: list[Bar] = []
    low_bound, count = None, 0
    for place in sorted(places):
        count += places[place]
        if count >= least:
            bars.append(Bar(low_bound, (place + 1) * step, count))
            low_bound, count = (place + 1) * step, 0
    if not bars:
        return Histogram(name, step, [])
    *others, last = bars
    return Histogram(name, step, [*others, Bar(last.low, None, last.count + count)])


def _middle(name: str, told: Mapping[str, Value]) -> float:
    low, high = told.get(f"{name}.p25"), told.get(f"{name}.p75")
    spans = high - low if isinstance(low, float) and isinstance(high, float) else 0.0
    return spans if spans > 0 else math.inf


def _round(width: float) -> float:
    """The next of 1, 2 and 5 with any number of noughts that is not smaller."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= width * (1 - 1e-9))
