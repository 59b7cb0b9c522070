"""The federated part of a trial: the product's own aggregator and workers, over memory and a directory."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from aggregator.config import RunConfig
from aggregator.service.service import AggregatorService
from fledge.bootstrap import AggregatorState, open_aggregator, open_kept, open_worker, read_centre
from fledge.federation import AGGREGATOR_TOML, WORKER_TOML, new_federation
from fledge.history import released_records
from fledge.runs.init_run import write_run
from fledge.trial.roster import Roster
from fledge.trial.scheduler import ScheduledTrainer, Scheduler
from fledge.trial.source import Source, told
from protocol.cipher import Octets
from protocol.errors import ConfigError, FledgeError, StateError, TrainingError
from worker.api.trainer import TrainResult
from worker.service.service import WorkerService
from worker.service.status import WorkerEvent
from worker.storage.incidents import Incidents

RUN = "trial"
_LOOK_S = 0.5
_NOTHING_FOR_S = 60.0
_END_S = 30.0
_FINE = ("-", "aborted")
_UNCHANGED = "unchanged"
"""How a worker calls a training that changed no tensor: a mistake at first, and an end later."""
Measure = Callable[[Callable[[], Iterator[Octets]]], Mapping[str, float]]
"""Takes what opens a model's records."""


@dataclass(frozen=True, slots=True)
class Scored:
    """How one version did."""

    version: int
    seconds: float
    metrics: Mapping[str, float]


class TrialView(Protocol):
    """Who is told what happens; called from several threads."""

    def site(self, name: str, state: str, progress: float, metrics: Mapping[str, float]) -> None:
        """A site's state changed."""

    def merged(self, version: int, sites: list[str]) -> None:
        """A version was made of these sites' updates."""

    def measured(self, point: Scored) -> None:
        """A version was measured."""


@dataclass(slots=True)
class TrialCourse:
    """What happened; belongs to the federation's lock while it trains."""

    points: list[Scored] = field(default_factory=list)
    updates: dict[str, int] = field(default_factory=dict)
    """Merged, by site."""
    steps: dict[str, int] = field(default_factory=dict)
    """Likewise, of the trainings that were merged."""
    losses: dict[str, float] = field(default_factory=dict)
    """The last that each site's training told."""
    examples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    settled: str = ""
    """The site at which training changed nothing any more, after which there was nothing to go on with."""


def _ended(service: AggregatorService | WorkerService) -> None:
    """Wait for a service's end however the trial ended, so that none outlives its files and its log."""
    service.stop()
    with suppress(FledgeError):
        service.join(_END_S)


class Federation:
    """A federation in a directory of its own, from founding to stopping."""

    def __init__(
        self, place: Path, source: Source, roster: Roster, settings: RunConfig, seed: int, view: TrialView
    ) -> None:
        self.course = TrialCourse()
        self._place, self._source, self._roster = place, source, roster
        self._settings, self._seed, self._view = settings, seed, view
        self._sites = [site.name for site in roster.sites]
        self.scheduler = Scheduler(self._sites, in_order=settings.min_sites == len(self._sites))
        self._changed = threading.Condition()
        self._newest = 0
        self._error: str | None = None
        self._steps: dict[tuple[str, int], int] = {}
        self._heard = time.monotonic()

    def prepare(self) -> None:
        """Found the federation and write version 0, as `fledge new-federation` and `fledge init-run` do."""
        new_federation(
            self._place / "federation",
            name=RUN,
            sites=self._sites,
            broker=f"memory:{secrets.token_hex(8)}",
            store=(self._place / "store").absolute().as_uri(),
            trainer=self._source.name,
            options={site.name: site.options for site in self._roster.sites},
        )
        write_run(self._place / RUN, self._settings, self._roster.measuring[0], {})

    def train(self, measure: Measure) -> TrialCourse:
        """Train until the last version, and measure every one.

        Raises:
            TrainingError: a site's training failed, or the aggregator ended.
        """
        config = self._place / "federation" / AGGREGATOR_TOML
        with ExitStack() as stack:
            service = stack.enter_context(open_aggregator(config, self._place / RUN, observer=self._on_aggregator))
            kept = stack.enter_context(open_kept(read_centre(config), RUN))
            stack.callback(_ended, service)
            service.start()
            began = time.monotonic()
            stack.callback(self._took, began)
            # Version 0 before anybody trains: a trainer that measures nothing is told at once.
            self._measure(kept, 0, measure, began)
            for site in self._roster.sites:
                kit = self._place / "federation" / "sites" / site.name / WORKER_TOML
                # Workers name a trainer by its class where something is wrong with it.
                kind: type[ScheduledTrainer] = type(type(site.trainer).__name__, (ScheduledTrainer,), {})
                playing = kind(
                    site.name, site.trainer, self.scheduler, trained=self._on_trained, failed=self._on_failed
                )
                seed = f"{self._seed}/{site.name}".encode()
                opened = open_worker(kit, on_event=self._on_worker, trainer=playing, seed=seed)
                worker = stack.enter_context(opened)
                stack.callback(_ended, worker)
                worker.start()
            stack.callback(self.scheduler.stop)
            last = self._settings.stop.max_versions or 1
            for version in range(1, last + 1):
                if not self._await(version, service):
                    break
                self._measure(kept, version, measure, began)
        return self.course

    def _took(self, began: float) -> None:
        self.course.seconds = time.monotonic() - began

    def _measure(self, kept: AggregatorState, version: int, measure: Measure, began: float) -> None:
        with self.scheduler.measuring():
            try:
                metrics = measure(partial(released_records, kept, version))
            except TrainingError as error:
                what = f"evaluating version {version} failed: {told(error.__cause__ or error, self._source.shown)}"
                raise TrainingError(what) from error
        if self._newest <= version:
            self.scheduler.release()
        point = Scored(version, time.monotonic() - began, metrics)
        self.course.points.append(point)
        self._view.measured(point)

    def _await(self, version: int, service: AggregatorService) -> bool:
        """Whether the version came; no: there is nothing more to learn.

        Raises:
            TrainingError: it will never come.
        """
        with self._changed:
            while self._newest < version:
                if self.course.settled:
                    return False
                if self._error is not None:
                    raise TrainingError(self._error)
                if service.ended.is_set():
                    raise TrainingError("the aggregator ended by itself; keep its log with --out DIRECTORY")
                if not self.scheduler.quiet:
                    self._heard = time.monotonic()
                if time.monotonic() - self._heard > _NOTHING_FOR_S:
                    raise TrainingError(
                        f"nothing happened for {_NOTHING_FOR_S:.0f} s; keep the log with --out DIRECTORY"
                    )
                self._changed.wait(_LOOK_S)
        return True

    # ---- told by the threads of the others

    def _on_aggregator(self, event: str, fields: Mapping[str, object]) -> None:
        match event, fields:
            case "version", {"version": int(version), "sites": list(sites), "staleness": list(staleness)}:
                self.scheduler.hold()
                self._view.merged(version, sites)
                with self._changed:
                    for site, late in zip(sites, staleness, strict=True):
                        steps = self._steps.get((site, version - 1 - late), 0)
                        self.course.updates[site] = self.course.updates.get(site, 0) + 1
                        self.course.steps[site] = self.course.steps.get(site, 0) + steps
                    self._newest, self._heard = version, time.monotonic()
                    self._changed.notify_all()
            case "received", _:
                # Journalled; that it is validated may be told 50 ms later (actor.SOON), sixty times in a trial.
                self.scheduler.arrived()
            case "update", {"state": "rejected", "reason": str(reason)} if not self._is_over:
                self._fail(f"the aggregator refused an update ({reason}); keep its log with --out DIRECTORY")
            case "run", {"state": "paused", "reason": str(reason)}:
                self._fail(f"the run was paused ({reason}); keep the log with --out DIRECTORY to read why")

    @property
    def _is_over(self) -> bool:
        return self._newest >= (self._settings.stop.max_versions or 1)

    def _on_trained(self, site: str, version: int, result: TrainResult) -> None:
        with self._changed:
            self._steps[(site, version)] = result.steps
            self.course.examples[site] = result.examples
            if (loss := result.metrics.get("loss")) is not None:
                self.course.losses[site] = loss

    def _on_failed(self, site: str, error: BaseException) -> None:
        self._fail(f"training at {site} failed: {told(error, self._source.shown)}")

    def _on_worker(self, event: WorkerEvent) -> None:
        self._view.site(event.site, event.state, event.progress, event.metrics)
        with self._changed:
            if (loss := event.metrics.get("loss")) is not None:
                self.course.losses[event.site] = loss
        if event.code == _UNCHANGED and self._newest:
            with self._changed:
                self.course.settled = event.site
                self._changed.notify_all()
        elif event.code not in _FINE:
            self._fail(f"training at {event.site} failed ({event.code}): {self._case(event)}")

    def _case(self, event: WorkerEvent) -> str:
        """What a worker found wrong outside the trainer, such as values that are not finite."""
        state = self._place / "federation" / "sites" / event.site / "state"
        try:
            paragraphs = Incidents(state / "cases").text(event.case).split("\n\n")
        except (ConfigError, StateError):
            return "its log says why; keep it with --out DIRECTORY"
        return " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else paragraphs[0]

    def _fail(self, error: str) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
