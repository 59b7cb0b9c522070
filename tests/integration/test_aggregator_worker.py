"""Aggregator and workers in one process: the product's own services over a transport and a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aggregator.audit.replay import audit
from aggregator.config import RunConfig, StopConfig, StrategyConfig
from aggregator.pipeline.genesis import Genesis
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.service import AggregatorService
from aggregator.service.settings import FirstRun
from broker.blobs.memory import MemoryBlobs
from broker.transport.memory import MemoryTransport
from protocol.errors import TrainingError
from protocol.messages import Named, Outcome
from tests.e2e.trainers import trainer
from tests.support.federation import FEDERATION, RUN, Federation
from tests.support.waiting import eventually
from worker.api.filters import build
from worker.api.trainer import Control, EvaluationResult, TrainResult
from worker.api.weights import Weights
from worker.service.assembly import assemble_worker
from worker.service.service import WorkerService
from worker.service.settings import WorkerSettings
from worker.trainers.numpy import NumpyTrainer

ELEMENTS = 3000
WAIT_S = 30.0


class House:
    """One aggregator and its workers, that may be stopped and started again."""

    def __init__(self, directory: Path, sites: int = 3) -> None:
        self.directory = directory
        self.federation = Federation(sites)
        self.store = MemoryBlobs()
        self.network = f"memory:{id(self)}"
        self.changed = threading.Condition()
        self.seen: list[tuple[str, Any]] = []
        self.stack = ExitStack()
        # Keeps the broker's memory while nobody else is connected.
        self.stack.callback(MemoryTransport.named(self.network).close)

    def note(self, event: str, fields: Any) -> None:
        """The observer of everybody."""
        with self.changed:
            self.seen.append((event, fields))
            self.changed.notify_all()

    def aggregator(self, **stop: Any) -> AggregatorService:
        """Start an aggregator on the same state."""
        model = trainer(elements=ELEMENTS)
        config = RunConfig(
            name=RUN,
            strategy=StrategyConfig.model_validate({"name": "fedbuff", "buffer": 2}),
            evaluate=True,
            max_wait=2.0,
            stop=StopConfig(**stop),
        )
        service = assemble_aggregator(
            self.federation.aggregator_settings(observer=self.note),
            transport=MemoryTransport.named(self.network),
            store=self.store,
            state=self.directory / "aggregator",
            first=FirstRun(config=config, genesis=Genesis(model.spec, model.initial)),
        )
        service.start()
        self.stack.callback(service.join, WAIT_S)
        self.stack.callback(service.stop)
        return service

    def worker(self, site: str, code: Any = None) -> WorkerService:
        """Start a site's worker on the same state."""
        settings = WorkerSettings(
            federation=FEDERATION,
            identity=self.federation.members[site],
            registry_record=self.federation.registry_record,
            root=self.federation.root_key,
            trainer=code or trainer(site=int(site[-1]), elements=ELEMENTS, seconds=0.02),
            filters=build([Named(name="unsafe-none", parameters={})]),
        )
        transport = MemoryTransport.named(self.network)
        service = assemble_worker(settings, transport=transport, store=self.store, state=self.directory / site)
        service.start()
        self.stack.callback(service.join, WAIT_S)
        self.stack.callback(service.stop)
        return service

    def wait(self, done: Any, what: str) -> None:
        """Wait until what was observed satisfies `done`."""
        with self.changed:
            assert self.changed.wait_for(lambda: done(self.seen), WAIT_S), what

    def wait_version(self, version: int) -> None:
        """Wait until the aggregator has committed this version."""
        self.wait(lambda seen: any(e == "version" and f["version"] >= version for e, f in seen), f"version {version}")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    try:
        yield made
    finally:
        made.stack.close()


def receipts(worker: WorkerService) -> list[dict[str, Any]]:
    """What became of a worker's updates; the worker is stopped first."""
    worker.stop()
    worker.join(WAIT_S)
    return worker.journal.receipts()


def test_three_workers_train_until_the_run_ends_and_their_receipts_say_what_the_journal_says(house: House) -> None:
    centre = house.aggregator(max_versions=5)
    workers = [house.worker(site) for site in house.federation.members]

    assert centre.ended.wait(WAIT_S)

    assert centre.rules.runs[RUN].version == 5
    assert audit(centre.journal, RUN) == []
    taking_part = set(centre.journal.run(RUN).sites(5))
    eventually(
        lambda: taking_part <= {each.site for each in centre.journal.run(RUN).measurements(5)},
        "everybody who took part has measured the last version",
    )
    plans = centre.journal.run(RUN).plans()
    merged = {member.id: plan.version for plan, _ in plans for member in plan.members}
    said = {r["id"]: r["version"] for w in workers for r in receipts(w) if r["outcome"] == Outcome.MERGED.value}
    assert said
    assert said.items() <= merged.items()
    # On a busy machine one site may finish nothing before five versions are made of the others' updates.
    assert {member.site for plan, _ in plans for member in plan.members} <= set(house.federation.members)


def test_an_aggregator_that_is_stopped_in_mid_run_goes_on_where_it_was(house: House) -> None:
    first = house.aggregator()
    for site in house.federation.members:
        house.worker(site)
    house.wait_version(2)
    first.stop()
    first.join(WAIT_S)
    committed = first.rules.runs[RUN].version

    second = house.aggregator()

    assert second.rules.runs[RUN].version >= committed
    house.wait_version(committed + 3)


def test_a_worker_that_is_stopped_in_mid_run_goes_on_where_it_was(house: House) -> None:
    centre = house.aggregator()
    worker = house.worker("site-0")
    house.wait_version(1)
    before = receipts(worker)

    again = house.worker("site-0")

    house.wait_version(centre.rules.runs[RUN].version + 2)
    after = receipts(again)
    assert [r["id"] for r in after[: len(before)]] == [r["id"] for r in before]
    assert len({(r["epoch"], r["sequence"]) for r in after}) == len(after) > len(before)


def test_a_site_whose_training_fails_does_not_hold_up_the_others(house: House) -> None:
    class Broken(NumpyTrainer):
        def train(self, base: Weights, control: Control) -> TrainResult:
            raise TrainingError("no data today")

        def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
            return EvaluationResult(examples=0)

    house.aggregator()
    house.worker("site-0", Broken({}, lambda control: 0, examples=1))
    house.worker("site-1")
    house.worker("site-2")
    house.wait_version(3)
    sites = {site for event, fields in house.seen if event == "version" for site in fields["sites"]}
    assert sites == {"site-1", "site-2"}
