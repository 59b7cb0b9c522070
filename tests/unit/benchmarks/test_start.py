"""Every benchmark starts: one whose imports have moved fails here, and not when somebody wants its figure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SMALL = {
    "benchmarks.convergence": "--seeds 1 --horizon 6",
    "benchmarks.floor": "--size-mb 1 --sites 2 --sample-mib 1",
    "benchmarks.pipeline_model": "1 1",
    "benchmarks.stages": "--size-mb 1 --sites 1 --rounds 1 --sample-mib 1",
}
"""Arguments of those that are run here; the others have files of their own."""
MISSED = 1
"""The exit code of a benchmark that ran and fell short of a bar, as at these sizes it may."""


@pytest.mark.parametrize("module", SMALL)
def test_it_runs_to_its_end(module: str) -> None:
    command = [sys.executable, "-m", module, *SMALL[module].split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, MISSED), done.stderr
    assert done.stdout.strip()


def test_every_benchmark_is_run_by_a_test() -> None:
    benchmarks = {f"benchmarks.{path.stem}": path for path in sorted((ROOT / "benchmarks").glob("*.py"))}
    runnable = {module for module, path in benchmarks.items() if "main" in functions(path)}
    started = set(SMALL)
    for path in Path(__file__).parent.glob("test_*.py"):
        started |= set(mains_called(path))
    for module, path in benchmarks.items():  # those that another one starts as a process
        started |= strings(path) - {module}
    assert runnable - started == set(), "let a test run these at their smallest"


def test_only_what_exists_is_run_here() -> None:
    assert [module for module in SMALL if not (ROOT / (module.replace(".", "/") + ".py")).is_file()] == []


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions at the top of a file."""
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def strings(path: Path) -> set[str]:
    """Every string in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def mains_called(path: Path) -> Iterator[str]:
    """The benchmarks whose `main` a test of this file calls, if `make test` runs it."""
    tree = ast.parse(path.read_text())
    taken = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and "main" in {alias.name for alias in node.names}
    ]
    for test in functions(path).values():
        if any("mark.long" in ast.unparse(each) for each in test.decorator_list):
            continue
        for call in (ast.unparse(node.func) for node in ast.walk(test) if isinstance(node, ast.Call)):
            if call == "main":
                yield from taken
            elif call.endswith(".main"):
                yield f"benchmarks.{call.removesuffix('.main')}"
