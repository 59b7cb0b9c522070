"""One training of the demo: a federation founded in a directory, served by the product's own classes, and watched."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aggregator.config import RunConfig
from aggregator.service.service import AggregatorService
from fledge.bootstrap import AggregatorState, open_aggregator, open_kept, open_worker, read_centre
from fledge.demo import task
from fledge.demo.processes import WorkerProcesses
from fledge.federation import AGGREGATOR_TOML, WORKER_TOML, new_federation
from fledge.history import released_records
from fledge.runs.init_run import init_run
from protocol.errors import FledgeError, TrainingError
from worker.service.status import WorkerEvent

RUN = "digits"
TRAINER = "fledge.demo.task:trainer"
_NOTHING_FOR_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who takes part, how fast each is, and over which servers."""

    seed: int
    seconds: Mapping[str, float]
    """What one update takes at each hospital."""
    broker: str = ""
    store: str = ""
    processes: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """How the released model of one version did on the images no hospital trains on."""

    seconds: float
    version: int
    accuracy: float


class StageView(Protocol):
    """Who is told what happens; called from several threads."""

    def site(self, name: str, state: str, progress: float) -> None:
        """A hospital's state changed."""

    def merged(self, version: int, sites: list[str], staleness: list[int]) -> None:
        """A version was made of these updates."""

    def measured(self, point: Point) -> None:
        """A released model was measured."""


@dataclass(slots=True)
class Course:
    """What happened in one training; belongs to the stage's lock while it runs."""

    points: list[Point] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    """Of every update that was merged."""
    rejected: int = 0
    superseded: int = 0

    @property
    def accepted(self) -> int:
        """Updates merged."""
        return len(self.staleness)

    def reached(self, goal: float) -> float | None:
        """Seconds until the released model first did as well as `goal`."""
        return next((point.seconds for point in self.points if point.accuracy >= goal), None)


@dataclass(frozen=True, slots=True)
class Until:
    """When a training ends."""

    done: Callable[[Course, float], bool]
    """Asked after every measurement, with the seconds so far."""
    limit: float
    """Seconds after which it ends in any case."""


class Stage:
    """A federation in a directory of its own, from founding to stopping."""

    def __init__(self, directory: Path, cast: Cast, settings: RunConfig, view: StageView, until: Until) -> None:
        self.directory = directory
        self.course = Course()
        self._cast = cast
        self._settings = settings
        self._view = view
        self._until = until
        self._changed = threading.Condition()
        self._newest = 0
        self._over = False
        self._began = 0.0
        self._error: str | None = None

    def prepare(self) -> None:
        """Found the federation and make version 0, as `fledge new-federation` and `fledge init-run` do."""
        cast, sites = self._cast, list(self._cast.seconds)
        common = {"seed": cast.seed, "hospitals": len(sites)}
        new_federation(
            self.directory / "federation",
            name=f"demo-{self._settings.strategy.name}",
            sites=sites,
            broker=cast.broker or f"memory:{secrets.token_hex(8)}",
            store=cast.store or (self.directory / "store").absolute().as_uri(),
            trainer=TRAINER,
            options={
                site: {**common, "hospital": index, "seconds": cast.seconds[site]} for index, site in enumerate(sites)
            },
        )
        init_run(TRAINER, self.directory / "run", name=RUN, options=common, settings=self._settings)

    def run(self) -> Course:
        """Train until it is done.

        Raises:
            FledgeError: the aggregator or a worker ended, or no version came for a minute.
        """
        config = self.directory / "federation" / AGGREGATOR_TOML
        with ExitStack() as stack:
            service = stack.enter_context(open_aggregator(config, self.directory / "run", observer=self._on_aggregator))
            kept = stack.enter_context(open_kept(read_centre(config), RUN))
            stack.enter_context(self._hospitals())
            watcher = threading.Thread(target=self._watch, args=(kept,), name="watcher", daemon=True)
            self._began = time.monotonic()
            service.start()
            watcher.start()
            ended = threading.Thread(target=self._await_end, args=(service,), name="demo end", daemon=True)
            ended.start()
            watcher.join()
            service.stop()
            service.join()
        if self._error is not None:
            raise TrainingError(self._error)
        return self.course

    def _await_end(self, service: AggregatorService) -> None:
        """The aggregator ended by itself: nothing more will come."""
        service.ended.wait()
        self._finish()

    def _finish(self, error: str | None = None) -> None:
        with self._changed:
            self._over = True
            self._error = self._error or error
            self._changed.notify_all()

    # ---- hospitals

    @contextmanager
    def _hospitals(self) -> Iterator[None]:
        """Every hospital's worker, as threads here or as a process each, listening before anything is announced."""
        kits = {site: self.directory / "federation" / "sites" / site / WORKER_TOML for site in self._cast.seconds}
        with ExitStack() as stack:
            if self._cast.processes:
                processes = WorkerProcesses(kits, lambda site: self._finish(f"the process of {site} ended by itself"))
                stack.callback(processes.stop)
                processes.wait_until_started()
            else:
                for kit in kits.values():
                    stack.enter_context(open_worker(kit, on_event=self._on_worker)).start()
            yield

    def _on_worker(self, event: WorkerEvent) -> None:
        self._view.site(event.site, event.state, event.progress)

    # ---- watching

    def _on_aggregator(self, event: str, fields: Mapping[str, object]) -> None:
        match event, fields:
            case "version", {"version": int(version), "sites": list(sites), "staleness": list(staleness)}:
                self._view.merged(version, sites, staleness)
                with self._changed:
                    self.course.staleness += staleness
                    self._newest = version
                    self._changed.notify_all()
            case "update", {"state": state}:
                self.course.rejected += state == "rejected"
                self.course.superseded += state == "superseded"
            case "site", {"site": str(site), "state": str(state), "progress": float(progress)} if self._cast.processes:
                self._view.site(site, state, progress)

    def _watch(self, kept: AggregatorState) -> None:
        """Measure the newest released model whenever there is a new one; versions may be skipped."""
        held_out = task.digits(self._cast.seed, len(self._cast.seconds)).held_out
        measured = 0
        try:
            while (version := self._next_version(measured)) is not None:
                weights = task.from_records(released_records(kept, version))
                seconds = time.monotonic() - self._began
                point = Point(seconds, version, task.accuracy(weights, held_out))
                measured = version
                self.course.points.append(point)
                self._view.measured(point)
                if self._until.done(self.course, seconds):
                    return
        except FledgeError as error:
            self._finish(f"the training could not be watched: {error}")

    def _next_version(self, measured: int) -> int | None:
        left = self._until.limit - (time.monotonic() - self._began)
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._newest > measured, min(left, _NOTHING_FOR_S))
            if self._over or left <= 0:
                return None
            if self._newest > measured:
                return self._newest
        if left > _NOTHING_FOR_S:
            self._finish(
                f"no new version for {_NOTHING_FOR_S:.0f} s; run it again with --out DIRECTORY and read demo.log there"
            )
        return None
