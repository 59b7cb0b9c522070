"""The rules of the tests: what several of them need lies in `tests/support`, and arithmetic loads no servers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports or takes from what it imports."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SUITE, ids=str)
def test_no_file_imports_a_test_module(path: Path) -> None:
    ours = [name for name in imports(path) if name.startswith("tests.")]
    assert [name for name in ours if any(part.startswith("test_") for part in name.split("."))] == []


def test_what_every_test_loads_brings_no_library_that_only_some_need() -> None:
    code = "import sys, tests.conftest as all; [__import__(name) for name in all.pytest_plugins]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"pika", "minio", "sqlalchemy", "cryptography", "pydantic", "numpy", "hypothesis", "structlog", "torch"}
    assert not heavy & set(done.stdout.split())
