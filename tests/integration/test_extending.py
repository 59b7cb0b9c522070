"""The examples of docs/extending.md, installed as a package of somebody else's: they run, and keep the contracts."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.audit.replay import Replay, audit
from aggregator.config import RunConfig
from aggregator.journal.history import History
from aggregator.pipeline.genesis import Genesis
from aggregator.pipeline.strategy_code import strategy_in
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.service import DATABASE
from aggregator.service.settings import FirstRun
from broker.blobs.open import open_blobs
from broker.transport.open import open_transport
from fledge.runs.code_archive import archive
from fledge.runs.init_run import write_run
from tests.support.federation import FEDERATION, RUN, Federation
from tests.support.packages import install
from worker.api.filters import privacy_filters
from worker.config import load_trainer
from worker.service.assembly import assemble_worker
from worker.service.settings import WorkerSettings
from worker.trainers.initial import spec_and_payload

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0
MODULE = "fledge_ward"
VERSIONS = 4


def blocks(language: str) -> list[str]:
    """The code of the document in one language."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the installed examples."""
    project = tomllib.loads(blocks("toml")[0])
    groups = project["project"]["entry-points"]
    install(tmp_path, monkeypatch, MODULE, {MODULE: "\n\n".join(blocks("python"))}, groups)
    return tmp_path / MODULE


def test_every_example_is_short() -> None:
    assert len(blocks("python")) == 7
    for code in blocks("python"):
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 20, code


def test_examples_import_nothing_of_fledge_but_its_public_names() -> None:
    imported = re.findall(r"^(?:from|import) (\S+)", "\n".join(blocks("python")), re.MULTILINE)
    assert set(imported) - sys.stdlib_module_names == {"fledge", "numpy"}


class Ward:
    """A federation whose every part is the package's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = Federation(2)
        self.stack = ExitStack()
        self.url = f"metered:memory:{folder.name}"
        self.store = open_blobs(f"mirror:{(folder / 'a').as_uri()},{(folder / 'b').as_uri()}")
        self.reached = threading.Event()
        self.transports: list[Any] = []

    def transport(self) -> Any:
        opened: Any = open_transport(self.url)
        self.stack.callback(opened.close)
        self.transports.append(opened)
        return opened

    def note(self, event: str, fields: Any) -> None:
        if event == "version" and fields["version"] >= VERSIONS:
            self.reached.set()

    def serve(self, config: RunConfig) -> None:
        def payload() -> Iterator[bytes]:
            return spec_and_payload({"mean": np.zeros(1, np.float32)})[1]

        spec, _ = spec_and_payload({"mean": np.zeros(1, np.float32)})
        self.start(
            assemble_aggregator(
                self.federation.aggregator_settings(observer=self.note),
                transport=self.transport(),
                store=self.store,
                state=self.folder / "hub",
                first=FirstRun(config=config, genesis=Genesis(spec, payload)),
            )
        )

    def train(self, site: str, values: list[float]) -> None:
        settings = WorkerSettings(
            federation=FEDERATION,
            identity=self.federation.members[site],
            registry_record=self.federation.registry_record,
            root=self.federation.root_key,
            trainer=load_trainer(f"{MODULE}:Mean", {"values": values}, self.folder),
            filters=privacy_filters({"name": "rounded", "step": 0.25}, {"name": "clip", "norm": 9}),
        )
        self.start(assemble_worker(settings, transport=self.transport(), store=self.store, state=self.folder / site))

    def start(self, service: Any) -> None:
        service.start()
        self.stack.callback(service.join, WAIT_S)
        self.stack.callback(service.stop)


@pytest.fixture
def ward(package: Path, tmp_path: Path) -> Iterator[Ward]:
    made = Ward(tmp_path)
    with made.stack:
        yield made


def test_a_run_is_made_of_the_examples_alone_and_can_be_audited(ward: Ward) -> None:
    (settings,) = (tomllib.loads(each) for each in blocks("toml") if "halving" in each and "project" not in each)
    ward.serve(RunConfig.model_validate({"name": RUN, "max_wait": 0.5, **settings}))
    ward.train("site-0", [1.0, 3.0])
    ward.train("site-1", [5.0, 7.0])
    assert ward.reached.wait(WAIT_S)
    assert all(transport.sent > 0 for transport in ward.transports)
    assert {path.name for path in (ward.folder / "b").iterdir()} >= {"models", "state", "up"}
    ward.stack.close()
    check_history(ward)


def test_the_examples_run_in_one_process(package: Path, tmp_path: Path) -> None:
    module = importlib.import_module(MODULE)
    config = RunConfig.model_validate({"name": RUN, "strategy": {"name": "momentum"}, "stop": {"max_versions": 3}})
    write_run(tmp_path / "run", config, {"mean": np.zeros(1, np.float32)}, {})
    module.try_out(tmp_path / "fed", tmp_path / "run")
    assert (tmp_path / "fed" / "state" / DATABASE).exists()


def check_history(ward: Ward) -> None:
    """Every weight follows from the journal, and every version from what it is made of."""
    history = History.open(ward.folder / "hub" / DATABASE)
    try:
        assert audit(history, RUN) == []
        replay = Replay(
            federation=FEDERATION,
            run=RUN,
            identity=ward.federation.aggregator,
            registry=ward.federation.registry,
            history=history,
            store=ward.store,
        )
        rebuilt = list(replay.versions())
        assert len(rebuilt) >= VERSIONS
        assert all(version.same for version in rebuilt)
        assert {plan.strategy for plan, _ in history.run(RUN).plans()} == {"momentum"}
    finally:
        history.close()


def test_the_example_of_a_strategy_also_comes_with_a_run() -> None:
    (example,) = (code for code in blocks("python") if "class Momentum" in code)
    code = archive({"trainer.py": b"", "momentum.py": example.encode()})
    (config,) = (tomllib.loads(each) for each in blocks("toml") if '"momentum:' in each)
    made = strategy_in(code, config["strategy"]["name"], {"beta": 0.5})
    assert (made.name, made.state) == ("momentum:Momentum", ("velocity",))


def test_the_rounding_filter_rounds(package: Path) -> None:
    chain = privacy_filters({"name": "rounded", "step": 0.5})
    values = np.array([0.2, 0.3, -1.6], np.float32)
    chain.apply(values)
    assert values.tolist() == [0.0, 0.5, -1.5]


def test_the_mirror_takes_from_the_second_store_what_the_first_has_lost(package: Path, tmp_path: Path) -> None:
    store: Any = open_blobs(f"mirror:{(tmp_path / 'a').as_uri()},{(tmp_path / 'b').as_uri()}")
    key = "models/2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    store.put(key, b"x")
    store.first.delete(key)
    assert store.get(key, 9) == b"x"


@pytest.mark.parametrize(
    ("variable", "url", "suite"),
    [
        ("FLEDGE_CONTRACT_TRANSPORT", "metered:memory:contract", "test_transport.py"),
        ("FLEDGE_CONTRACT_STORE", "mirror:file://{}/a,file://{}/b", "test_blobs.py"),
    ],
)
def test_the_contract_suites_run_on_what_others_wrote(package: Path, variable: str, url: str, suite: str) -> None:
    assert f"{variable}={url}" in "".join(blocks("sh")).replace("'", "")
    environment = {**os.environ, variable: url, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/contract/{suite}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 25


def test_the_package_is_found_by_importing_its_module_alone(package: Path) -> None:
    assert Path(importlib.import_module(MODULE).__file__ or "").parent == package
