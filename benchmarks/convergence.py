"""How fast and how well strategies learn, in virtual time: `python -m benchmarks.convergence [--data DIR]`.

Digits: 8 sites, Dirichlet 0.5, an update takes 1 to 5 time units; the question is when the released model first has
95 % accuracy, against synchronous FedAvg on the same sites. Heart (with --data): four real hospitals, FLamby's split,
75 time units; the question is the accuracy at the end. All strategies run with the product's defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from aggregator.strategy.strategies import strategy
from benchmarks.convergence_sim import Federation, History, Silence
from benchmarks.convergence_tasks import Digits, Heart

SITES = 8
SLOWEST = 5.0
GOAL = ("accuracy", 0.95)
HORIZON = 300.0
HEART_HORIZON = 75.0
HEART_SEEDS = range(42, 47)
BARS = {"digits": 2.5, "digits, one site silent": 3.5, "heart pooled": 0.785}

# What runs: label, strategy name, parameters, decay of the released model. The synchronous baseline releases what it
# averaged: a running mean would only delay it.
RULES: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("fedavg (synchronous)", "fedavg", {}, 0.0),
    ("fedavg, server rate 2", "fedavg", {"rate": 2.0}, 0.0),
    ("fedbuff (default)", "fedbuff", {}, 0.8),
    ("fedbuff, raw model", "fedbuff", {}, 0.0),
    ("fedasync", "fedasync", {}, 0.8),
    ("fedadam", "fedadam", {}, 0.8),
)
BASELINE, DEFAULT = RULES[0][0], RULES[2][0]

# FLamby (arXiv 2210.04620), repository owkin/FLamby at edacf54d, flamby/results, seeds 42-46: mean accuracy at the
# four hospitals, their average, and on the pooled test set.
FLAMBY: dict[str, tuple[float, ...]] = {
    "FLamby: pooled training": (0.7827, 0.7640, 0.7500, 0.6444, 0.7353, 0.7953),
    "FLamby: FedAvg": (0.7308, 0.7191, 0.6500, 0.6400, 0.6850, 0.7480),
    "FLamby: FedProx": (0.7308, 0.7191, 0.6500, 0.6400, 0.6850, 0.7480),
    "FLamby: SCAFFOLD": (0.7269, 0.7191, 0.6500, 0.6400, 0.6840, 0.7480),
    "FLamby: Cyclic": (0.7577, 0.7618, 0.7125, 0.6400, 0.7180, 0.7850),
    "FLamby: FedAdam": (0.7519, 0.7461, 0.7375, 0.6667, 0.7255, 0.7787),
    "FLamby: FedYogi": (0.7596, 0.7528, 0.7375, 0.6756, 0.7314, 0.7787),
    "FLamby: FedAdagrad": (0.7596, 0.7528, 0.7375, 0.6756, 0.7314, 0.7787),
}
FORMATS = {
    **dict.fromkeys(("rule", "reached", "dropped"), ""),
    **dict.fromkeys(("t95", "versions"), ".1f"),
    **dict.fromkeys(("speed-up", "staleness"), ".2f"),
}
HEART_COLUMNS = ("site0", "site1", "site2", "site3", "average", "pooled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One simulated run."""

    rule: int
    seed: int
    silent: bool = False
    data: Path | None = None
    horizon: float = HORIZON


def run_job(job: Job) -> History:
    """Simulate one run; digits, or heart where `data` is given."""
    _, name, parameters, release = RULES[job.rule]
    dice = np.random.default_rng(1000 + job.seed)
    heart = job.data is not None
    seconds = dice.permutation(np.linspace(1.0, SLOWEST, 4 if heart else SITES)).tolist()
    silence = Silence(site=int(dice.integers(SITES)), start=10.0, end=60.0) if job.silent else None
    return Federation(
        task=Heart(job.data, job.seed) if job.data is not None else Digits(job.seed, sites=SITES),
        strategy=strategy(name, **parameters),
        seconds=seconds,
        horizon=job.horizon,
        release=release,
        silence=silence,
    ).run()


def run_jobs(jobs: Sequence[Job]) -> list[History]:
    """Simulate all runs, on every processor core."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads inside numpy only get in the way
    with ProcessPoolExecutor() as pool:
        return list(pool.map(run_job, jobs, chunksize=4))


def speed_up(base: Sequence[History], other: Sequence[History], horizon: float = HORIZON) -> float:
    """Return the median over seeds of the baseline's time to the goal by the other's.

    A run that never got there counts as if it had at the horizon, which flatters the baseline.
    """
    times = zip(_times(base, horizon), _times(other, horizon), strict=True)
    return statistics.median(slow / fast for slow, fast in times)


def _times(histories: Sequence[History], horizon: float) -> list[float]:
    return [history.first_time(*GOAL) or horizon for history in histories]


def digits(seeds: Sequence[int], silent: bool, horizon: float = HORIZON) -> list[dict[str, Any]]:
    """Return one row per rule.

    `t95` is the median time to 95 % and `reached` how many seeds got there; `accuracy` is the mean at the horizon;
    `dropped` counts updates over all seeds that were superseded or too stale.
    """
    jobs = [Job(rule=rule, seed=seed, silent=silent, horizon=horizon) for rule in range(len(RULES)) for seed in seeds]
    histories = run_jobs(jobs)
    by_rule = [histories[i : i + len(seeds)] for i in range(0, len(histories), len(seeds))]
    rows = []
    for (label, *_), found in zip(RULES, by_rule, strict=True):
        rows.append(
            {
                "rule": label,
                "t95": statistics.median(_times(found, horizon)),
                "reached": sum(history.first_time(*GOAL) is not None for history in found),
                "speed-up": speed_up(by_rule[0], found, horizon),
                "accuracy": statistics.fmean(history.points[-1].metrics["accuracy"] for history in found),
                "versions": statistics.fmean(history.points[-1].version for history in found),
                "staleness": statistics.fmean(history.staleness for history in found),
                "dropped": sum(history.too_stale + history.superseded for history in found),
            }
        )
    return rows


def heart(data: Path) -> list[dict[str, Any]]:
    """Return one row per rule, and FLamby's published ones: accuracy per hospital, their average, pooled."""
    jobs = [
        Job(rule=rule, seed=seed, data=data, horizon=HEART_HORIZON)
        for rule in range(len(RULES))
        for seed in HEART_SEEDS
    ]
    histories = run_jobs(jobs)
    rows: list[dict[str, Any]] = []
    for index, (label, *_) in enumerate(RULES):
        found = histories[index * len(HEART_SEEDS) : (index + 1) * len(HEART_SEEDS)]
        last = [history.points[-1].metrics for history in found]
        rows.append({"rule": label, **{key: statistics.fmean(m[key] for m in last) for key in HEART_COLUMNS}})
    return rows + [{"rule": name, **dict(zip(HEART_COLUMNS, row, strict=True))} for name, row in FLAMBY.items()]


def show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "rule" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(format(value, FORMATS.get(column, ".4f")) for column, value in row.items()))
    console.print(table)


def judge(console: Console, measured: dict[str, float]) -> bool:
    """Print each bar with what was measured; return whether all were reached."""
    for name, value in measured.items():
        word = "reached" if value >= BARS[name] else "MISSED"
        console.print(f"{name}: {value:.4g}, bar {BARS[name]}: {word}")
    return all(value >= BARS[name] for name, value in measured.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the four processed.*.data files of UCI Heart Disease")
    parser.add_argument("--seeds", type=int, default=30, help="seeds for digits (default 30; 5 give a first idea)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--horizon", type=float, default=HORIZON, help="time units that digits are trained for")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.data is not None and not (options.data / "processed.cleveland.data").is_file():
        parser.error(f"{options.data} holds no processed.cleveland.data; point --data at the UCI Heart Disease files")
    console, started = Console(), time.perf_counter()
    if not console.is_terminal:
        console = Console(width=110)  # a pipe has no width, and 80 cuts columns
    seeds = range(100, 100 + options.seeds)
    tables = {
        "digits": digits(seeds, False, options.horizon),
        "digits, one site silent": digits(seeds, True, options.horizon),
    }
    at_default = [label for label, *_ in RULES].index(DEFAULT)
    measured = {name: rows[at_default]["speed-up"] for name, rows in tables.items()}
    if options.data is not None:
        tables["heart"] = heart(options.data)
        measured["heart pooled"] = tables["heart"][at_default]["pooled"]
    for name, rows in tables.items():
        show(console, name, rows)
    good = judge(console, measured)
    took = time.perf_counter() - started
    console.print(f"{options.seeds} seeds, {took:.0f} s; speed-up: median over seeds, against {BASELINE}")
    if options.json is not None:
        report = {"seeds": options.seeds, "seconds": took, "tables": tables, "bars": BARS, "measured": measured}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
