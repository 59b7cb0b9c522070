"""`fledge demo`: hospitals train one model together, first asynchronously, then synchronously on the same machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from aggregator.config import RunConfig, StopConfig, StrategyConfig
from fledge.demo import task
from fledge.demo.stage import RUN, Cast, Course, Stage, Until
from fledge.demo.view import Watch
from fledge.federation import AGGREGATOR_TOML
from fledge.history import export_run
from fledge.process.foreground import interruptible, logging_to, open_screen, place_for
from protocol.errors import ConfigError, TrainingError

GOAL = 0.95
FASTEST_S, QUICK_S = 0.5, 0.15
SLOWEST = 5.0
"""How many times longer the slowest hospital takes than the fastest."""
LENGTH = 65
"""The asynchronous training goes on for this many updates of the fastest hospital, so that one sees where it ends."""
PATIENCE = 300
"""After this many updates of the fastest hospital without reaching the goal, something is wrong."""
SYNCHRONOUS_LIMIT = 4.0
"""The synchronous training gets this many times the asynchronous one's time to the goal."""
MODEL = "fledge-demo.safetensors"
ASYNCHRONOUS = "asynchronous"
LOG = "demo.log"
ENDLESS = StopConfig(max_versions=0)
"""The demo looks at its trainings from outside, and ends them when it has seen enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    quick: bool = False
    broker: str = ""
    store: str = ""
    processes: bool = False
    seed: int = 42
    sites: int = 8
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """What came of the demo; accuracies on the images no hospital trained on."""

    alone: dict[str, float]
    """Each hospital by itself, with as many steps as went into the federated model."""
    federated: float
    pooled: float
    """All data in one place, the same number of steps."""
    asynchronous_s: float
    synchronous_s: float | None
    """Seconds to the goal; None: not within the limit."""
    steps: int
    course: Course
    model: Path
    tensors: int
    """As read back by the safetensors library."""

    @property
    def good(self) -> bool:
        """Whether the federated model beats every single hospital."""
        return self.federated > max(self.alone.values())


def run_demo(options: Options) -> bool:
    """Run the demo on the screen; returns whether it showed what it promises.

    Raises:
        ConfigError: the options do not go together.
        FledgeError: the training failed.
    """
    with interruptible():
        return demonstrate(options, open_screen(markup=True)).good


def demonstrate(options: Options, console: Console) -> DemoSummary:
    """Train twice, compare, export; what is shown is also returned."""
    if bool(options.broker) != bool(options.store) or (options.processes and not options.broker):
        raise ConfigError("real servers come in pairs: give --broker and --store; --processes needs both")
    cast = _cast(options)
    with place_for(options.out, "fledge-demo-") as directory, logging_to(directory / LOG):
        _introduce(cast, console)
        course, reached = _asynchronous(directory, cast, console)
        synchronous_s = _synchronous(directory, cast, console, reached)
        model = directory / MODEL if options.out else Path(MODEL)
        if not options.out:
            model.unlink(missing_ok=True)
        export_run(directory / ASYNCHRONOUS / "federation" / AGGREGATOR_TOML, RUN, model, version="newest")
        summary = _compare(cast, course, reached, synchronous_s, model)
    _show(summary, console)
    if options.out is not None:
        _what_next(options.out, console)
    return summary


def _cast(options: Options) -> Cast:
    """Hospitals and what an update takes at each: evenly spread from the fastest to five times that, shuffled."""
    fastest = QUICK_S if options.quick else FASTEST_S
    speeds = np.random.default_rng(options.seed).permutation(np.linspace(1.0, SLOWEST, options.sites))
    width = len(str(options.sites))
    return Cast(
        seed=options.seed,
        seconds={f"hospital-{i + 1:0{width}}": fastest * float(speed) for i, speed in enumerate(speeds)},
        broker=options.broker,
        store=options.store,
        processes=options.processes,
    )


# ---- the two trainings


def _asynchronous(directory: Path, cast: Cast, console: Console) -> tuple[Course, float]:
    """Train with the default strategy; returns what happened and the seconds to the goal."""
    fastest = min(cast.seconds.values())

    def over(course: Course, seconds: float) -> bool:
        return seconds >= LENGTH * fastest and course.reached(GOAL) is not None

    title = "asynchronous (fedbuff): every hospital trains at its own pace, nobody waits"
    limit = PATIENCE * fastest
    course = _watched(
        directory / ASYNCHRONOUS, cast, RunConfig(name=RUN, stop=ENDLESS), title, console, Until(over, limit)
    )
    reached = course.reached(GOAL)
    if reached is None:
        best = max((point.accuracy for point in course.points), default=0.0)
        raise TrainingError(f"the federated model reached {best:.1%} in {limit:.0f} s, not {GOAL:.0%}")
    return course, reached


def _synchronous(directory: Path, cast: Cast, console: Console, asynchronous_s: float) -> float | None:
    """Train by synchronous FedAvg; returns the seconds to the goal, None if they would be over the limit."""
    limit = SYNCHRONOUS_LIMIT * asynchronous_s

    def over(course: Course, seconds: float) -> bool:
        return course.reached(GOAL) is not None

    chosen = StrategyConfig(name="fedavg")
    settings = RunConfig(name=RUN, strategy=chosen, min_sites=len(cast.seconds), release_decay=0.0, stop=ENDLESS)
    title = f"synchronous (fedavg): every version waits for the slowest hospital; stopped after {limit:.0f} s"
    return _watched(directory / "synchronous", cast, settings, title, console, Until(over, limit)).reached(GOAL)


def _watched(directory: Path, cast: Cast, settings: RunConfig, title: str, console: Console, until: Until) -> Course:
    data = task.digits(cast.seed, len(cast.seconds))
    sizes = [len(own.labels) for own in data.hospitals]
    view = Watch(console, title, GOAL, list(zip(cast.seconds, sizes, cast.seconds.values(), strict=True)))
    stage = Stage(directory, cast, settings, view, until)
    console.print()
    stage.prepare()
    with view:
        return stage.run()


# ---- the comparison


def _compare(
    cast: Cast, course: Course, asynchronous_s: float, synchronous_s: float | None, model: Path
) -> DemoSummary:
    from safetensors.numpy import load_file

    data = task.digits(cast.seed, len(cast.seconds))
    steps = course.accepted * task.STEPS

    def trained_on(images: task.DemoImages) -> float:
        weights = task.initial(cast.seed)
        task.descend(weights, images, steps, np.random.default_rng(cast.seed))
        return task.accuracy(weights, data.held_out)

    tensors = load_file(model)
    return DemoSummary(
        alone={name: trained_on(own) for name, own in zip(cast.seconds, data.hospitals, strict=True)},
        federated=task.accuracy(tensors, data.held_out),
        pooled=trained_on(data.pooled),
        steps=steps,
        asynchronous_s=asynchronous_s,
        synchronous_s=synchronous_s,
        course=course,
        model=model,
        tensors=len(tensors),
    )


# ---- the screen


def _introduce(cast: Cast, console: Console) -> None:
    data = task.digits(cast.seed, len(cast.seconds))
    images = sum(len(own.labels) for own in data.hospitals)
    where = "RabbitMQ and S3" if cast.broker else "memory and a directory"
    how = "a process" if cast.processes else "a thread"
    console.print(
        f"[bold]{len(cast.seconds)} hospitals[/bold] hold {images} images of handwritten digits, unevenly; "
        f"{len(data.held_out.labels)} more are held out to measure.\n"
        f"Messages over {where}, {how} per hospital; every update is signed, encrypted and journalled.\n"
        f"The fastest hospital needs {min(cast.seconds.values()):.2f} s for an update, "
        f"the slowest {max(cast.seconds.values()):.2f} s."
    )


def _show(summary: DemoSummary, console: Console) -> None:
    table = Table(
        title="Summary", title_style="bold", title_justify="left", show_header=False, box=None, pad_edge=False
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("note", style="dim")
    best = max(summary.alone, key=summary.alone.__getitem__)
    for name, value in summary.alone.items():
        table.add_row(f"{name} alone", f"{value:.1%}", "the best of them" if name == best else "")
    verdict = "beats every hospital alone" if summary.good else f"does NOT beat {best} alone"
    table.add_row("federated", f"[bold]{summary.federated:.1%}[/bold]", verdict)
    table.add_row("all data pooled", f"{summary.pooled:.1%}", f"each with {summary.steps} steps of SGD")
    table.add_section()
    table.add_row(f"asynchronous to {GOAL:.0%}", f"{summary.asynchronous_s:.1f} s", "")
    table.add_row(f"synchronous to {GOAL:.0%}", *_synchronous_cells(summary))
    table.add_section()
    course = summary.course
    dropped = f"{course.rejected} rejected, {course.superseded} superseded"
    table.add_row("updates accepted", str(course.accepted), dropped)
    mean = sum(course.staleness) / max(1, len(course.staleness))
    table.add_row("mean staleness", f"{mean:.1f}", f"versions; at most {max(course.staleness, default=0)}")
    table.add_row("model", f"{summary.tensors} tensors", f"{summary.model}, opened by the safetensors library")
    console.print()
    console.print(table)


def _synchronous_cells(summary: DemoSummary) -> tuple[str, str]:
    if summary.synchronous_s is None:
        return f"> {SYNCHRONOUS_LIMIT * summary.asynchronous_s:.1f} s", f"> {SYNCHRONOUS_LIMIT:.0f}x"
    return f"{summary.synchronous_s:.1f} s", f"{summary.synchronous_s / summary.asynchronous_s:.1f}x"


def _what_next(out: Path, console: Console) -> None:
    config = out / ASYNCHRONOUS / "federation" / AGGREGATOR_TOML
    console.print(
        f"\nTo rebuild every version from the journal and compare: fledge replay {RUN} --config {config}",
        soft_wrap=True,
    )
