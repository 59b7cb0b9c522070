"""Where the pipeline benchmark runs: private servers, a fresh federation, and its processes."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import pipeline_events
from benchmarks.floor_calls import AEGIS256, SUITES, Prices, measure
from benchmarks.pipeline_model import cpu_s, peak_kib
from benchmarks.stores import store_url
from benchmarks.usage import Usage, reading
from fledge.federation import AGGREGATOR_TOML, new_federation
from fledge.runs.init_run import init_run

FEDERATION, RUN = "benchmark", "pipeline"
TRAINER = "benchmarks.pipeline_trainer:trainer"
_ROOT = Path(__file__).parents[1]
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to run and where."""

    size_mb: int
    """0: a digits-sized perceptron of 2,410 parameters."""
    sites: int
    versions: int
    buffer: int | None
    """K; None is the strategy's own choice."""
    store: str
    broker: str
    train: bool = True
    cipher: str = AEGIS256.name

    @property
    def names(self) -> list[str]:
        """The sites."""
        return [f"site-{index}" for index in range(self.sites)]


@dataclass(slots=True)
class Result:
    """What one federation left."""

    entries: list[pipeline_events.Entry]
    began: float
    """Seconds since the epoch: when the first process was started."""
    memory: dict[str, list[int]] = field(default_factory=dict)
    """KiB: `aggregator idle` (resident), `aggregator`, `worker`, or `all idle` (resident), `all` (peaks)."""
    stored: dict[str, int] = field(default_factory=dict)
    """Bytes in the store by kind."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """When (seconds since the epoch), and the CPU seconds that aggregator and workers had used by then."""
    used: Usage | None = None
    """By aggregator and workers together, from their start to their end; broker and store are left out."""
    prices: Prices = field(default_factory=dict)
    """What the floor is computed from, timed just before."""

    def cpu_s(self, start: float, end: float) -> float:
        """CPU seconds of aggregator and workers between two times; broker and store are not among them."""
        at, used = zip(*self.busy, strict=True)
        return float(np.interp(end, at, used) - np.interp(start, at, used))


def fsync_ms(folder: Path, rounds: int = 51) -> float:
    """Median milliseconds of writing 4 KiB and fsync in `folder`."""
    path = folder / "fsync"
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(rounds):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(times) * 1000


@contextmanager
def servers(task: Task, work: Path) -> Iterator[tuple[str, str]]:
    """The URLs of broker and store; private servers are started, except for a directory and memory."""
    with ExitStack() as stack:
        broker, store = f"memory:{FEDERATION}", stack.enter_context(store_url(task.store, work))
        if task.broker == "amqp":
            from deploy.servers.apply import apply_topology
            from protocol.topology import topology
            from tests.support.rabbit import RabbitNode

            node = RabbitNode()
            stack.callback(node.close)
            node.start()
            node.api("PUT", "vhosts", "pipeline", body={})
            apply_topology(node.management_url, "pipeline", topology(task.names))
            broker = node.url("pipeline")
        yield broker, store


def found(task: Task, work: Path, broker: str, store: str) -> None:
    """Make the federation and version 0, as `fledge new-federation` and `fledge init-run` do."""
    from aggregator.config import RunConfig

    options = {"size_mb": task.size_mb, "train": task.train}
    new_federation(
        work / "federation",
        name=FEDERATION,
        sites=task.names,
        broker=broker,
        store=store,
        trainer=TRAINER,
        cipher=task.cipher,
        options={site: {**options, "site": site} for site in task.names},
    )
    strategy = {"name": "fedbuff"} | ({} if task.buffer is None else {"buffer": task.buffer})
    stop = {"max_versions": task.versions}
    settings = RunConfig.model_validate({"name": RUN, "strategy": strategy, "stop": stop, "evaluate": False})
    init_run(TRAINER, work / "run", name=RUN, options=options, settings=settings)


class Processes:
    """Processes with a log each; whatever happens, none is left behind."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.busy: list[tuple[float, float]] = []

    def start(self, name: str, *command: str, stdin: int = subprocess.DEVNULL) -> None:
        """Start `python COMMAND`; what it writes to standard error is its log."""
        with self.log(name).open("w") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, *command], cwd=_ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def log(self, name: str) -> Path:
        """Where a process logs."""
        return self._work / f"{name}.log"

    def wait_for(self, name: str, event: str, seconds: float) -> None:
        """Return once a log has this event.

        Raises:
            RuntimeError: a process ended before, or it took too long.
        """
        deadline = time.monotonic() + seconds
        sought = f'"event": "{event}"'
        while sought not in self.log(name).read_text():
            for each, process in self.running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{each} ended by itself:\n{self.log(each).read_text()[-3000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name}: no {event} within {seconds} s:\n{self.log(name).read_text()[-3000:]}")
            self._look()
            time.sleep(_LOOK_EVERY_S)
        self._look()

    def _look(self) -> None:
        used = sum(cpu_s(process.pid) for process in self.running.values())
        self.busy.append((time.time(), used))

    def peak(self, name: str, field: str = "VmHWM") -> int:
        """KiB of a running process."""
        return peak_kib(self.running[name].pid, field)

    def stop(self) -> None:
        """Ask all to end, then make them."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def run(task: Task, work: Path, *, seconds: float) -> Result:
    """Found a federation in the empty directory `work`, run it to its last version and measure it.

    Raises:
        RuntimeError: a process ended by itself, or `seconds` were not enough.
    """
    with servers(task, work) as (broker, store):
        found(task, work, broker, store)
        prices = measure(work, SUITES[task.cipher], url=None if task.store == "file" else store) if task.size_mb else {}
        processes = Processes(work)
        before = reading(resource.RUSAGE_CHILDREN)
        try:
            began, memory = (_together if task.broker == "memory" else _apart)(task, work, processes, seconds)
        finally:
            processes.stop()
        used = reading(resource.RUSAGE_CHILDREN).since(before)
        logs = [processes.log(name) for name in processes.running]
        return Result(
            entries=pipeline_events.read(logs),
            began=began,
            memory=memory,
            stored=_stored(store),
            busy=processes.busy,
            used=used,
            prices=prices,
        )


def _together(task: Task, work: Path, processes: Processes, seconds: float) -> tuple[float, dict[str, list[int]]]:
    """Aggregator and workers as threads of one process."""
    began = time.time()
    places = (str(work / "federation"), str(work / "run"))
    processes.start("all", "-m", "benchmarks.pipeline_host", *places, *task.names, stdin=subprocess.PIPE)
    processes.wait_for("all", "run.stopped", seconds)
    output = processes.running["all"].communicate(timeout=120)[0]
    told = dict(line.split() for line in output.splitlines())
    return began, {"all idle": [int(told["idle"])], "all": [int(told["ended"])]}


def _apart(task: Task, work: Path, processes: Processes, seconds: float) -> tuple[float, dict[str, list[int]]]:
    """Aggregator and workers as processes of their own, through the command line."""
    cli = ("-m", "fledge.cli", "--json-logs")
    began = time.time()
    config = str(work / "federation" / AGGREGATOR_TOML)
    processes.start("aggregator", *cli, "aggregator", "--config", config, "--run", str(work / "run"))
    memory = {}
    if task.size_mb:  # its memory before any update can only be seen while there are no workers
        processes.wait_for("aggregator", "aggregator.started", seconds)
        memory["aggregator idle"] = [processes.peak("aggregator", "VmRSS")]
    for site in task.names:
        processes.start(site, *cli, "worker", "--kit", str(work / "federation" / "sites" / site))
    processes.wait_for("aggregator", "run.stopped", seconds)
    memory["aggregator"] = [processes.peak("aggregator")]
    memory["worker"] = [processes.peak(site) for site in task.names]
    return began, memory


def _stored(url: str) -> dict[str, int]:
    from broker.blobs.open import open_blobs

    sizes: Counter[str] = Counter()
    with closing(open_blobs(url)) as store:
        for info in store.list(""):
            sizes[info.key.split("/")[0]] += info.size
    return sizes


def alone_kib(size_mb: int, steps: int) -> int:
    """Peak KiB of a script that holds the same model and takes the same steps, without fledge."""
    command: Sequence[str] = (sys.executable, "-m", "benchmarks.pipeline_model", str(size_mb), str(steps))
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def table(rows: Mapping[str, str]) -> str:
    """Two columns."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}s}  {value}" for name, value in rows.items())
