"""What users import: every public name is there, typed and loaded late; former names give the same objects."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import fledge
from fledge.inference import SiteModels
from protocol.errors import ConfigError
from worker.config import WorkerConfig, trainer_digest, trainer_home

ROOT = Path(__file__).resolve().parents[3]
TRAINERS = sorted(path.stem for path in (ROOT / "fledge" / "trainers").glob("[a-z]*.py"))
FORMER = ("trainer", "weights", "filters", "fingerprint")


@pytest.mark.parametrize("name", fledge.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fledge, name) is not None
    assert name in dir(fledge)


def test_type_checkers_see_the_same_names_as_programs() -> None:
    (block,) = (
        node for node in ast.parse((ROOT / "fledge" / "__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    seen = {
        (alias.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(name, module) for module, names in fledge._NAMES.items() for name in names}


def test_every_public_name_is_documented_and_listed_in_the_document() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", page[page.index("## All names") :])) - {"fledge"}
    assert listed == set(fledge.__all__)
    aliases = {"Handler", "Span"}
    assert all(getattr(fledge, name).__doc__ for name in listed - aliases)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"fledge has no 'Stratgy'; it has .*Strategy"):
        getattr(fledge, "Stratgy")  # noqa: B009 - a type checker would object to the name itself


@pytest.mark.parametrize("name", ["Strategy", "Transport", "BlobStore", "PrivacyFilter", "Trainer", "open_aggregator"])
def test_no_public_name_but_a_trainer_of_torch_loads_torch(name: str) -> None:
    code = f"import fledge, sys; fledge.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_everything_can_be_looked_at_where_there_is_no_torch() -> None:
    code = """
import importlib.util, inspect, pydoc, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
sys.modules["torch"] = None
import fledge
from fledge import *
pydoc.render_doc(fledge)
assert "Strategy" in dict(inspect.getmembers(fledge)) and "TorchTrainer" not in dir(fledge)
try:
    fledge.TorchTrainer
except ModuleNotFoundError as error:
    sys.exit(0 if error.name == "torch" else str(error))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(("name", "package"), [("Trainer", "worker"), ("BlobStore", "broker"), ("Tls", "broker")])
def test_a_file_of_the_users_that_hides_a_package_of_ours_is_named(tmp_path: Path, name: str, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("")
    (tmp_path / "script.py").write_text(f"from fledge import {name}\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    said = f"ImportError: fledge needs its own package '{package}', but Python finds {tmp_path / package}.py first"
    assert said in done.stderr


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fledge", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fledge {fledge.__version__}\n"


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_have_one_home_and_two_names(name: str, tmp_path: Path) -> None:
    public, home = import_module(f"fledge.trainers.{name}"), import_module(f"worker.trainers.{name}")
    assert public.__all__
    assert all(getattr(public, each) is getattr(home, each) for each in public.__all__)
    written = f"fledge.trainers.{name}:{public.__all__[0]}"
    assert trainer_home(written) == written.replace("fledge", "worker", 1)
    # A policy that lists the digest means the code, not the name it goes by.
    assert trainer_digest(written, tmp_path) == trainer_digest(trainer_home(written), tmp_path)


def test_a_trainer_of_the_sites_own_keeps_its_name(tmp_path: Path) -> None:
    assert trainer_home("mytask:trainer") == "mytask:trainer"
    with pytest.raises(ConfigError, match=r"fledge\.trainers\.nowhere"):
        trainer_digest("fledge.trainers.nowhere:trainer", tmp_path)


@pytest.mark.parametrize("package", ["fledge", "worker"])
def test_inference_finds_the_sites_own_bundle_by_either_name_of_its_trainer(package: str) -> None:
    kit = {"federation": "f", "broker": "memory:", "store": "memory:", "root": "0" * 64}
    trainer = f"{package}.trainers.monai_bundle:bundle_trainer"
    models = object.__new__(SiteModels)  # what the site has fetched is of no concern here
    models.settings = WorkerConfig.model_validate({**kit, "trainer": trainer, "options": {"bundle_root": "/srv/b"}})
    version = SimpleNamespace(run="lungs", says=SimpleNamespace(bundle=None))
    with models.bundle(version) as root:
        assert root == Path("/srv/b")
    models.settings = models.settings.model_copy(update={"trainer": "mytask:trainer"})
    with pytest.raises(ConfigError, match="brings no bundle"), models.bundle(version):
        pass


@pytest.mark.parametrize("name", FORMER)
def test_former_modules_give_the_same_objects(name: str) -> None:
    former, home = import_module(f"worker.{name}"), import_module(f"worker.api.{name}")
    public = [each for each in vars(home) if not each.startswith("_")]
    assert public
    assert all(getattr(former, each) is getattr(home, each) for each in public)


def test_the_demos_former_task_is_the_same() -> None:
    assert import_module("fledge.demo_task").trainer is import_module("fledge.demo.task").trainer
