"""The house rules that no linter knows: who may import whom, sizes, documentation, and what must not be in any file."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.house import ROOMS, ROOT, repository_files

HEAVY = {"torch", "monai", "ignite", "sklearn", "safetensors", "nibabel", "PIL", "pydicom"}
ALLOWED = {
    "protocol": {"msgpack", "nacl", "numpy", "pydantic"},
    "broker": {"protocol", "cryptography", "pika", "minio", "pydantic", "urllib3", "structlog", "sqlalchemy"},
    "aggregator": {"protocol", "broker", "nacl", "numpy", "pydantic", "sqlalchemy", "structlog", "prometheus_client"},
    "worker": {"protocol", "broker", "nacl", "numpy", "psutil", "pydantic", "sqlalchemy", "structlog"},
    "deploy": {
        *("protocol", "broker"),
        *("cryptography", "nacl", "pydantic", "pyzipper", "structlog", "urllib3", "yaml"),
    },
    "fledge": {
        *("protocol", "broker", "aggregator", "worker", "deploy"),
        *("click", "cryptography", "nacl", "numpy", "prompt_toolkit", "psutil", "pydantic", "rich", "sqlalchemy"),
        *("structlog", "typer", "urllib3"),
    },
}
"""What each package may import besides the standard library and itself; HEAVY has rules of its own."""
PURE = ("protocol", "aggregator/strategy", "aggregator/domain", "aggregator/rules", "worker/domain", "worker/rules")
"""No socket, file, thread, clock or dice of their own here: time and dice are arguments."""
TRAINING = (
    *("worker/trainers/", "worker/monai/", "worker/bundles/", "worker/data/dicom.py", "worker/data/dicom_files.py"),
    *("worker/data/images.py", "worker/data/nifti.py", "worker/data/pictures.py"),
    *("fledge/demo/", "fledge/demo_task.py", "examples/", "benchmarks/"),
)
"""Where files may import HEAVY at their top, because they are loaded only by what trains or reads images."""
SIZED = [*ALLOWED, "benchmarks", "examples"]
MAX_FILE = 450
MAX_FUNCTION = 60


def sources(*folders: str) -> list[Path]:
    """The Python files below these folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def roots(nodes: Iterator[ast.AST]) -> set[str]:
    """The top-level names of everything imported in `nodes`; relative imports are our own."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@cache
def imported(path: Path) -> frozenset[Path]:
    """Our own files that a file imports, at its top, inside functions, or for type checkers only."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            places = [Path(*parts[:end]) for end in (len(parts), len(parts) - 1) if end]
            files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
            found |= {next((file for file in files if (ROOT / file).is_file()), path)} - {path}
    return frozenset(file for file in found if file.parts[0] in SIZED)


def room_of(path: Path) -> str:
    """The folder or file below its package that a file belongs to."""
    return path.parts[1].removesuffix(".py")


def top_level(path: Path) -> Iterator[ast.AST]:
    """Every node that runs when the file is imported: not what stands inside functions or for type checkers only."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        yield node
        pending += ast.iter_child_nodes(node)


def texts() -> Iterator[tuple[str, str]]:
    """Every text file of the repository with its contents."""
    for name in repository_files():
        raw = (ROOT / name).read_bytes()
        if b"\0" not in raw:
            yield name, raw.decode("utf-8", errors="replace")


def test_the_rules_see_the_house() -> None:
    for package in ALLOWED:
        assert (ROOT / package / "__init__.py").is_file()
    assert Path("protocol/errors.py") in sources("protocol")
    assert "pyproject.toml" in repository_files()


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    for path in sources(package):
        used = roots(ast.walk(tree(path))) - sys.stdlib_module_names - HEAVY - {package}
        assert used <= ALLOWED[package], f"{path} imports {sorted(used - ALLOWED[package])}"


@pytest.mark.parametrize("package", ["protocol", "broker", "aggregator", "deploy"])
def test_what_runs_without_torch_never_imports_it(package: str) -> None:
    for path in sources(package):
        assert not roots(ast.walk(tree(path))) & HEAVY, path


@pytest.mark.parametrize("package", ["worker", "fledge"])
def test_torch_is_imported_at_the_top_of_trainers_only(package: str) -> None:
    for path in sources(package):
        if not str(path).startswith(TRAINING):
            assert not roots(top_level(path)) & HEAVY, path


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_below_it(package: str) -> None:
    row = {room: number for number, rooms in enumerate(ROOMS[package]) for room in rooms}
    for path in sources(package):
        own = room_of(path)
        if path == Path(package, "__init__.py") and own not in row:
            assert not imported(path), f"{path} is a name, not a room"
            continue
        assert own in row, f"{path} is in no room"
        for other in imported(path):
            if other.parts[0] == package and room_of(other) != own:
                assert row.get(room_of(other), -1) > row[own], f"{path} imports {other}"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    above: dict[Path, set[Path]] = {path: set(imported(path)) for path in sources(*SIZED)}
    while bottom := {path for path, others in above.items() if not others & above.keys() - {path}}:
        above = {path: others for path, others in above.items() if path not in bottom}
    assert sorted(map(str, above)) == [], "these files import each other, or files that do"


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_does_no_input_or_output_and_reads_no_clock_and_has_no_dice(room: str) -> None:
    forbidden = {"socket", "threading", "time", "asyncio", "subprocess", "pathlib", "tempfile", "logging", "structlog"}
    forbidden |= {"os", "queue", "sqlite3", "sqlalchemy", "shutil", "secrets", "uuid", "open", "print", "input"}
    for path in sources(room):
        assert not roots(ast.walk(tree(path))) & forbidden, path
        called = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        assert not called & forbidden, path
        # They name the types of the dice and the dates that they are given; they throw and read none.
        assert not {name for name in called if name.startswith(("random.", "datetime.", "np.random."))}, path


@pytest.mark.parametrize("library", ["pika", "minio"])
def test_a_client_library_is_imported_in_one_module_only(library: str) -> None:
    users = [path for path in sources(*SIZED) if library in roots(ast.walk(tree(path)))]
    assert len(users) == 1, users
    assert users[0].parts[0] == "broker"


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that are loaded after running `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_line_loads_no_training_library() -> None:
    assert not loaded_by("import fledge.cli.app") & HEAVY


def test_fledge_itself_loads_no_training_library() -> None:
    assert not loaded_by("import fledge") & HEAVY


def test_aggregator_broker_protocol_and_deploy_load_no_training_library() -> None:
    modules = [
        ".".join(path.with_suffix("").parts)
        for path in sources("protocol", "broker", "aggregator", "deploy")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    loaded = loaded_by("\n".join(f"import {module}" for module in modules))
    assert {"protocol", "broker", "aggregator"} <= loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", sources(*SIZED), ids=str)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{path} has {lines} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


MAX_PARAMETERS = 6
LONG_SIGNATURES = {
    # what is written on the wire
    "protocol/envelope.py Sealer.__init__",
    # the contract of strategies, and the walk over streams that calls it: buffers are handed in, not made
    *("aggregator/strategy/base.py Strategy.merge", "aggregator/strategy/strategies.py FedBuff.merge"),
    *("aggregator/strategy/strategies.py FedAdam.merge", "aggregator/pipeline/merge.py merge"),
    # what users write, by keywords
    *("fledge/federation.py new_federation", "worker/api/trainer.py Control.__init__"),
    *("worker/trainers/monai_bundle.py bundle_trainer", "worker/trainers/torch.py TorchTrainer.__init__"),
    "worker/trainers/numpy.py EstimatorTrainer.__init__",
}
"""Who takes more than six, and may."""


@pytest.mark.parametrize("path", sources(*ALLOWED), ids=str)
def test_a_function_takes_at_most_six_arguments(path: Path) -> None:
    found = set()
    for owner in ast.walk(tree(path)):
        if not isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_command(node):
                continue
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([each for each in taken if each.arg not in ("self", "cls")]) > MAX_PARAMETERS:
                found.add(f"{path} {owner.name + '.' if isinstance(owner, ast.ClassDef) else ''}{node.name}")
    assert found <= LONG_SIGNATURES, found - LONG_SIGNATURES


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's arguments are the options of a command line."""
    return any("typer." in ast.unparse(each.annotation) for each in node.args.args if each.annotation is not None)


MAX_ANY = 40


def test_any_stands_only_where_a_foreign_library_has_no_type_and_says_so() -> None:
    found = [
        (path, node.lineno)
        for path in sources(*ALLOWED)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert len(found) <= MAX_ANY
    for path, number in found:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        assert "#" in lines[number - 1] or lines[number - 2].lstrip().startswith("#"), (
            f"{path}:{number} gives no reason"
        )


BOTH_SIDES = frozenset(
    {"Decisions", "Journal", "Publish", "Published", "Settle", "Snapshot", "UpdateRow", "UseRegistry"}
)
"""Names that aggregator and worker have for the same idea on their sides."""


def test_a_class_name_means_one_thing() -> None:
    owners: dict[str, list[Path]] = {}
    for path in sources(*ALLOWED):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in BOTH_SIDES:
                owners.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("path", sources(*SIZED), ids=str)
def test_no_shipped_code_asserts(path: Path) -> None:
    found = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    assert not found, f"{path}: assert in lines {found}; -O would drop the check, raise an error of the tree instead"


@pytest.mark.parametrize("path", sources(*SIZED), ids=str)
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(tree(path), str(path))) == []


@cache
def promised() -> frozenset[str]:
    """The methods that a Protocol or base class of ours describes: an implementation need not say it again."""
    return frozenset(
        child.name
        for path in sources(*SIZED)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and {"Protocol", "ABC"} & {*map(ast.unparse, node.bases)}
        for child in node.body
        if isinstance(child, ast.FunctionDef) and ast.get_docstring(child) is not None
    )


def undocumented(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    """Public classes, functions and methods below `node` without a docstring, and `node` itself."""
    if ast.get_docstring(node) is None:
        yield where
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{where}:{child.lineno} {child.name}")
        elif ast.get_docstring(child) is None and not excused(child, method=isinstance(node, ast.ClassDef)):
            yield f"{where}:{child.lineno} {child.name}"


def excused(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> bool:
    """Setters, overloads and implementations are documented where the property, function or Protocol is."""
    if any(ast.unparse(mark).endswith((".setter", "overload", "override")) for mark in function.decorator_list):
        return True
    return method and function.name in promised()


@pytest.mark.parametrize("package", ALLOWED)
def test_our_import_names_are_ours_alone(package: str) -> None:
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert {owner.lower().replace("_", "-") for owner in owners} <= {"fledge-fl"}
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == ROOT / package


# Put together from pieces, so that this file passes its own rules.
REGISTRIES = ["pypi" + ".org", "python" + "hosted", "npmjs" + ".", "conda" + ".anaconda", "download." + "pytorch"]
MACHINE_PATHS = re.compile(
    # What a container mounts over its own is nobody's machine: ":mode=" follows.
    "(?<![A-Za-z0-9_.])/(?:" + "|".join(["work", "tmp", "root", "home"]) + r")(?:/|\b(?![-/.\w]|:mode=))"
)


def test_no_file_names_a_package_registry() -> None:
    found = [f"{name}: {host}" for name, text in texts() for host in REGISTRIES if host in text]
    assert found == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("see /wor" + "k/x", True),
        ("'/tm" + "p/log'", True),
        ("/hom" + "e/me", True),
        ("http://host/tm" + "p", False),
        ("a/wor" + "k/b", False),
        ("/workers", False),
        ("/var/lib/fledge", False),
    ],
)
def test_the_rule_for_paths_means_what_it_says(line: str, bad: bool) -> None:
    assert bool(MACHINE_PATHS.search(line)) is bad


FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
PAGES = sorted(name for name in repository_files() if name.endswith(".md"))


OUR_FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join([*SIZED, 'tests'])})/[\w/]+\.py\b")
OUR_FOLDER = re.compile(r"`((?:aggregator|worker|protocol|tests|benchmarks)/[\w/]+)`")
OUR_MODULE = re.compile(rf"`({'|'.join(ALLOWED)})\.(\w+)(?=[.:]\w)(?!\S*\.example\b)")


@pytest.mark.parametrize("name", PAGES)
def test_every_path_named_in_documents_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = {*OUR_FILE.findall(text), *OUR_FOLDER.findall(text)}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    modules = {f"{package}/{module}" for package, module in OUR_MODULE.findall(text)}
    assert [path for path in modules if not ((ROOT / path).is_dir() or (ROOT / f"{path}.py").is_file())] == []


@pytest.mark.parametrize("name", PAGES)
def test_code_in_documents_parses(name: str) -> None:
    for language, code in FENCE.findall((ROOT / name).read_text(encoding="utf-8")):
        if language in ("python", "py"):
            ast.parse(code)
        elif language in ("sh", "bash", "console"):
            subprocess.run(["bash", "-n"], input=code, text=True, check=True, capture_output=True)
        elif language == "toml":
            tomllib.loads(code)
        elif language == "json":
            json.loads(code)
