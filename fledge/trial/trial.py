"""`fledge try`: one's own trainer in a federation on this machine, compared with what it would be without one."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.text import Text

from aggregator.config import RunConfig, StopConfig, StrategyConfig
from aggregator.strategy.strategies import strategy
from broker.net.redact import redacted
from fledge.process.foreground import interruptible, logging_to, open_screen, place_for
from fledge.process.terminal import clean
from fledge.runs.init_run import load_genesis
from fledge.trial import report as reports
from fledge.trial.compare import Records, measure, train_for
from fledge.trial.division import Terms
from fledge.trial.federation import RUN, Federation
from fledge.trial.options import BUNDLE_TRAINER, MMAR_TRAINER, TrialOptions
from fledge.trial.project import offered_by_project
from fledge.trial.roster import Roster, RosterSetup, assemble
from fledge.trial.samples import PREFIX, sample
from fledge.trial.source import Source, told
from fledge.trial.view import TrialWatch
from protocol.errors import ConfigError
from protocol.spec import ModelSpec

LOG = "try.log"
REPORT = "report.json"
_MEMORY = Path("/dev/shm")
_SMALL = 64 * 1024**2
"""Bytes of journals."""
_MOST_IN_MEMORY = 256 * 1024**2
"""Bytes; what lies in memory may count against a container's limit."""
_SMALL_MODEL = 1_000_000
"""Values; from here on threads are worth it."""


@dataclass(slots=True)
class _Compared:
    """What the federation is compared with, as far as that went."""

    alone: dict[str, Mapping[str, float]] = field(default_factory=dict)
    pooled: Mapping[str, float] | None = None
    notes: list[str] = field(default_factory=list)


def run_trial(options: TrialOptions) -> bool:
    """Try it, on the screen; returns whether it came to its end.

    Raises:
        ConfigError: something is missing or wrong in what was asked for, or in the trainer's factory.
        TrainingError: a training failed.
    """
    with interruptible():
        return tried(options, open_screen()).complete


def tried(options: TrialOptions, console: Console) -> reports.TrialReport:
    """Train, compare and report; what is shown is also returned."""
    began = time.monotonic()
    reports.check_place(options.report)
    with ExitStack() as stack:
        place = stack.enter_context(place_for(options.out, "fledge-try-"))
        stack.enter_context(logging_to(place / LOG))
        stack.enter_context(offered_by_project(Path.cwd(), place))
        settings = _settings(options)
        source, given = _source(options)
        data = _data(options, place)
        count = len(data) if len(data) > 1 else options.sites
        terms = Terms(sites=count, seed=options.seed, alpha=options.alpha, held_out=options.held_out)
        where = place / "data"
        roster = assemble(RosterSetup(source=source, options=given, data=data, terms=terms, place=where))
        settings = _for_sites(settings, len(roster.sites))
        key = str(getattr(roster.measuring[0], "key_metric", ""))
        ground = stack.enter_context(_ground(place, options.out, _needed(roster, settings)))
        rows = [(site.name, site.examples, len(site.classes)) for site in roster.sites]
        watch = TrialWatch(console, rows, options.last, key)
        federation = Federation(ground, source, roster, settings, options.seed, watch)
        stack.enter_context(_one_thread(roster.values))
        federation.prepare()
        _introduce(console, source, roster, settings)
        genesis = load_genesis(ground / RUN)

        def measured(records: Records) -> Mapping[str, float]:
            return measure(roster.measuring, genesis.spec, records)

        compared = _Compared()
        with watch:
            complete = _until_stopped(lambda: federation.train(measured))
            if site := federation.course.settled:
                compared.notes.append(f"It ended early: training at {site} changed nothing any more.")
            if complete and options.compare:
                start = _Start(genesis.spec, genesis.payload, federation.course.steps, options.seed)
                _compare(roster, start, measured, watch, compared, source)
        if not federation.course.points:
            raise KeyboardInterrupt
        made = _report(options, source, roster, federation, compared)
        made = replace(made, complete=complete, seconds=time.monotonic() - began)
        _deliver(made, options, console)
    return made


def _until_stopped(work: Callable[[], object]) -> bool:
    try:
        work()
    except KeyboardInterrupt:
        return False
    return True


# ---- what is asked for


def _source(options: TrialOptions) -> tuple[Source, dict[str, object]]:
    """The factory, and its options."""
    if options.bundle is None:
        return Source.find(options.factory), dict(options.options)
    from worker.mmar.read import is_mmar

    if not options.bundle.is_dir():
        raise ConfigError(f"--bundle {options.bundle}: there is no such folder")
    name, root = (MMAR_TRAINER, "mmar_root") if is_mmar(options.bundle) else (BUNDLE_TRAINER, "bundle_root")
    found = replace(Source.find(name), shown=str(options.bundle), title=options.bundle.resolve().name)
    return found, {root: str(options.bundle.absolute()), **options.options}


def _data(options: TrialOptions, place: Path) -> dict[str, str]:
    if len(options.data) == 1 and options.data[0].startswith(PREFIX):
        return {"sample": str(sample(options.data[0].removeprefix(PREFIX), place))}
    if options.data or options.bundle is None:
        return options.places()
    from worker.monai.configs import Configs

    parser = Configs(options.bundle, overrides={}).train({}, "")
    found = Path(str(parser.get_parsed_content("dataset_dir")))
    if not found.is_dir():
        raise ConfigError(f"the bundle's dataset_dir, {found}, is not here; name the data by --data DIR")
    return {"dataset": str(found.absolute())}


def _settings(options: TrialOptions) -> RunConfig:
    strategy(options.strategy)  # before anything is loaded
    return RunConfig(
        name=RUN,
        strategy=StrategyConfig(name=options.strategy),
        evaluate=False,  # every version is measured in one place, on what no site trains on
        stop=StopConfig(max_versions=options.last),
    )


def _for_sites(settings: RunConfig, sites: int) -> RunConfig:
    """A synchronous version takes an update of every site, and is shown as it is."""
    if not strategy(settings.strategy.name).synchronous:
        return settings
    return settings.model_copy(update={"min_sites": sites, "release_decay": 0.0})


def _needed(roster: Roster, settings: RunConfig) -> int:
    """Bytes; everything is kept until the end, as in a federation: each version, its average, and every update."""
    versions = settings.stop.max_versions or 1
    return roster.spec.model_length * (2 * (versions + 1) + versions * len(roster.sites))


@contextmanager
def _ground(place: Path, out: Path | None, needed: int) -> Iterator[Path]:
    """Where the federation lives: what nobody keeps in memory, if that is easily enough, and else in `place`.

    Raises:
        ConfigError: there is not enough room.
    """
    free = shutil.disk_usage(place).free
    # Where every step is made durable, a disk would cost most of a small trial's time.
    if out is None and needed <= _MOST_IN_MEMORY and _has_room(_MEMORY, 8 * (needed + _SMALL)):
        with tempfile.TemporaryDirectory(prefix="fledge-try-", dir=_MEMORY, ignore_cleanup_errors=True) as fast:
            yield Path(fast)
        return
    if needed > free:
        raise ConfigError(
            f"the versions and updates of this trial take {needed / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB "
            "free; take fewer --versions, or name a larger disk by --out DIRECTORY (or TMPDIR)"
        )
    yield place


def _has_room(folder: Path, needed: int) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK) and needed < shutil.disk_usage(folder).free


@contextmanager
def _one_thread(values: int) -> Iterator[None]:
    """Let torch share no small model's work among threads: they would wait for each other longer than they work."""
    if values > _SMALL_MODEL or "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- the comparison


@dataclass(frozen=True, slots=True)
class _Start:
    """What every model begins with, and how long it trains."""

    spec: ModelSpec
    records: Records
    steps: Mapping[str, int]
    """What each site took in the federation, and takes alone; pooled data get all of them."""
    seed: int


def _compare(
    roster: Roster,
    start: _Start,
    measured: Callable[[Records], Mapping[str, float]],
    watch: TrialWatch,
    compared: _Compared,
    source: Source,
) -> None:
    """Train each site alone, and all data pooled; what fails, or is cut short by Ctrl-C, costs nothing else."""
    if roster.pooled is None:
        compared.notes.append("Not compared with all data pooled: this trainer cannot put the sites' data together.")
    everybody = [(site.name, site.trainer) for site in roster.sites]
    everybody += [("", roster.pooled)] if roster.pooled is not None else []
    for name, trainer in everybody:
        what = f"{name} alone" if name else "all data pooled"
        try:
            model = train_for(
                trainer,
                start.spec,
                start.records,
                start.steps.get(name, 0) if name else sum(start.steps.values()),
                seed=start.seed,
                on_progress=partial(watch.doing, what),
            )
            found = measured(partial(iter, model))
        except KeyboardInterrupt:
            compared.notes.append("The comparison was cut short.")
            return
        except (Exception, SystemExit) as error:
            compared.notes.append(f"Not compared with {what}: {told(error, source.shown)}")
            continue
        if name:
            compared.alone[name] = found
        else:
            compared.pooled = found


# ---- what is said


def _introduce(console: Console, source: Source, roster: Roster, settings: RunConfig) -> None:
    how = (
        "each version takes an update of every site" if settings.release_decay == 0 else "nobody waits for the slowest"
    )
    console.print(
        Text.assemble(
            (clean(source.title), "bold"),
            f" at {len(roster.sites)} sites, {roster.values:,} values in the model; "
            f"strategy {settings.strategy.name}: {how}.\nMeasured on {roster.held_out}.",
        ),
        soft_wrap=True,
    )


def _report(
    options: TrialOptions, source: Source, roster: Roster, federation: Federation, compared: _Compared
) -> reports.TrialReport:
    course, first = federation.course, roster.measuring[0]
    goal = reports.Goal.of(str(getattr(first, "key_metric", "")), course.points[0].metrics)
    sites = [
        reports.SiteReport(
            name=site.name,
            examples=course.examples.get(site.name, site.examples),
            classes=site.classes,
            updates=course.updates.get(site.name, 0),
            steps=course.steps.get(site.name, 0),
            loss=course.losses.get(site.name),
            alone=compared.alone.get(site.name),
        )
        for site in roster.sites
    ]
    return reports.TrialReport(
        trainer=source.title,
        command=redacted(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        fledge=_version(),
        strategy=options.strategy,
        seed=options.seed,
        parameters=roster.values,
        held_out=roster.held_out,
        key_metric=goal.name,
        more_is_better=goal.more_is_better,
        versions=tuple(course.points),
        sites=sites,
        steps=sum(course.steps.values()),
        training_seconds=course.seconds,
        seconds=0.0,
        complete=True,
        pooled=compared.pooled,
        notes=tuple(compared.notes),
    )


def _deliver(made: reports.TrialReport, options: TrialOptions, console: Console) -> None:
    reports.show(made, console)
    if options.report is not None:
        reports.write(made, options.report)
        console.print(f"{options.report}: the report", soft_wrap=True)
    if options.out is not None:
        reports.write(made, options.out / REPORT)
        kit = options.out / "federation"
        told = f"fledge export {RUN} -o model.safetensors --kit {kit}"
        console.print(f"To take the model with you: {told}", soft_wrap=True)


def _version() -> str:
    try:
        return version("fledge-fl")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
