"""What a trial shows while it runs: a live table on a terminal, a line for each version otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fledge.trial.federation import Scored
from fledge.trial.report import Goal

_LINE_EVERY_S = 1.0
_COLOURS = {"training": "green", "sending": "cyan", "evaluating": "blue", "idle": "yellow", "stopped": "dim"}


@dataclass(slots=True)
class _Row:
    examples: int | None
    classes: int
    state: str = "starting"
    progress: float = 0.0
    updates: int = 0
    loss: float | None = None


class TrialWatch:
    """A trial on the screen; a context manager. Told by several threads, drawn by one."""

    def __init__(
        self, console: Console, sites: Sequence[tuple[str, int | None, int]], last: int, key_metric: str = ""
    ) -> None:
        """`sites`: name, examples, number of classes (0: unknown); `last`: the last version."""
        self._console = console
        self._lock = threading.Lock()
        self._rows = {name: _Row(examples, classes) for name, examples, classes in sites}
        self._last = last
        self._named = key_metric
        self._goal: Goal | None = None
        self._points: list[Scored] = []
        self._began = self._line_at = time.monotonic()
        self._doing = ""
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> TrialWatch:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def site(self, name: str, state: str, progress: float, metrics: Mapping[str, float]) -> None:
        """A site's state changed."""
        with self._lock:
            row = self._rows[name]
            row.state, row.progress = state, progress
            row.loss = metrics.get("loss", row.loss)

    def merged(self, version: int, sites: list[str]) -> None:
        """A version was made of these sites' updates."""
        with self._lock:
            for name in sites:
                self._rows[name].updates += 1

    def measured(self, point: Scored) -> None:
        """A version was measured."""
        with self._lock:
            self._points.append(point)
            self._goal = self._goal or Goal.of(self._named, point.metrics)
        now = time.monotonic()
        if not self._console.is_terminal and (point.version in (0, self._last) or now - self._line_at >= _LINE_EVERY_S):
            self._line_at = now
            self._console.print(f"  {self._status(point)}", soft_wrap=True)

    def doing(self, what: str, share: float) -> None:
        """What is trained to compare with, and how far that is."""
        with self._lock:
            new = self._doing.partition(" …")[0] != what
            self._doing = f"{what} … {share:4.0%}"
        if new and not self._console.is_terminal:
            self._console.print(f"  {what} …", soft_wrap=True)

    def _status(self, point: Scored) -> str:
        goal = self._goal or Goal.of("", point.metrics)
        others = [f"{name} {value:.4g}" for name, value in point.metrics.items() if name != goal.name][:3]
        best = goal.best(self._points)
        told = f" (best {goal.shown(best.metrics)} at {best.version})" if best.version != point.version else ""
        values = "  ".join([f"{goal.name} {goal.shown(point.metrics)}{told}", *others])
        return f"{point.seconds:6.1f} s  version {point.version:3} of {self._last}  {values}"

    def _draw(self) -> RenderableType:
        with self._lock:
            status = Text(self._status(self._points[-1]), style="bold") if self._points else Text("measuring version 0")
            return Group(self._table(), status, *([Text(self._doing)] if self._doing else []))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("site")
        table.add_column("examples", justify="right")
        known = any(row.classes for row in self._rows.values())
        if known:
            table.add_column("classes", justify="right")
        table.add_column("state", min_width=10)
        table.add_column("", width=12)
        table.add_column("updates", justify="right")
        table.add_column("loss", justify="right", min_width=7)
        for name, row in self._rows.items():
            classes = [str(row.classes)] if known else []
            table.add_row(
                name,
                "-" if row.examples is None else str(row.examples),
                *classes,
                Text(row.state, style=_COLOURS.get(row.state, "")),
                Bar(1.0, 0, row.progress if row.state == "training" else 0.0, color="green"),
                str(row.updates),
                "-" if row.loss is None else f"{row.loss:.4g}",
            )
        return table
