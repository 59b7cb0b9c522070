"""What the demo shows while it trains: a live table on a terminal, a line now and then otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fledge.demo.stage import Point

_LINE_EVERY_S = 2.0
_COLOURS = {"training": "green", "sending": "cyan", "evaluating": "blue", "idle": "yellow", "stopped": "dim"}


@dataclass(slots=True)
class _Hospital:
    images: int
    seconds: float
    state: str = "starting"
    progress: float = 0.0
    staleness: int | None = None
    """Of its last merged update."""
    accepted: int = 0


class Watch:
    """One training on the screen; a context manager. Told by several threads, drawn by one."""

    def __init__(self, console: Console, title: str, goal: float, hospitals: Sequence[tuple[str, int, float]]) -> None:
        """`hospitals`: name, images, seconds an update takes."""
        self._console = console
        self._title = title
        self._goal = goal
        self._lock = threading.Lock()
        self._hospitals = {name: _Hospital(images, seconds) for name, images, seconds in hospitals}
        self._version = 0
        self._merged = 0
        self._point: Point | None = None
        self._reached: Point | None = None
        self._began = time.monotonic()
        self._line_at = 0.0
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        elif self._point is not None:
            self._print_line(self._point)

    # ---- told by the stage

    def site(self, name: str, state: str, progress: float) -> None:
        """A hospital's state changed."""
        with self._lock:
            hospital = self._hospitals[name]
            hospital.state, hospital.progress = state, progress

    def merged(self, version: int, sites: list[str], staleness: list[int]) -> None:
        """A version was made of these updates."""
        with self._lock:
            self._version = version
            self._merged += len(sites)
            for name, late in zip(sites, staleness, strict=True):
                self._hospitals[name].staleness = late
                self._hospitals[name].accepted += 1

    def measured(self, point: Point) -> None:
        """A released model was measured."""
        with self._lock:
            self._point = point
            first = self._reached is None and point.accuracy >= self._goal
            self._reached = point if first else self._reached
        if not self._console.is_terminal and (first or point.seconds - self._line_at >= _LINE_EVERY_S):
            self._print_line(point)

    # ---- drawing

    def _print_line(self, point: Point) -> None:
        self._line_at = point.seconds
        with self._lock:
            merged, states = self._merged, [hospital.state for hospital in self._hospitals.values()]
        self._console.print(
            f"  {point.seconds:6.1f} s  version {point.version:4}  accuracy {point.accuracy:6.1%}"
            f"  {merged:4} updates merged  {states.count('training')} of {len(states)} hospitals training"
        )

    def _draw(self) -> RenderableType:
        with self._lock:
            return Group(Text(self._title, style="bold"), self._table(), self._status())

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("hospital")
        for name in ("images", "speed"):
            table.add_column(name, justify="right")
        table.add_column("state")
        table.add_column("", width=12)
        for name in ("staleness", "accepted"):
            table.add_column(name, justify="right")
        fastest = min(hospital.seconds for hospital in self._hospitals.values())
        for name, hospital in self._hospitals.items():
            table.add_row(
                name,
                str(hospital.images),
                f"{hospital.seconds / fastest:.1f}x",
                Text(hospital.state, style=_COLOURS.get(hospital.state, "")),
                Bar(1.0, 0, hospital.progress if hospital.state == "training" else 0.0, color="green"),
                "-" if hospital.staleness is None else str(hospital.staleness),
                str(hospital.accepted),
            )
        return table

    def _status(self) -> Text:
        elapsed = time.monotonic() - self._began
        text = Text(f"{elapsed:6.1f} s   version {self._version}   {self._merged} updates merged   ")
        if self._point is not None:
            text.append(f"accuracy {self._point.accuracy:.1%}", style="bold")
        if self._reached is not None:
            text.append(f"   {self._goal:.0%} after {self._reached.seconds:.1f} s", style="bold green")
        return text
