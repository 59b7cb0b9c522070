"""A federation changes the suite it encrypts with between two versions, while a site still trains under the old one."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from aggregator.config import RunConfig, StopConfig, StrategyConfig
from aggregator.service.service import AggregatorService
from deploy.keyfiles import read_identity
from fledge import history, new_federation, open_aggregator, open_worker
from fledge.bootstrap import open_kept, read_centre
from fledge.runs.init_run import init_run
from protocol.cipher import Suite
from protocol.envelope import verify
from protocol.messages import Kind, Outcome
from protocol.registry import Registry, open_registry, sign_registry
from tests.support.waiting import DEADLINE, eventually
from worker.api.trainer import Control
from worker.rules import fetching
from worker.service.service import WorkerService
from worker.trainers.numpy import NumpyTrainer

NAME, RUN = "clinics", "moving"
SITES = ("north", "slow", "south")
ELEMENTS = 600_000
"""Of float32: three records, the last one shorter."""


@dataclass
class Gate:
    """Where a site's trainings begin and wait until the test lets one of them end."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ends: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


GATES: defaultdict[str, Gate] = defaultdict(Gate)


def trainer(*, site: str = "") -> NumpyTrainer:
    """Adds one to everything, when its gate is opened."""
    arrays = {"weight": np.zeros((ELEMENTS,), np.float32)}

    def fit(control: Control) -> int:
        gate = GATES[site]
        gate.begun.release()
        while not gate.ends.acquire(timeout=0.05):
            control.check()
        arrays["weight"] += np.float32(1)
        return 1

    return NumpyTrainer(arrays, fit, examples=10)


class Moving:
    """The federation, its aggregator and its workers."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.config = folder / NAME / "aggregator.toml"
        self.changed = threading.Condition()
        self.version = 0
        GATES.clear()
        store, code = (folder / "store").as_uri(), f"{__name__}:trainer"
        options = {site: {"site": site} for site in SITES}
        new_federation(
            folder / NAME,
            name=NAME,
            sites=SITES,
            broker=f"memory:{folder}",
            store=store,
            trainer=code,
            options=options,
            filters='\n[[filters]]\nname = "unsafe-none"\n',
            cipher="xchacha20",
        )
        strategy = StrategyConfig.model_validate({"name": "fedbuff", "buffer": 2, "updates_per_base": 1})
        settings = RunConfig(name=RUN, strategy=strategy, stop=StopConfig(max_versions=3), evaluate=False)
        init_run(code, folder / RUN, name=RUN, options={}, settings=settings)
        self.centre: AggregatorService = stack.enter_context(
            open_aggregator(self.config, folder / RUN, observer=self._on_aggregator)
        )
        self.centre.start()
        self.workers: list[WorkerService] = []
        for site in SITES:
            worker = stack.enter_context(open_worker(folder / NAME / "sites" / site / "worker.toml"))
            worker.start()
            self.workers.append(worker)

    def _on_aggregator(self, event: str, fields: Any) -> None:
        with self.changed:
            self.version = fields["version"] if event == "version" else self.version
            self.changed.notify_all()

    def begun(self, *sites: str) -> None:
        """Wait until each of these trains once more."""
        for site in sites:
            assert GATES[site].begun.acquire(timeout=DEADLINE), f"{site} begins to train"

    def make(self, version: int, *sites: str) -> None:
        """Let these end their trainings, and wait for the version that comes of them."""
        for site in sites:
            GATES[site].ends.release()
        with self.changed:
            assert self.changed.wait_for(lambda: self.version >= version, DEADLINE), f"version {version}"

    def encrypt_with(self, suite: Suite) -> Registry:
        """Sign the next registry, put it in force, and wait until every site has heard of it."""
        root = read_identity(self.folder / NAME / "root.keys")
        old = (self.folder / NAME / "registry.bin").read_bytes()
        newer = open_registry(old, bytes(root.sign.verify_key), NAME).with_cipher(suite)
        record = sign_registry(newer, root, NAME, bytes(16))
        self.centre.update_registry(record)
        for worker in self.workers:
            eventually(lambda worker=worker: worker.journal.registry_record() == record, "the site has the registry")
        return newer


@pytest.fixture
def moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moving]:
    monkeypatch.setattr(sys, "path", [*sys.path])  # kits put their folders there
    monkeypatch.setattr(fetching, "HEAD_EVERY", 0.2)  # which names the registry; every 15 minutes else
    with ExitStack() as stack:
        yield Moving(tmp_path, stack)


def test_updates_and_versions_of_both_suites_are_one_run(moving: Moving) -> None:
    moving.begun(*SITES)
    moving.make(1, "north", "south")
    moving.begun("north", "south")
    moving.encrypt_with(Suite.AEGIS256)
    # Both began before; what they send is still of the old suite, what is made of it of the new one.
    moving.make(2, "north", "south")
    moving.begun("north")
    moving.make(3, "north", "slow")
    assert moving.centre.ended.wait(DEADLINE)

    old, new = Suite.XCHACHA20, Suite.AEGIS256
    with open_kept(read_centre(moving.config), RUN) as kept:

        def suite(record: bytes, kind: Kind) -> Suite:
            manifest = verify(record, kept.registry, federation=NAME, kinds={kind}, limit=2**20).manifest
            assert manifest is not None
            return manifest.suite

        assert [suite(kept.run.version_record(number), Kind.VERSION) for number in range(4)] == [old, old, new, new]
        sent = [
            {member.site: suite(kept.history.envelope(member.id), Kind.UPDATE) for member in plan.members}
            for plan, _ in kept.run.plans()
        ]
    assert sent == [{"north": old, "south": old}, {"north": old, "south": old}, {"north": new, "slow": old}]
    for worker in moving.workers:
        eventually(lambda worker=worker: receipts(worker) == {Outcome.MERGED.value}, "every update is merged")
    lines = list(history.replay_run(moving.config, RUN))
    assert [line for line in lines if not line.good] == []
    assert lines[-1].text == "3 versions rebuilt, all the same bytes"
    assert history.export_run(moving.config, RUN, moving.folder / "model.safetensors", version="newest").version == 3
    weights = load_file(moving.folder / "model.safetensors")["weight"]
    assert weights.shape == (ELEMENTS,)
    assert (weights == weights[0]).all()
    assert 2 < weights[0] <= 3


def receipts(worker: WorkerService) -> set[str]:
    """How the site's updates ended."""
    return {row["outcome"] for row in worker.journal.receipts()}
