"""What each stage of a version costs beside the floor that the same machine gives at the same time.

    python -m benchmarks.stages --size-mb 400 [--store s3] [--json out/stages.json]

The product's own stages in one process: `load` a version into a trainer, `form` an update into the spool, `upload` it
from there, `admission`, `merge`. Before each version the library calls they cannot do without are timed alone
(`floor_calls`); `floor` says how often each stage needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from benchmarks.floor import FILTER_HELP, LANES, SAMPLE_HELP, SUITE_HELP, Design, Floor, floor, price_table
from benchmarks.floor_calls import AEGIS256, SUITES, Prices, measure
from benchmarks.stages_federation import Federation, Shape
from benchmarks.stores import STORE_HELP, STORES, store_url
from benchmarks.usage import Usage, forget_peak
from broker.blobs.open import open_blobs
from fledge.process import log

Figures = dict[str, float]
_COLUMNS = {
    "s": ".3f",
    "user s": ".3f",
    "sys s": ".3f",
    "faults": ".0f",
    "waits": ".0f",
    "preempted": ".0f",
    "peak MiB": ".1f",
    "floor s": ".3f",
    "floor CPU s": ".3f",
    "x floor": ".2f",
    "x floor CPU": ".2f",
    "x raw": ".2f",
}


def figures(used: Sequence[Usage], times: int, least: Floor) -> Figures:
    """What a stage used each of so many `times` (of memory: at most), and how that compares with its floor."""
    row = {
        "s": sum(each.wall for each in used) / times,
        "user s": sum(each.user for each in used) / times,
        "sys s": sum(each.sys for each in used) / times,
        "faults": sum(each.faults for each in used) / times,
        "waits": sum(each.voluntary for each in used) / times,
        "preempted": sum(each.involuntary for each in used) / times,
        "peak MiB": max(each.peak for each in used) / 1024,
    }
    if least.cpu:
        row |= {"floor s": least.wall, "floor CPU s": least.cpu}
        row |= {"x floor": row["s"] / least.wall, "x floor CPU": (row["user s"] + row["sys s"]) / least.cpu}
    if least.raw:
        row["x raw"] = row["s"] / least.raw
    return row


def version(found: Mapping[str, list[Usage]], design: Design, prices: Prices, size: int) -> dict[str, Figures]:
    """A row for each stage, and one for a version as a whole: its stages one after the other."""
    sites = len(found["form"])
    passes = {"load": design.load(), "form": design.form(), "upload": design.upload(), "admission": design.admission()}
    passes["merge"] = design.merge(sites)
    rows = {
        stage: figures(found[stage], len(found[stage]), floor(each, prices, size)) for stage, each in passes.items()
    }
    every = [one for used in found.values() for one in used]
    return {**rows, "version": figures(every, 1, floor(design.version(sites), prices, size))}


def run(options: argparse.Namespace) -> tuple[dict[str, Figures], Prices]:
    """Medians over the rounds, each a version; ratios are taken within a round, where other work weighs on both sides.

    A version before the first round brings files and memory into the state of a running federation.
    """
    design = Design(suite=SUITES[options.suite], remote=options.store != "file", measuring=options.filter == "clip")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fledge-stages-")))
        url = stack.enter_context(store_url(options.store, work))
        store = stack.enter_context(closing(open_blobs(url)))
        shape = Shape(
            size_mb=options.size_mb,
            sites=options.sites,
            filter=options.filter,
            cipher=options.suite,
            remote=design.remote,
        )
        federation = stack.enter_context(closing(Federation(store, work, shape)))
        federation.version()
        rounds: list[dict[str, Figures]] = []
        prices: Prices = {}
        for _ in range(options.rounds):
            prices = measure(work, design.suite, url=url if design.remote else None, size=options.sample_mib << 20)
            rounds.append(version(federation.version(), design, prices, federation.length))
        return {stage: _medians([each[stage] for each in rounds]) for stage in rounds[0]}, prices


def _medians(rows: Sequence[Figures]) -> Figures:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def table(stages: Mapping[str, Figures]) -> str:
    """A line for each stage."""
    shown = {name for row in stages.values() for name in row}
    columns = {name: form for name, form in _COLUMNS.items() if name in shown}
    widths = {name: max(len(name), 9) for name in columns}
    head = " ".join([f"{'':10s}", *(f"{name:>{width}s}" for name, width in widths.items())])
    lines = [head]
    for stage, row in stages.items():
        texts = (format(row[name], form) if name in row else "-" for name, form in columns.items())
        cells = (f"{text:>{width}s}" for text, width in zip(texts, widths.values(), strict=True))
        lines.append(" ".join([f"{stage:10s}", *cells]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=200, help="of the model (default: %(default)s)")
    parser.add_argument("--sites", type=int, default=4, help="one update of each is merged (default: %(default)s)")
    parser.add_argument("--store", choices=STORES, default="file", help=STORE_HELP)
    parser.add_argument("--filter", choices=("clip", "unsafe-none"), default="clip", help=FILTER_HELP)
    parser.add_argument("--suite", choices=SUITES, default=AEGIS256.name, help=SUITE_HELP)
    parser.add_argument(
        "--rounds", type=int, default=3, help="versions that are measured; medians are shown (default: %(default)s)"
    )
    parser.add_argument("--sample-mib", type=int, default=64, help=SAMPLE_HELP)
    parser.add_argument("--json", type=Path, help="a file for all figures, those of the floor's passes too")
    options = parser.parse_args(arguments)
    log.configure(quiet=True)
    stages, prices = run(options)
    print(f"{options.size_mb} MB, {options.sites} sites, {options.store} store, {options.filter}", end=", ")
    print(f"median of {options.rounds}, floor of {options.suite} on {LANES} cores", end="; ")
    print(f"load average {os.getloadavg()[0]:.2f}")
    print("load, form, upload, admission: of one site; version: all of them and the merge, one after the other")
    if not forget_peak():
        print("peak MiB: not measured a stage, because /proc/self/clear_refs cannot be written here")
    print(table(stages))
    print(price_table(prices))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        report = {"task": told, "stages": stages, "prices": {name: asdict(cost) for name, cost in prices.items()}}
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
