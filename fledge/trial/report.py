"""What came of a trial, as a table, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fledge.trial.federation import Scored
from protocol.errors import ConfigError
from protocol.metrics import direction_of, key_of

_RATES = ("accuracy", "dice", "auc", "f1", "iou", "recall", "precision", "sensitivity", "specificity")
"""Metrics from 0 to 1 that people say in per cent."""
ENDINGS = (".md", ".json")


@dataclass(frozen=True, slots=True)
class Goal:
    """The metric that versions are compared by."""

    name: str
    more_is_better: bool

    @classmethod
    def of(cls, named: str, metrics: Mapping[str, float]) -> Goal:
        """`named` is a trainer's `key_metric`: with `-` before it if smaller is better; empty: by the names."""
        name = named.removeprefix("-")
        if name in metrics:
            return cls(name, not named.startswith("-"))
        name = key_of(metrics) or next(iter(metrics))
        return cls(name, direction_of(name) != "min")

    def best(self, points: Sequence[Scored]) -> Scored:
        """The version that did best; of equals the newest."""
        sign = 1.0 if self.more_is_better else -1.0
        return max(points, key=lambda point: (sign * point.metrics[self.name], point.version))

    def shown(self, metrics: Mapping[str, float] | None) -> str:
        """A model's value as people read it."""
        if metrics is None or self.name not in metrics:
            return "-"
        value = metrics[self.name]
        rate = any(word in self.name.lower() for word in _RATES) and 0 <= value <= 1
        return f"{value:.1%}" if rate else f"{value:.4g}"

    def beats(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether one model did better than another."""
        return one[self.name] > other[self.name] if self.more_is_better else one[self.name] < other[self.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What one site brought."""

    name: str
    examples: int | None
    classes: Mapping[str, int]
    updates: int
    steps: int
    loss: float | None
    """The last that its training told."""
    alone: Mapping[str, float] | None = None
    """How it would have done by itself; None: not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """All of it."""

    trainer: str
    command: str
    fledge: str
    strategy: str
    seed: int
    parameters: int
    held_out: str
    key_metric: str
    more_is_better: bool
    versions: Sequence[Scored]
    sites: Sequence[SiteReport]
    steps: int
    """Of all sites together, and of a model trained on all data pooled; a site alone takes its own."""
    training_seconds: float
    seconds: float
    complete: bool
    """Whether all versions were made; no: it was stopped."""
    pooled: Mapping[str, float] | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def goal(self) -> Goal:
        """The metric that it is about."""
        return Goal(self.key_metric, self.more_is_better)

    @property
    def federated(self) -> Scored:
        """The last version."""
        return self.versions[-1]

    @property
    def best(self) -> Scored:
        """The best one."""
        return self.goal.best(self.versions)


def show(report: TrialReport, console: Console) -> None:
    """Write the comparison and what follows from it."""
    table = Table(
        title=f"{report.key_metric} on {report.held_out}",
        title_style="bold",
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("note", style="dim")
    for what, value, note in _rows(report):
        table.add_row(what, Text(value, style="bold" if what == "federated" else ""), note)
    console.print()
    console.print(table)
    for line in _remarks(report):
        console.print(line, soft_wrap=True)


def write(report: TrialReport, path: Path) -> None:
    """Write the report, as Markdown or JSON by the file's ending; a file that is there is replaced as a whole.

    Raises:
        ConfigError: it cannot be written.
    """
    text = _json(report) if path.suffix == ".json" else _markdown(report)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(f"--report {path}: {error.strerror or error}; name a file that can be written") from error


def check_place(path: Path | None) -> None:
    """Refuse a report's place before anything is trained for it.

    Raises:
        ConfigError: the ending is none of ours, or the folder is not there.
    """
    if path is None:
        return
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--report {path}: end the name in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"--report {path}: there is no such folder to write a file in")


def _rows(report: TrialReport) -> Iterator[tuple[str, str, str]]:
    goal, last, best = report.goal, report.federated, report.best
    known = [site for site in report.sites if site.alone is not None]
    top = goal.best([Scored(0, 0.0, site.alone or {}) for site in known]).metrics if known else {}
    for site in report.sites:
        examples = "" if site.examples is None else f"{site.examples} examples"
        if site.alone is not None:
            note = examples + (", the best of them" if site.alone == top and len(known) > 1 else "")
            yield f"{site.name} alone", goal.shown(site.alone), note
    others = "" if best.version == last.version else f"; version {best.version} had {goal.shown(best.metrics)}"
    yield "federated", goal.shown(last.metrics), f"version {last.version}{others}"
    if report.pooled is not None:
        yield "all data pooled", goal.shown(report.pooled), f"in one place, the {report.steps} steps of all sites"
    yield "at the start", goal.shown(report.versions[0].metrics), "version 0"


def _remarks(report: TrialReport) -> Iterator[str]:
    goal = report.goal
    known = [site for site in report.sites if site.alone is not None]
    if known:
        beaten = [site for site in known if goal.beats(report.federated.metrics, site.alone or {})]
        verdict = (
            "beats every site alone" if len(beaten) == len(known) else f"beats {len(beaten)} of {len(known)} sites"
        )
        yield f"The federated model {verdict}; alone, a site takes the steps that it took in the federation."
    yield from report.notes
    if not report.complete:
        yield f"It was stopped after version {report.federated.version}."
    yield f"{report.training_seconds:.1f} s of training together, {report.seconds:.1f} s in all."


def _json(report: TrialReport) -> str:
    return json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n"


def _markdown(report: TrialReport) -> str:
    goal = report.goal
    lines = [f"# {report.trainer} in a federation of {len(report.sites)} sites", ""]
    lines += [f"{report.key_metric} on {report.held_out}.", "", "| model | value | |", "|---|---:|---|"]
    lines += [f"| {what} | {value} | {note} |" for what, value, note in _rows(report)]
    lines += ["", *(f"- {line}" for line in _remarks(report)), "", "## Sites", ""]
    lines += ["| site | examples | classes | updates | steps | last loss |", "|---|---:|---|---:|---:|---:|"]
    for site in report.sites:
        classes = ", ".join(f"{name}: {count}" for name, count in site.classes.items())
        loss = "" if site.loss is None else f"{site.loss:.4g}"
        examples = "" if site.examples is None else str(site.examples)
        lines.append(f"| {site.name} | {examples} | {classes} | {site.updates} | {site.steps} | {loss} |")
    names = sorted(report.versions[0].metrics, key=lambda name: name != goal.name)
    lines += ["", "## Versions", "", f"| version | s | {' | '.join(names)} |", f"|---:|---:|{'---:|' * len(names)}"]
    for point in report.versions:
        values = " | ".join(f"{point.metrics[name]:.4g}" if name in point.metrics else "" for name in names)
        lines.append(f"| {point.version} | {point.seconds:.1f} | {values} |")
    lines += ["", "## Made by", "", f"    {report.command}", ""]
    lines.append(
        f"fledge {report.fledge}, strategy {report.strategy}, seed {report.seed}, "
        f"{report.parameters:,} values in the model."
    )
    return "\n".join(lines) + "\n"
