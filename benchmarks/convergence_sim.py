"""A federation in virtual time, merged by the product's own rules; nothing sleeps and nothing touches a disk.

Sites differ in how long an update takes them. The loop below does what the aggregator and the workers do; buffer,
quota, staleness, example weights, norm bound, merge and released average are the product's own functions.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from aggregator.domain.state import UpdateRow, UpdateState
from aggregator.rules import planning
from aggregator.strategy.base import Scalars, Scratch, Span, Strategy, ema_decay, ema_release
from aggregator.strategy.buffer import BufferPolicy, Choice, Waiting, choose, next_deadline, outdated
from aggregator.strategy.weighting import SiteStatistics


class Task(Protocol):
    """Something to learn; a model is one flat float32 vector."""

    examples: Sequence[int]

    def initial(self) -> Span:
        """Return the version-0 model."""
        ...

    def train(self, site: int, model: Span) -> Span:
        """Return the model after one update's worth of local training; `model` is left alone."""
        ...

    def evaluate(self, model: Span) -> dict[str, float]:
        """Return the metrics on held-out data."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """One site finishes nothing from `start` to `end`, though it is alive (its processor is taken)."""

    site: int
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The released (or raw) model of one version, measured when it came out."""

    time: float
    version: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What one simulated run did."""

    points: list[Point]
    merged: int
    superseded: int
    too_stale: int
    staleness: float

    def first_time(self, metric: str, value: float) -> float | None:
        """Return the time at which the metric first reached `value`."""
        return next((point.time for point in self.points if point.metrics[metric] >= value), None)


@dataclass(slots=True)
class _Site:
    base: int = 0
    sent_from: int = -1
    sent: int = 0
    model: Span | None = None
    idle: bool = True


@dataclass(slots=True)
class Federation:
    """One run; call `run` once.

    Args:
        seconds: virtual time units one update takes each site.
        release: decay of the released model; 0 measures the raw one.
        stop_at: stop as soon as this metric has reached this value.
    """

    task: Task
    strategy: Strategy
    seconds: Sequence[float]
    horizon: float
    release: float = 0.8
    silence: Silence | None = None
    stop_at: tuple[str, float] | None = None
    version: int = 0
    now: float = 0.0
    raw: Span = field(init=False)
    released: Span = field(init=False)
    points: list[Point] = field(default_factory=list)
    _state: list[Span] = field(init=False)
    _sites: list[_Site] = field(init=False)
    _waiting: dict[bytes, tuple[Waiting, Span]] = field(default_factory=dict)
    _site_statistics: SiteStatistics = field(default_factory=SiteStatistics)
    _ages: list[int] = field(default_factory=list)
    _lost: dict[str, int] = field(default_factory=lambda: {"superseded": 0, "too_stale": 0})
    _events: list[tuple[float, int, int | None]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)
    _scratch: Scratch = field(default_factory=Scratch)

    def run(self) -> History:
        """Simulate until the horizon or `stop_at`."""
        self.raw = self.task.initial()
        self.released = self.raw.copy()
        self._state = [np.zeros_like(self.raw) for _ in self.strategy.state]
        self._sites = [_Site() for _ in self.seconds]
        self._start_idle()
        while self._events:
            time, _, site = heapq.heappop(self._events)
            if time > self.horizon or self._reached():
                break
            self.now = time
            if site is not None:
                self._arrive(site)
            self._advance()
            self._start_idle()
        return History(
            points=self.points,
            merged=len(self._ages),
            superseded=self._lost["superseded"],
            too_stale=self._lost["too_stale"],
            staleness=statistics.fmean(self._ages) if self._ages else 0.0,
        )

    def _reached(self) -> bool:
        if self.stop_at is None or not self.points:
            return False
        return self.points[-1].metrics[self.stop_at[0]] >= self.stop_at[1]

    def _start_idle(self) -> None:
        """Start every idle site that may train: a version new to it, or its quota from this one not used up."""
        for index, site in enumerate(self._sites):
            if not site.idle or (site.sent_from == self.version and site.sent >= self.strategy.updates_per_base):
                continue
            site.base, site.model, site.idle = self.version, self.raw, False
            heapq.heappush(self._events, (self._done_at(index), next(self._count), index))

    def _done_at(self, index: int) -> float:
        done = self.now + self.seconds[index]
        silence = self.silence
        if silence is not None and index == silence.site and self.now < silence.end and done > silence.start:
            done += silence.end - max(self.now, silence.start)
        return done

    def _arrive(self, index: int) -> None:
        site = self._sites[index]
        if site.model is None:
            return
        delta = self.task.train(index, site.model) - site.model
        order = next(self._count)
        key = order.to_bytes(8, "big")
        update = Waiting(id=key, site=str(index), base_version=site.base, order=order, since=self.now)
        self._waiting[key] = (update, delta)
        if site.sent_from != site.base:
            site.sent_from, site.sent = site.base, 0
        site.sent += 1
        site.idle = True

    def _advance(self) -> None:
        sites, strategy = len(self._sites), self.strategy
        policy = BufferPolicy(
            size=strategy.buffer_size(sites),
            quota=strategy.updates_per_base,
            min_sites=sites if strategy.synchronous else 1,
            synchronous=strategy.synchronous,
            max_wait=2 * statistics.median(self.seconds),
            grace=0.0,
            max_staleness=strategy.max_staleness(sites),
        )
        gone = outdated(self._updates(), policy, version=self.version)
        for reason, lost in (("superseded", gone.superseded), ("too_stale", gone.too_stale)):
            self._lost[reason] += len(lost)
            for update in lost:
                del self._waiting[update.id]
        updates, live = self._updates(), frozenset(str(index) for index in range(sites))
        choice = choose(updates, policy, version=self.version, live=live, now=self.now)
        if choice is not None:
            self._merge(choice)
            return
        deadline = next_deadline(updates, policy, version=self.version, live=live)
        if deadline is not None:
            heapq.heappush(self._events, (deadline, next(self._count), None))

    def _updates(self) -> list[Waiting]:
        return [update for update, _ in self._waiting.values()]

    def _merge(self, choice: Choice) -> None:
        deltas = [self._waiting.pop(member.id)[1] for member in choice.members]
        rows = [self._row(member, delta) for member, delta in zip(choice.members, deltas, strict=True)]
        everyone = [str(index) for index in range(len(self._sites))]
        members = planning.members(rows, self.version, self.strategy, self._site_statistics, everyone)
        self._site_statistics.merged(members)
        self._ages.extend(member.staleness for member in members)
        weights = tuple(member.weight for member in members)
        step = Scalars(weights=weights, divisor=float(choice.divisor), rate=self.strategy.rate)
        new, state = np.empty_like(self.raw), [np.empty_like(stream) for stream in self._state]
        self.strategy.merge(self.raw, deltas, step, self._state, new, state, self._scratch)
        self.raw, self._state, self.version = new, state, self.version + 1
        ema_release(self.released, new, ema_decay(self.version, self.release), self.released, self._scratch)
        self.points.append(Point(time=self.now, version=self.version, metrics=self.task.evaluate(self.released)))

    def _row(self, update: Waiting, delta: Span) -> UpdateRow:
        """Return the update as the journal would hold it."""
        site = int(update.site)
        return UpdateRow(
            run="run",
            order=update.order,
            id=update.id,
            site=update.site,
            epoch=0,
            sequence=update.order,
            base_version=update.base_version,
            state=UpdateState.VALIDATED,
            examples=self.task.examples[site],
            seconds=self.seconds[site],
            absent=(),
            norm=float(np.linalg.norm(delta.astype(np.float64))),
        )
