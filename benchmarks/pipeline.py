"""What the pipeline costs: one federation from training to announcement, with the product's own processes.

    python -m benchmarks.pipeline --size-mb 840 --broker amqp --store s3 --json out/pipeline.json
    python -m benchmarks.pipeline --overhead

Without `--overhead`: time per stage, CPU time, page faults, memory, bytes moved, and what a version costs beside
the floor, which is computed from library calls timed just before. `--broker memory` runs everything as threads of one
process, `--broker amqp` starts a private RabbitMQ node and one process each for the aggregator and every site;
`--store s3` starts a private S3 server. With `--overhead`: a digits-sized model and a trainer that does nothing, so
that what is left is the pipeline's own time; it is printed beside what one fsync of the same disk takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import pipeline_events
from benchmarks.floor import SUITE_HELP, Design, floor
from benchmarks.floor_calls import AEGIS256, SUITES
from benchmarks.pipeline_places import Result, Task, alone_kib, fsync_ms, run, table
from benchmarks.stores import STORE_HELP, STORES
from benchmarks.usage import reading

WARM_UP = 20
MEASURED = 200
_LABELS = {
    "load": "load base into the trainer",
    "train": "train",
    "form": "form, filter, encrypt, spool",
    "upload": "upload",
    "notice": "uploaded -> admission begins",
    "admission": "admission",
    "merge": "merge and commit",
    "announce": "committed -> received",
}


def overhead(result: Result) -> dict[str, float]:
    """Milliseconds a version after the warm-up, and seconds from the first process to the first local steps."""
    at = pipeline_events.commits(result.entries)
    versions = sorted(at)
    first = versions[min(WARM_UP, len(versions) // 10)]
    last = versions[-1]
    steps = pipeline_events.first_steps(result.entries).values()
    within = [entry.event for entry in result.entries if at[first] < entry.at <= at[last]]
    counts = {name: within.count(f"update.{name}") for name in ("validated", "merged", "superseded", "rejected")}
    return {
        "ms a version": 1000 * (at[last] - at[first]) / (last - first),
        "versions measured": last - first,
        **{f"{name} a version": count / (last - first) for name, count in counts.items()},
        "CPU ms an update": 1000 * result.cpu_s(at[first], at[last]) / counts["merged"],
        "first local step s": min(steps) - result.began,
        "first step of the last site s": max(steps) - result.began,
    }


def size(result: Result, task: Task) -> dict[str, float]:
    """Median seconds of each stage, what a version costs beside its floor, memory in MiB, bytes in MB."""
    found = pipeline_events.stages(result.entries)
    at = pipeline_events.commits(result.entries)
    row: dict[str, float] = {f"{name} s": value for name, value in found.medians().items()}
    row["wall time s"] = max(at.values()) - result.began
    row["updates"] = len(found.upload)
    row["versions"] = len(at)
    row |= cost(result, task)
    row |= memory(result, task)
    row |= {f"stored {kind} MB": stored / 1e6 for kind, stored in sorted(result.stored.items())}
    return row


def cost(result: Result, task: Task) -> dict[str, float]:
    """What aggregator and workers used from start to end, and a version's share, beside the least that it can cost.

    A version's seconds and CPU seconds count from the first local step to the last commit; training, and updates
    that came too late for the last version, are in them.
    """
    used = result.used
    if used is None:
        return {}
    at = pipeline_events.commits(result.entries)
    began, ended = min(pipeline_events.first_steps(result.entries).values()), max(at.values())
    wall, cpu = (ended - began) / len(at), result.cpu_s(began, ended) / len(at)
    row = {
        "user s": used.user,
        "sys s": used.sys,
        "kernel's share %": 100 * used.kernel,
        "page faults": used.faults,
        "waits": used.voluntary,
        "preempted": used.involuntary,
        "a version s": wall,
        "a version CPU s": cpu,
    }
    if result.prices:
        # What `fledge new-federation` gives every site is the filter `clip`, which measures.
        design = Design(suite=SUITES[task.cipher], remote=task.store != "file", measuring=True)
        least = floor(design.version(task.buffer or task.sites), result.prices, task.size_mb * 1_000_000)
        row |= {"floor of a version s": least.wall, "floor of a version CPU s": least.cpu}
        row |= {"a version x floor": wall / least.wall, "a version x floor CPU": cpu / least.cpu}
    return row


def memory(result: Result, task: Task) -> dict[str, float]:
    """MiB: peaks, and what is left of them after the idle aggregator or a script that only trains."""
    alone = alone_kib(task.size_mb, task.versions)
    row = {"script alone MiB": alone / 1024}
    seen = result.memory
    if "aggregator" in seen:
        row["aggregator MiB"] = max(seen["aggregator"]) / 1024
        row["aggregator above idle MiB"] = (max(seen["aggregator"]) - seen["aggregator idle"][0]) / 1024
        row["worker MiB"] = max(seen["worker"]) / 1024
        row["worker above script MiB"] = (max(seen["worker"]) - alone) / 1024
    else:
        models = task.sites * task.size_mb * 1e6 / 2**20
        row["process MiB"] = seen["all"][0] / 1024
        row["process above idle and models MiB"] = (seen["all"][0] - seen["all idle"][0]) / 1024 - models
    return row


def measure(task: Task, rounds: int) -> list[dict[str, Any]]:
    """Run the task in a fresh directory `rounds` times; each row also says how busy the machine was."""
    rows = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="fledge-pipeline-") as folder:
            work = Path(folder)
            load, fsync, before = os.getloadavg()[0], fsync_ms(work), reading(resource.RUSAGE_CHILDREN)
            result = run(task, work, seconds=7200)
            used = reading(resource.RUSAGE_CHILDREN).since(before)
            numbers: dict[str, Any] = dict(size(result, task) if task.size_mb else overhead(result))
            numbers["processor s in all processes"] = used.cpu
            numbers["fsync p50 ms, before"] = fsync
            numbers["fsync p50 ms, after"] = fsync_ms(work)
            numbers["load average before"] = load
            numbers["warnings"] = pipeline_events.problems(result.entries)
            rows.append(numbers)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number over the rounds; warnings of all."""
    names = dict.fromkeys(name for row in rows for name in row)
    result: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        if name == "warnings":
            result[name] = sorted({text for found in values for text in found})
        else:
            result[name] = statistics.median(values)
    return result


def render(task: Task, rows: Sequence[dict[str, Any]]) -> str:
    """The table of one measurement."""
    model = f"{task.size_mb} MB" if task.size_mb else "2,410 parameters"
    title = f"{model}, {task.sites} sites, {task.versions} versions, broker {task.broker}, store {task.store}"
    title += f", {task.cipher}"
    shown = {}
    for name, value in summary(rows).items():
        stage = _LABELS.get(name.removesuffix(" s"))
        label = f"{stage} s" if stage else name
        shown[label] = (", ".join(value) or "none") if name == "warnings" else f"{value:10.3f}"
    if len(rows) > 1 and "ms a version" in rows[0]:
        each = (f"{row['ms a version']:.1f} (load {row['load average before']:.1f})" for row in rows)
        shown["ms a version, each round"] = ", ".join(each)
    return f"{title}\n{table(shown)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=100, help="of the model (default: %(default)s)")
    parser.add_argument("--sites", type=int, help="how many hospitals (default: 4, with --overhead 8)")
    parser.add_argument(
        "--versions", type=int, help="until when it trains (default: 3, with --overhead 200 after 20 to warm up)"
    )
    parser.add_argument(
        "--buffer", type=int, help="updates a version (default: one of each site, with --overhead the strategy's own)"
    )
    parser.add_argument("--store", choices=STORES, default="file", help=STORE_HELP)
    parser.add_argument(
        "--broker",
        choices=("memory", "amqp"),
        default="memory",
        help="one process, or a private RabbitMQ and a process each (default: %(default)s)",
    )
    parser.add_argument("--suite", choices=SUITES, default=AEGIS256.name, help=SUITE_HELP)
    parser.add_argument("--overhead", action="store_true", help="what a version costs when training costs nothing")
    parser.add_argument("--rounds", type=int, default=1, help="federations, one after the other (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("out/pipeline.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    small = options.overhead
    sites = options.sites or (8 if small else 4)
    task = Task(
        size_mb=0 if small else options.size_mb,
        sites=sites,
        versions=options.versions or (WARM_UP + MEASURED if small else 3),
        buffer=options.buffer or (None if small else sites),
        store=options.store,
        broker=options.broker,
        train=not small,
        cipher=options.suite,
    )
    rows = measure(task, options.rounds)
    print(render(task, rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"task": asdict(task), "median": summary(rows), "rounds": rows}, indent=2))


if __name__ == "__main__":
    main()
