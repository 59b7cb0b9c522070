"""The examples run as their first lines say, and are as short as they promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WITHOUT_TORCH = """
import runpy, sys

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "monai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Uninstalled())
runpy.run_path("examples/sklearn_digits.py", run_name="__main__")
"""
ACCURACY = re.compile(r"accuracy (\d\.\d+)")


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(output: str) -> list[float]:
    return [float(found) for found in ACCURACY.findall(output)]


def test_the_torch_example_learns() -> None:
    found = accuracies(run("examples/torch_digits.py"))
    assert len(found) == 8
    assert found[-1] > 0.85 > 0.3 > found[0]


def test_the_scikit_learn_example_learns_where_torch_cannot_be_imported() -> None:
    found = accuracies(run("-W", "error", "-c", WITHOUT_TORCH))
    assert len(found) == 8
    assert found[-1] > 0.85 > 0.3 > found[0]


@pytest.mark.parametrize("name", ["torch_digits.py", "sklearn_digits.py"])
def test_what_a_user_writes_fits_in_25_lines(name: str) -> None:
    (function,) = (
        node
        for node in ast.parse((ROOT / "examples" / name).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    )
    assert function.name == "trainer"
    assert (function.end_lineno or 0) - function.lineno + 1 <= 25
