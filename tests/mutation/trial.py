"""Runs a room's fast tests against one mutant after the other, each in a process forked for it.

The fault is compiled in memory and handed out by an import hook, so no file is ever changed; libraries are loaded once,
before the first fork. A mutant that outlasts ten times what the sound code takes counts as found: it loops.
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import os
import random
import signal
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
ROOMS: dict[str, tuple[str, ...]] = {
    "aggregator/rules": ("tests/unit/aggregator/rules", "tests/unit/aggregator/operators"),
    "worker/rules": ("tests/unit/worker/rules", "tests/property/test_worker_rules.py"),
    "protocol": ("tests/unit/protocol", "tests/golden", "tests/property/test_protocol.py"),
}
"""The tests of each room that is tried, the fastest first."""
_LIBRARIES = ("hypothesis", "msgpack", "nacl.bindings", "numpy", "pydantic", "sqlalchemy", "structlog", "yaml")
_OPTIONS = ("-q", "-x", "-p", "no:xdist", "--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_PATIENCE = 10


@dataclass(slots=True)
class Result:
    """What became of the mutants that were tried."""

    tried: int = 0
    equivalent: int = 0
    survivors: list[Mutant] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The share of mutants that no test noticed, of those that change anything."""
        return len(self.survivors) / max(1, self.tried - self.equivalent)


class _Hook(MetaPathFinder, Loader):
    """Gives out one module with its fault."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = ".".join(mutant.path.with_suffix("").parts)
        self._file = ROOT / mutant.path
        self._code = mutant.code()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Claim the module."""
        if name != self._name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self._file))

    def exec_module(self, module: ModuleType) -> None:
        """Run the file with its fault."""
        module.__file__ = str(self._file)
        exec(self._code, module.__dict__)


def equivalent() -> dict[str, str]:
    """Mutants that behave as the sound code does, by name, with the reason."""
    listed = tomllib.loads(Path(__file__).with_name("equivalent.toml").read_text(encoding="utf-8"))
    return {each["mutant"]: each["reason"] for each in listed["equivalent"]}


def mutants_of(room: str, seed: int) -> list[Mutant]:
    """All mutants of a room, in an order that the seed decides: any beginning of it is a fair sample."""
    files = sorted((ROOT / room).glob("*.py"))
    found = [each for file in files for each in mutants(file.relative_to(ROOT), file.read_text(encoding="utf-8"))]
    random.Random(seed).shuffle(found)
    return found


def attempt(room: str, *, seed: int = 0, most: int | None = None, seconds: float = float("inf")) -> Result:
    """Try a room's mutants until there are `most`, or the time is up; raises if the sound code fails its tests."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # what is loaded here is not gone through again in every child
    known, result, began = equivalent(), Result(), time.monotonic()
    if not _passes(ROOMS[room], None, 600.0):
        raise RuntimeError(f"the tests of {room} fail without any fault in it")
    limit = _PATIENCE * (time.monotonic() - began)
    for mutant in mutants_of(room, seed)[:most]:
        if time.monotonic() - began > seconds:
            break
        result.tried += 1
        if mutant.name in known:
            result.equivalent += 1
        elif _passes(ROOMS[room], mutant, limit):
            result.survivors.append(mutant)
    return result


def _passes(tests: Sequence[str], mutant: Mutant | None, limit: float) -> bool:
    """Whether every test passes, in a process of its own that ends after `limit` seconds."""
    child = os.fork()
    if child == 0:
        os._exit(_child(tests, mutant, limit))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _child(tests: Sequence[str], mutant: Mutant | None, limit: float) -> int:
    signal.setitimer(signal.ITIMER_REAL, limit)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.chdir(ROOT)
    for name in list(_ours(sys.modules)):
        del sys.modules[name]
    try:
        if mutant is not None:
            sys.meta_path.insert(0, _Hook(mutant))
        return int(pytest.main([*_OPTIONS, *tests]))
    except BaseException:
        return 1


def _ours(names: Iterator[str] | Any) -> Iterator[str]:
    """Modules that have to be loaded anew, because they may be or may hold what is mutated."""
    packages = ("protocol", "broker", "aggregator", "worker", "deploy", "fledge", "tests")
    return (name for name in names if name.partition(".")[0] in packages)
