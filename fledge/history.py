"""Commands that look back: replay, audit and export, beside a running aggregator or after it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from aggregator.audit import ledger_file
from aggregator.audit.export import write_file
from aggregator.audit.replay import Replay, WhatIf, audit, read_version
from aggregator.audit.retention import References, collect_garbage
from aggregator.config import RunConfig
from aggregator.service.service import DATABASE
from aggregator.strategy.evaluations import best_version, why
from aggregator.strategy.strategies import strategy as strategy_named
from broker.blobs.garbage import Collected
from fledge.bootstrap import AggregatorState, open_kept, read_centre
from fledge.runs.init_run import RUN_TOML, load_run
from protocol.errors import ConfigError, StateError
from protocol.keys import Role


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One line of a report, and whether it is good news."""

    text: str
    good: bool = True


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    version: int
    size: int
    chosen: str = ""
    """Why this version, where none was named by its number."""


def run_name(run: str) -> str:
    """The name of a run given by name or by its directory."""
    directory = Path(run)
    return load_run(directory).name if (directory / RUN_TOML).is_file() else run


def replay_run(
    config: Path, run: str, *, upto: int | None = None, without: Collection[str] = (), strategy: str | None = None
) -> Iterator[ReportLine]:
    """Rebuild versions one after another and say of each whether its bytes are the journal's.

    A replay that changes something (`without`, `strategy`) is expected to differ.

    Raises:
        ConfigError: a site or strategy is unknown.
        StateError: there is no such run or version.
        StoreError: an update is gone from the store.
    """
    centre, name = read_centre(config), run_name(run)
    changed = bool(without) or strategy is not None
    with open_kept(centre, name) as kept:
        count = differing = 0
        for version in _replay(kept).versions(upto, _what_if(kept, without, strategy)):
            count += 1
            differing += not version.same
            verdict = "same bytes" if version.same else "differs"
            good = version.same or changed
            yield ReportLine(f"version {version.version}: {verdict}  {version.digest.hex()}", good)
    word = "differ, as asked" if changed else "differ from the journal"
    yield ReportLine(f"{count} versions rebuilt, " + (f"{differing} {word}" if differing else "all the same bytes"))


def audit_run(config: Path, run: str) -> Iterator[ReportLine]:
    """Check the ledger's chain and compute every stored weight again from journal values."""
    with open_kept(read_centre(config), run_name(run)) as kept:
        findings = audit(kept.history, kept.records.run, kept.strategies)
        yield from (ReportLine(finding, False) for finding in findings)
        if not findings:
            yield ReportLine(f"{kept.run.newest()} versions: the ledger and every weight add up")


def export_ledger(config: Path, out: Path) -> int:
    """Write the whole ledger to a new file, signed by this aggregator; returns the number of entries.

    Raises:
        StateError: the aggregator has never been started here, or the file exists already.
    """
    centre = read_centre(config)
    count = 0
    with open_kept(centre) as kept:

        def counted() -> Iterator[bytes]:
            nonlocal count
            rows = kept.history.ledger()
            for line in ledger_file.lines(rows, centre.identity, centre.config.federation, time.time()):
                count += 1
                yield line.encode() + b"\n"

        write_file(out, counted())
    return count - 1  # the last line is the signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Otherwise:
    """How a version would have been made, had the run been another; as it is, unless one of the two is given."""

    without: Collection[str] = ()
    """Sites that are left out."""
    strategy: str | None = None
    """The strategy's name, instead of the run's."""


def export_run(
    config: Path,
    run: str,
    out: Path,
    *,
    version: int | str | None = None,
    released: bool = True,
    otherwise: Otherwise = Otherwise(),
) -> Exported:
    """Write a version as a file that the safetensors library opens.

    Args:
        version: a number, "newest" or "best"; by default the best, and the newest as long as no site has measured one
            or if it is to be different.
        released: the average over versions where the run keeps one, not the raw version.
        otherwise: what is to be different; the version is rebuilt first.

    Raises:
        StateError: there is no such run or version, or the file exists already.
    """
    with open_kept(read_centre(config), run_name(run)) as kept:
        if otherwise == Otherwise():
            number, chosen = _meant(kept, version)
            model = released_records(kept, number, released=released)
        else:
            number, chosen = _meant(kept, version or "newest")
            changed = _what_if(kept, otherwise.without, otherwise.strategy)
            model = _replay(kept).model(number, changed, released=released)
        return Exported(number, write_file(out, model), chosen)


def _meant(kept: AggregatorState, version: int | str | None) -> tuple[int, str]:
    """The version that a person means, and why where it was not named by its number."""
    if isinstance(version, int):
        return version, ""
    if version == "newest":
        return kept.run.newest(), "the newest"
    stopping = RunConfig.model_validate_json(kept.run.record().config).stop.rules()
    evaluations = kept.run.evaluations()
    best = best_version(stopping, evaluations)
    if best is None and version == "best":
        raise StateError("no version is known to be the best: no site has measured one; name a version")
    return kept.run.newest() if best is None else best.version, why(stopping, evaluations, best)


def released_records(kept: AggregatorState, version: int, *, released: bool = True) -> Iterator[memoryview]:
    """The plaintext records of a version's model, in order."""
    record, states = kept.run.version_record(version), kept.run.state_records(version)
    return read_version(kept.records, kept.registry, record, states, released=released)


def _replay(kept: AggregatorState) -> Replay:
    records = kept.records
    return Replay(
        federation=records.federation,
        run=records.run,
        identity=records.identity,
        registry=kept.registry,
        history=kept.history,
        store=records.store,
        strategies=kept.strategies,
    )


def _what_if(kept: AggregatorState, without: Collection[str], strategy: str | None) -> WhatIf:
    known = {entry.name for entry in kept.registry.entries if entry.role == Role.SITE}
    if strangers := sorted(set(without) - known):
        raise ConfigError(f"no site is called {', '.join(strangers)}; there are {', '.join(sorted(known))}")
    return WhatIf(without=tuple(without), strategy=None if strategy is None else strategy_named(strategy))


def collect(config: Path, *, older_than_days: float = 14.0) -> Collected:
    """Delete what no run of this aggregator refers to any more; all its runs are asked.

    Raises:
        StateError: there is no run here, so that nothing could be told from garbage.
        StoreError: the store is away; what was deleted until then stays deleted.
    """
    centre = read_centre(config)
    nothing = StateError(f"{centre.state} holds no run; nothing is deleted where nothing says what is needed")
    if not (centre.state / DATABASE).exists():
        raise nothing
    with open_kept(centre) as kept:
        if not kept.history.names():
            raise nothing
        needed = References(kept.history, centre.config.federation, kept.registry, centre.identity.public).keys()
        return collect_garbage(kept.records.store, needed, kept.registry, older_than_days=older_than_days)
