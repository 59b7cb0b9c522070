"""`fledge new`: every template makes a project that can be tried and whose own tests pass, and writes over nothing."""

from __future__ import annotations

import importlib
import inspect
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.runs.new_project import TEMPLATES, new_project
from protocol.errors import ConfigError
from tests.support.command_line import fledge

NEEDS = {"torch": "torch", "monai": "monai", "sklearn": "sklearn", "strategy": "sklearn"}


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing that a test imports from its folder is found afterwards."""
    before, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if name.startswith(("made_by", "test_made_by", "digits_task")):
            del sys.modules[name]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.filterwarnings("ignore")  # of MONAI's, about itself
@pytest.mark.usefixtures("forgetful")
def test_a_project_can_be_tried_and_its_tests_pass(template: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[template])
    name = f"made-by-{template}"
    made = fledge("new", name, "--template", template, cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    folder = tmp_path / name
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == name
    assert not [path for path in folder.iterdir() if "{name}" in path.read_text() or "{module}" in path.read_text()]
    tried = fledge("try", "--versions", "1", "--no-compare", cwd=folder)
    assert (tried.returncode, tried.stderr) == (0, "")
    assert "federated" in tried.stdout
    sys.path.insert(0, str(folder))
    tests = importlib.import_module(f"test_made_by_{template}")
    found = [function for named, function in vars(tests).items() if named.startswith("test_")]
    assert found
    for function in found:
        function(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(function).parameters else {}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch", "would hide the module 'torch'"),
        ("json", "would hide the module 'json'"),
        ("protocol", "would hide the module 'protocol'"),
        ("class", "no name for a project"),
        ("1st", "no name for a project"),
        ("a b", "no name for a project"),
        ("x" * 65, "no name for a project"),
        ("used", "nothing is ever overwritten"),
        ("file", "nothing is ever overwritten"),
    ],
)
def test_a_name_or_place_that_cannot_be_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=said):
        new_project(tmp_path / name, "torch")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_template_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch, monai, sklearn, strategy"):
        new_project(tmp_path / "mine", "keras")
