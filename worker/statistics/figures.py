"""Figures over a hospital's patients, none of which tells anything of a few of them.

The rules are those of output checking in research data centres (the rule of ten of the UK's ONS and Australia's ABS):
no figure from fewer than ten patients, no smallest or largest value, no total that gives away a suppressed cell.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, quantiles

from worker.data.datalist import Task

MIN_CELL = 10
"""Patients a figure needs, at least."""
WITHHELD = "withheld"
PATIENTS = "patients"
VOXELS = "voxels"
_DIGITS = 4
Value = float | int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFigures:
    """What was measured of one image."""

    patient: str
    figures: Mapping[str, float]
    """By names such as `shape.x` or `intensity.c0.all.mean`."""
    voxels: Mapping[str, int]
    """Of each class that occurs; where no label is drawn, one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The patients of a data set, each of whom counts once, whatever the number of their images."""

    total: int
    present: Mapping[str, int]
    """How many patients have each class."""
    columns: Mapping[str, Sequence[float]]
    """The values of each figure, one for each patient who has it."""

    @classmethod
    def of(cls, cases: Iterable[CaseFigures], classes: Sequence[str], task: Task) -> Cohort:
        """Gathered from images."""
        by_patient: defaultdict[str, list[CaseFigures]] = defaultdict(list)
        for case in cases:
            by_patient[case.patient].append(case)
        present = {
            name: sum(any(case.voxels.get(name) for case in found) for found in by_patient.values()) for name in classes
        }
        columns: defaultdict[str, list[float]] = defaultdict(list)
        for found in by_patient.values():
            for name, value in _mean_of(found, task).items():
                columns[name].append(value)
        return cls(total=len(by_patient), present=present, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """How a data set is summed up: `suppressed` for readers outside the hospital."""

    task: Task
    classes: Sequence[str]
    """The first is the background of a segmentation."""
    min_cell: int = MIN_CELL
    suppressed: bool = True

    def of(self, cases: Iterable[CaseFigures]) -> dict[str, Value]:
        """Figures by name; each patient counts once, whatever the number of images."""
        return self.told_of(Cohort.of(cases, self.classes, self.task))

    def told_of(self, cohort: Cohort) -> dict[str, Value]:
        """Likewise, of patients who were gathered before."""
        total, present, columns = cohort.total, cohort.present, cohort.columns
        counts = self.counts(total, present)
        found: dict[str, Value] = {"min_cell": self.min_cell, **counts}
        known = _known(counts)
        if self.suppressed and known < self.min_cell:
            return found
        for name in sorted(columns.keys() - self._complements(present)):
            values = columns[name]
            found |= self.spread(name, values, min(known, self._at_least(len(values), total)))
        return found

    def counts(self, total: int, present: Mapping[str, int]) -> dict[str, Value]:
        """How many patients there are in all, and with each class.

        A suppressed cell follows from no others. For a segmentation a class and its absence are two cells of the total;
        for a classification all classes are, so that no total is told beside a suppressed one. Lists of zeros and ones
        may be either.
        """
        rows: dict[str, Value] = {PATIENTS: total}
        rows |= {f"{PATIENTS}.{name}": count for name, count in present.items()}
        if not self.suppressed:
            return rows
        few = f"<{self.min_cell}"
        if total < self.min_cell:
            return {PATIENTS: few}
        for name, count in present.items():
            if count < self.min_cell:
                rows[f"{PATIENTS}.{name}"] = few
                if self.task is not Task.SEGMENTATION:
                    rows[PATIENTS] = WITHHELD
            elif self.task is not Task.CLASSIFICATION and 0 < total - count < self.min_cell:
                rows[f"{PATIENTS}.{name}"] = f"all but {few}"
        return rows

    def spread(self, name: str, values: Sequence[float], known: int) -> dict[str, Value]:
        """How one figure varies over patients; a percentile needs `min_cell` of them on either side.

        `known` is how many patients are known to be there at least: which figures are told says no more than that.
        """
        if self.suppressed and known < self.min_cell:
            return {}  # not even its name: few cannot be told from none
        found = {f"{name}.mean": fmean(values), f"{name}.std": pstdev(values)}
        for label, share in (("p25", 0.25), ("median", 0.5), ("p75", 0.75)):
            if not self.suppressed or known * min(share, 1 - share) >= self.min_cell:
                found[f"{name}.{label}"] = _percentile(values, share)
        if not self.suppressed:
            found |= {f"{name}.min": min(values), f"{name}.max": max(values)}
        return {key: _rounded(value) for key, value in found.items()}

    def _at_least(self, count: int, total: int) -> int:
        """How many patients have a figure, as if as many as may not be told were without."""
        return total - self.min_cell + 1 if 0 < total - count < self.min_cell else count

    def _complements(self, present: Mapping[str, int]) -> set[str]:
        """The background's voxels beside a suppressed class: shape less background is what was suppressed."""
        if not self.suppressed or self.task is not Task.SEGMENTATION or not self.classes:
            return set()
        hidden = any(count < self.min_cell for count in present.values())
        return {f"{VOXELS}.{self.classes[0]}"} if hidden else set()


def _mean_of(cases: Sequence[CaseFigures], task: Task) -> dict[str, float]:
    """One patient's figures: the means over their images."""
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for case in cases:
        for name, value in case.figures.items():
            columns[name].append(value)
        if task is Task.SEGMENTATION:
            for name, count in case.voxels.items():
                columns[f"{VOXELS}.{name}"].append(count)
    return {name: fmean(values) for name, values in columns.items()}


def _known(counts: Mapping[str, Value]) -> int:
    """How many patients there are at least, for all that these counts say."""
    total = counts[PATIENTS]
    if total == WITHHELD:  # a classification: the classes that are told
        return max((count for count in counts.values() if isinstance(count, int)), default=0)
    return total if isinstance(total, int) else 0


def _percentile(values: Sequence[float], share: float) -> float:
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else value
