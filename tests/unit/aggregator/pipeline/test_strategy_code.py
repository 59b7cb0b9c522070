"""Strategies that a run brings as code: executed where the hub has allowed that code, and nowhere else."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.audit.replay import Replay, audit
from aggregator.config import RunConfig
from aggregator.pipeline.genesis import Genesis
from aggregator.pipeline.strategy_code import NO_CODE, StrategyCode, strategy_in
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.service import AggregatorService
from aggregator.service.settings import FirstRun
from broker.transport.memory import MemoryTransport
from fledge.runs.code_archive import archive
from fledge.runs.init_run import init_run, load_run
from protocol.errors import ConfigError, StateError
from tests.support.chunks import cut
from tests.support.federation import RUN, SMALL, payload
from tests.support.running_aggregator import ONE, ZERO, Bench

MEDIAN = b"""
import numpy as np
from fledge import Strategy
from .parts.middle import middle

class Median(Strategy):
    def __init__(self, rate=1.0, buffer=2):
        self.rate, self.buffer = rate, buffer

    def buffer_size(self, sites):
        return self.buffer

    def merge(self, old, deltas, step, state, out, out_state, scratch):
        here = [delta for delta in deltas if delta is not None]
        out[...] = old + np.float32(step.rate) * middle(here)

Alias = Median
number = 3
"""
SEALED = b"""
from abc import ABCMeta

class Sealed(ABCMeta):
    def __setattr__(cls, name, value):
        if name == "name":
            raise AttributeError(name)
        super().__setattr__(name, value)
"""
MIDDLE = b"import numpy as np\n\ndef middle(deltas):\n    return np.median(np.stack(deltas), axis=0)\n"
TRAINER = b"def trainer():\n    return None\n"
CODE = archive({"trainer.py": TRAINER, "median.py": MEDIAN, "parts/middle.py": MIDDLE, "README.txt": b"\xff"})
DIGEST = hashlib.sha256(CODE)
NAME = "median:Median"


def test_a_class_of_the_code_is_made_with_its_parameters() -> None:
    made = strategy_in(CODE, NAME, {"rate": 0.5})
    assert (made.name, made.rate, made.buffer_size(9)) == (NAME, 0.5, 2)
    assert type(strategy_in(CODE, NAME, {})) is type(made)


def test_its_modules_hide_nobody_elses() -> None:
    hiding = {"trainer.py": TRAINER, "numpy.py": MIDDLE, "protocol/errors.py": b"raise RuntimeError", "fledge.py": b""}
    before = {name: sys.modules[name] for name in ("numpy", "protocol.errors", "fledge")}
    strategy_in(archive({**hiding, "median.py": MEDIAN, "parts/middle.py": MIDDLE}), NAME, {})
    assert {name: sys.modules[name] for name in before} == before
    assert "median" not in sys.modules


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("median:Mean", MEDIAN, "median defines no class Mean derived from fledge.Strategy"),
        ("median:number", MEDIAN, "defines no class number"),
        ("median:Alias", MEDIAN, "defines no class Alias"),
        ("median:Strategy", MEDIAN, "defines no class Strategy"),
        ("mean:Median", MEDIAN, "the run's code gives no mean: ModuleNotFoundError"),
        ("os:Median", MEDIAN, "the run's code gives no os: ModuleNotFoundError"),
        ("median:", MEDIAN, 'write the class in the run\'s code as "module:Class"'),
        (NAME, b"1 / 0", "gives no median: ZeroDivisionError"),
        (NAME, b"import parts.middle", "ModuleNotFoundError.*from .other import"),
        (NAME, MEDIAN.replace(b"def merge", b"def marge"), "is not complete: it lacks merge"),
        (NAME, MEDIAN.replace(b"out[...]", b"out[:1]"), "merge"),
        (NAME, b"def x(:", "gives no median: SyntaxError"),
        (NAME, b"raise SystemExit(0)", "gives no median: SystemExit"),
        (NAME, b"def __getattr__(name): raise SystemExit", "median defines no class Median"),
        (NAME, MEDIAN.replace(b"self.rate,", b"exit();"), "cannot be set up: SystemExit"),
        (NAME, b"# -*- coding: utf-7 -*-\nhere = 1 #+AAo-raise KeyError", "median defines no class Median"),
        (NAME, b"name = '\xff'", "gives no median: UnicodeDecodeError"),
        (NAME, SEALED + MEDIAN.replace(b"Median(Strategy)", b"Median(Strategy, metaclass=Sealed)"), "takes no name"),
    ],
)
def test_what_is_wrong_with_the_code_is_said(name: str, source: bytes, message: str) -> None:
    code = archive({"trainer.py": TRAINER, "median.py": source, "parts/middle.py": MIDDLE})
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=message):
        strategy_in(code, name, {})
    assert "median defines" not in message or set(sys.modules) == before


def test_code_without_a_python_file_gives_no_strategy() -> None:
    with pytest.raises(ConfigError, match="gives no median: ImportError: it has no Python files"):
        strategy_in(archive({"README.txt": b"median"}), NAME, {})


def test_nothing_is_left_of_code_that_fails() -> None:
    code = archive({"trainer.py": TRAINER, "median.py": b"from .parts import middle\nfail", "parts/middle.py": MIDDLE})
    before, finders = set(sys.modules), list(sys.meta_path)
    with pytest.raises(ConfigError, match="NameError"):
        strategy_in(code, NAME, {})
    assert (set(sys.modules), sys.meta_path) == (before, finders)


def test_code_that_is_not_allowed_is_refused_with_its_digest_and_the_setting(tmp_path: Path) -> None:
    for hub in (NO_CODE, StrategyCode(tmp_path / "s"), StrategyCode(tmp_path / "s", ["0" * 64])):
        with pytest.raises(ConfigError, match=f'"{DIGEST.hexdigest()}" to allow_strategy_code in aggregator.toml'):
            hub.keep(NAME, CODE)
        with pytest.raises(ConfigError, match="allow_strategy_code"):
            hub.strategy(NAME, {}, DIGEST.digest())
    assert not (tmp_path / "s").exists()


def test_a_run_without_code_cannot_bring_a_strategy(tmp_path: Path) -> None:
    hub = StrategyCode(tmp_path, [DIGEST.hexdigest()])
    with pytest.raises(ConfigError, match="the run brings no code"):
        hub.keep(NAME, b"")
    with pytest.raises(ConfigError, match="the run brings no code"):
        hub.strategy(NAME, {}, None)


def test_strategies_by_name_need_no_code(tmp_path: Path) -> None:
    NO_CODE.keep("fedbuff", CODE)
    assert NO_CODE.strategy("fedbuff", {"rate": 0.5}, DIGEST.digest()).rate == 0.5


def test_a_kept_archive_that_was_changed_is_not_executed(tmp_path: Path) -> None:
    hub = StrategyCode(tmp_path, [DIGEST.hexdigest()])
    hub.keep(NAME, CODE)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(CODE + b"x")
    with pytest.raises(StateError, match="is code that is not here, or was changed"):
        hub.strategy(NAME, {}, DIGEST.digest())
    kept.unlink()
    with pytest.raises(StateError, match="versions are made, replayed and audited with it alone"):
        hub.strategy(NAME, {}, DIGEST.digest())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path / "hub") as made:
        yield made


def served(bench: Bench, strategies: StrategyCode) -> AggregatorService:
    config = RunConfig.model_validate({"name": RUN, "strategy": {"name": NAME, "rate": 0.5}})
    genesis = Genesis(SMALL, lambda: cut(payload(SMALL, ZERO, update=False)))
    settings = replace(bench.federation.aggregator_settings(observer=bench._happened), strategies=strategies)
    service = assemble_aggregator(
        settings,
        transport=MemoryTransport.named(bench.network),
        store=bench.store,
        state=bench.state,
        first=FirstRun(config=config, genesis=genesis, code=CODE),
    )
    bench.services.append(service)
    return service


def test_a_hub_merges_with_the_code_it_allows_and_replays_with_it_alone(bench: Bench) -> None:
    hub = StrategyCode(bench.state / "strategies", [DIGEST.hexdigest()])
    service = served(bench, hub)
    service.start()
    for site in ("site-0", "site-1"):
        bench.send(site, bench.sites[site].update(ONE, bundle=DIGEST.digest()))
    bench.wait(lambda: bench.happened.count("version") >= 1)
    bench.stop()
    replay = replace(bench.replay(), strategies=hub)
    assert [version.same for version in replay.versions()] == [True]
    assert audit(replay.history, RUN, hub) == []
    refuse_to_look_back(bench.replay())
    with pytest.raises(ConfigError, match="allow_strategy_code"):
        served(bench, StrategyCode(bench.state / "strategies"))
    served(bench, hub).start()


def refuse_to_look_back(replay: Replay) -> None:
    """Without the permission nothing is executed, long after the run."""
    with pytest.raises(ConfigError, match="allow_strategy_code"):
        list(replay.versions())
    with pytest.raises(ConfigError, match="allow_strategy_code"):
        audit(replay.history, RUN)


@pytest.mark.usefixtures("imports")
def test_whoever_makes_a_run_tries_its_strategy_at_once(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "parts").mkdir(parents=True)
    model = b"import numpy\n\ndef trainer():\n    return {'w': numpy.zeros(3, numpy.float32)}\n"
    for name, source in {"trainer.py": model, "median.py": MEDIAN, "parts/middle.py": MIDDLE}.items():
        (code / name).write_bytes(source)
    settings = RunConfig.model_validate({"name": "x", "strategy": {"name": NAME, "rate": 0.25}})
    init_run("trainer:trainer", tmp_path / "run", name="lungs", settings=settings, code=code)
    assert load_run(tmp_path / "run").strategy == settings.strategy
    with pytest.raises(ConfigError, match="give its folder with --code"):
        init_run("trainer:trainer", tmp_path / "other", name="lungs", settings=settings)
    (code / "median.py").write_bytes(MEDIAN.replace(b"Median", b"Middle"))
    with pytest.raises(ConfigError, match="defines no class Median"):
        init_run("trainer:trainer", tmp_path / "third", name="lungs", settings=settings, code=code)
