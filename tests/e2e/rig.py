"""A whole federation of real processes over a real broker and a real S3 server."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from aggregator.config import RunConfig, StopConfig, StrategyConfig
from aggregator.journal.history import History
from fledge.bootstrap import AggregatorFiles, read_centre
from fledge.federation import AGGREGATOR_TOML, new_federation
from fledge.runs.init_run import RUN_TOML, init_run, render
from protocol import topology
from tests.e2e.program import KILLED, Death, Program, wait_for
from tests.support.fault_proxy import FaultProxy
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

ROOT = Path(__file__).resolve().parents[2]
RUN = "endtoend"
SITES = ("anna", "bert", "cleo")
TAP = "test.tap"
FILTERS = '\n[[filters]]\nname = "unsafe-none"\n'
MAIN = ("-m", "fledge.cli")
MUTANT = ("-m", "tests.e2e.mutant_main")


class Rig:
    """One federation: an aggregator, a worker for each site, and everything to look at them with."""

    def __init__(
        self,
        directory: Path,
        vhost: RabbitVhost,
        s3: S3Server,
        *,
        sites: Sequence[str] = SITES,
        elements: int = 4096,
        seconds: float = 0.05,
        heartbeat: int = 10,
        main: Sequence[str] = MAIN,
        mutant: str | None = None,
        **settings: Any,
    ) -> None:
        """`elements`: float32 values of the model; `seconds`: of one training; `settings`: of the run."""
        self.directory = directory
        self.sites = tuple(sites)
        self.vhost = vhost
        self.s3_proxy = FaultProxy(s3.port)
        self.changed = threading.Condition()
        self.run_directory = directory / RUN
        self._broker = vhost.url(heartbeat=heartbeat)
        self._store = s3.url(f"b{os.urandom(8).hex()}", port=self.s3_proxy.port)
        self._found(elements, seconds, settings)
        vhost.apply(topology.topology(self.sites))
        self._tap()
        self._main, self._mutant = tuple(main), mutant
        self.aggregator = self.program("aggregator")
        self.workers = {site: self._program(site, ("worker", "--kit", str(self.kit(site)))) for site in self.sites}

    def _found(self, elements: int, seconds: float, settings: dict[str, Any]) -> None:
        options = {site: {"site": i, "elements": elements, "seconds": seconds} for i, site in enumerate(self.sites)}
        new_federation(
            self.federation,
            name="hospitals",
            sites=self.sites,
            broker=self._broker,
            store=self._store,
            trainer="tests.e2e.trainers:trainer",
            options=options,
            filters=FILTERS,
        )
        strategy = StrategyConfig.model_validate({"name": "fedbuff", "buffer": 2, "updates_per_base": 2})
        endless = StopConfig(max_versions=0)
        self.settings = RunConfig(
            **({"name": RUN, "strategy": strategy, "max_wait": 3.0, "stop": endless, "evaluate": False} | settings)
        )
        init_run(
            "tests.e2e.trainers:trainer",
            self.run_directory,
            name=RUN,
            options={"elements": elements},
            settings=self.settings,
        )

    @property
    def federation(self) -> Path:
        """The directory of the federation's files."""
        return self.directory / "federation"

    def kit(self, site: str) -> Path:
        """A site's kit."""
        return self.federation / "sites" / site

    def program(self, name: str) -> Program:
        """Another aggregator on the same files, under this name in the logs."""
        config = self.federation / AGGREGATOR_TOML
        return self._program(name, ("aggregator", "--config", str(config), "--run", str(self.run_directory)))

    def _program(self, name: str, arguments: Iterable[str]) -> Program:
        command = [sys.executable, *self._main, "--json-logs", *arguments]
        environment = {
            "FLEDGE_MUTANT": self._mutant or "",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # A database (from Python 3.13 on), a socket or a file that a program forgets is a traceback in its log.
            "PYTHONWARNINGS": "error::ResourceWarning",
        }
        return Program(name, command, self.directory / f"{name}.log", environment, self.changed)

    @property
    def programs(self) -> list[Program]:
        """The aggregator and the workers."""
        return [self.aggregator, *self.workers.values()]

    def _tap(self) -> None:
        """A queue that keeps every announcement."""
        node, name = self.vhost.node, self.vhost.vhost
        node.api("PUT", "queues", name, TAP, body={"durable": True, "arguments": {"x-queue-type": "quorum"}})
        node.api("POST", "bindings", name, "e", topology.GLOBAL, "q", TAP, body={"routing_key": ""})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs:
            program.moves.clear()
        for program in self.programs:
            program.stop(5)
        self.s3_proxy.close()

    def start(self) -> None:
        """Start every program."""
        for program in self.programs:
            program.start()

    # ---- waiting

    def wait(self, done: Callable[[], bool], what: str | Callable[[], str], timeout: float = 60.0) -> None:
        """Wait until `done`; a program that ended by itself ends the wait too."""

        def over() -> bool:
            if ended := self.ended_by_themselves():
                raise AssertionError(f"ended by themselves: {ended}")
            return done()

        wait_for(self.changed, over, (lambda: what) if isinstance(what, str) else what, timeout)

    def wait_version(self, version: int, timeout: float = 60.0) -> None:
        """Wait until the journal has this version."""
        self.wait(lambda: self.version >= version, lambda: f"version {self.version}, waited for {version}", timeout)

    def finish(self, more: int = 3, timeout: float = 90.0) -> None:
        """Let the run end by `max_versions`, this many versions from now, and wait until everything is settled."""
        last = self.version + more
        config = self.settings.model_copy(update={"stop": StopConfig(max_versions=last)})
        (self.run_directory / RUN_TOML).write_text(render(config))
        lives = len(self.aggregator.deaths)
        self.aggregator.restart()
        self.wait(lambda: len(self.aggregator.deaths) > lives, "the aggregator did not stop", timeout)
        self.drain(timeout)

    def drain(self, timeout: float = 90.0) -> None:
        """Wait until the run has ended, every update has its receipt, and every outbox is empty."""
        self.wait(lambda: self.run_state == "stopped", lambda: f"the run is {self.run_state}", timeout)
        self.wait(lambda: not self.unsettled(), lambda: f"not settled: {self.unsettled()}", timeout)

    def stop(self) -> dict[str, int]:
        """End every program in order, the aggregator last: it takes what workers still say; returns the exit codes."""
        return {program.name: program.stop() for program in reversed(self.programs)}

    def ended_by_themselves(self) -> list[str]:
        """Programs that neither were killed nor stopped in order."""
        deaths = [death for program in self.programs for death in program.deaths]
        return [f"{death.program}: exit code {death.code}" for death in deaths if death.code not in (0, KILLED)]

    # ---- looking

    @property
    def kills(self) -> list[Death]:
        """Every kill so far."""
        return [death for program in self.programs for death in program.deaths if death.code == KILLED]

    @property
    def centre(self) -> AggregatorFiles:
        """What `aggregator.toml` names."""
        return read_centre(self.federation / AGGREGATOR_TOML)

    @property
    def database(self) -> Path:
        """The aggregator's."""
        table = tomllib.loads((self.federation / AGGREGATOR_TOML).read_text())
        return self.federation / table["state"] / "aggregator.db"

    def history(self) -> History:
        """The aggregator's journal, read only; the caller closes it."""
        return History.open(self.database)

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Rows from the aggregator's database; none while it cannot be read."""
        return _ask(self.database, question)

    def ask_site(self, site: str, question: str) -> list[tuple[Any, ...]]:
        """Rows from a worker's database; none while it cannot be read."""
        return _ask(self.kit(site) / "state" / "worker.db", question)

    @property
    def version(self) -> int:
        """The newest committed version; -1 before the first."""
        rows = self.ask("SELECT max(version) FROM versions")
        return rows[0][0] if rows and rows[0][0] is not None else -1

    @property
    def run_state(self) -> str:
        """The run's state in the journal."""
        rows = self.ask("SELECT state FROM runs")
        return str(rows[0][0]) if rows else "not there"

    def unsettled(self) -> list[str]:
        """Updates without a final receipt at their site, and messages that are not yet confirmed."""
        found = []
        for site in self.sites:
            rows = self.ask_site(site, "SELECT (SELECT count(*) FROM updates) + (SELECT count(*) FROM outbox)")
            if not rows or rows[0][0]:
                found.append(f"{site}: {rows[0][0] if rows else 'unreadable'}")
        rows = self.ask("SELECT count(*) FROM outbox")
        if not rows or rows[0][0]:
            found.append(f"aggregator: {rows[0][0] if rows else 'unreadable'} in the outbox")
        return found

    def announced(self) -> list[bytes]:
        """Every announcement that was ever published, as the tap kept it."""
        import base64

        question = {"count": 100_000, "ackmode": "ack_requeue_true", "encoding": "base64"}
        found = self.vhost.node.api("POST", "queues", self.vhost.vhost, TAP, "get", body=question)
        return [base64.b64decode(message["payload"]) for message in found]


def _ask(path: Path, question: str) -> list[tuple[Any, ...]]:
    try:
        link = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    except sqlite3.OperationalError:
        return []
    try:
        return link.execute(question).fetchall()
    except sqlite3.OperationalError:
        # Not made yet, or a killed process left a journal that only a writer may roll back.
        return []
    finally:
        link.close()
