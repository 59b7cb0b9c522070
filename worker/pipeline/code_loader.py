"""Trainers out of deployed code: found in its folder, made on the training thread, one bundle's at a time.

Modules of one bundle must never be found by another's `import`, nor by the site's own trainer: while a bundle is in
use its folder comes first on `sys.path` and modules of the same names that others loaded are set aside; afterwards all
that came from its folder is taken out of `sys.modules` again. Several workers in one process load one after the other;
what their trainers import only while they train they find in whichever bundle was loaded last.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from protocol.errors import ConfigError, FledgeError, TrainingError, Unauthorized
from worker.api.trainer import Trainer
from worker.intake import Reader
from worker.policy import SitePolicy
from worker.storage.code_store import CodeStore

FACTORY = "trainer:trainer"
"""What is called, `module:function`, of code whose run names no other as `trainer` in its task."""
HOUSE = frozenset(
    {
        *("protocol", "broker", "worker", "aggregator", "deploy", "fledge"),
        *("nacl", "msgpack", "pika", "minio", "urllib3", "pydantic", "structlog", "sqlalchemy", "cryptography"),
        *("numpy", "torch", "monai", "ignite", "psutil", "yaml", "typer", "rich"),
    }
)
"""What the worker itself is made of: code that hid one of these would break the site, by accident or not."""
_NAME = r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*"
_ENTRY = re.compile(f"{_NAME}:{_NAME}", re.ASCII)
_MODULES = (".py",)
_loading = threading.RLock()
"""Held by the thread that changes what this process imports from where."""
_bases: set[Path] = set()
"""The directories of deployed code of all workers in this process."""

Options = Callable[[str], Mapping[str, object]]
"""The options that the site gives a run's trainer."""


def no_options(run: str) -> Mapping[str, object]:
    """The options of a site that gives none."""
    return {}


def may_bring_code(reader: Reader, run: str) -> None:
    """Let a run bring code of its own, if the registry's rules for this site do.

    Raises:
        Unauthorized: they do not.
    """
    site = reader.identity.name
    if not reader.registry.rights.rule(site, "allow_byoc"):
        raise Unauthorized(
            f"run {run} contains custom code, which is not allowed on site {site}; "
            "whoever signs the registry would have to set allow_byoc for the site's organisation",
            "byoc_not_allowed",
        )


class CodeLoader:
    """The trainer of the deployed code in use; belongs to the training thread, and at the end to its closer."""

    def __init__(self, codes: CodeStore, reader: Callable[[], Reader], policy: SitePolicy, options: Options) -> None:
        self._codes = codes
        self._base = codes.directory.resolve()
        _bases.add(self._base)
        self._reader = reader
        self._policy = policy
        self._options = options
        self._used: tuple[str, bytes, str] | None = None
        self._trainer: Trainer | None = None
        self._entered = False
        self._aside: dict[str, ModuleType] = {}

    def options(self, run: str) -> Mapping[str, object]:
        """The options that the site gives a run's trainer."""
        return self._options(run)

    def trainer(self, run: str, code: bytes, task: Mapping[str, object]) -> Trainer:
        """The trainer of a run, made by the code with this digest; kept until another one is wanted.

        Raises:
            Unauthorized: code may not be brought here any more.
            ConfigError: the site's policy does not list it, or the site's options are not what it takes.
            CodeLost: the site no longer holds it.
            TrainingError: it does not load.
        """
        may_bring_code(self._reader(), run)
        self._policy.check_code(code.hex())
        wanted = (run, code, _entry(run, task))
        if self._trainer is not None and self._used == wanted:
            return self._trainer
        with _loading:
            self.put_away()
            try:
                made = self._made(*wanted)
            except BaseException:
                self.put_away()
                raise
            self._trainer, self._used = made, wanted
            return made

    def folder(self, run: str, code: bytes) -> Path:
        """The folder of a run's code, from where imports are found from now on; nothing of it is run.

        Raises:
            FledgeError: as `trainer`.
        """
        may_bring_code(self._reader(), run)
        self._policy.check_code(code.hex())
        with _loading:
            self.put_away()
            folder = self._codes.unpacked(code)
            self._enter(folder, run)
        return folder

    def put_away(self) -> None:
        """Drop the trainer in use, so that nothing of its code is found by others."""
        if not self._entered:
            return
        with _loading:
            self._trainer = self._used = None
            forget_code(self._base)
            for name, module in self._aside.items():
                sys.modules.setdefault(name, module)
            self._aside.clear()
            self._entered = False
            importlib.invalidate_caches()
        gc.collect()  # a trainer's model and its optimizer hold each other, and may fill an accelerator

    def _made(self, run: str, code: bytes, entry: str) -> Trainer:
        modules = self._enter(self._codes.unpacked(code), run)
        # Before anything is imported: a task must not make the site load whatever lies on its machine.
        if entry.partition(":")[0].partition(".")[0] not in modules:
            raise TrainingError(f"the code of run {run} has no module for {entry}")
        return self._make(run, code, entry)

    def _enter(self, folder: Path, run: str) -> frozenset[str]:
        """Let modules come from a folder first; returns the names of those it has."""
        names = frozenset(
            path.name.partition(".")[0] for path in folder.iterdir() if path.is_dir() or path.suffix in _MODULES
        )
        hidden = names & (HOUSE | sys.stdlib_module_names)
        if hidden:
            raise TrainingError(f"the code of run {run} would hide the module {min(hidden)!r}; call it something else")
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            module = sys.modules.pop(name)
            if not any(_lies_in(module, base) for base in _bases):
                self._aside[name] = module
        self._entered = True
        sys.path.insert(0, str(folder.resolve()))
        importlib.invalidate_caches()
        return names

    def _make(self, run: str, code: bytes, entry: str) -> Trainer:
        module_name, _, factory_name = entry.partition(":")
        options = dict(self._options(run))
        try:
            module = importlib.import_module(module_name)
            factory: object = module
            for part in factory_name.split("."):
                factory = getattr(factory, part)
            home = sys.modules.get(str(getattr(factory, "__module__", "")))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise TrainingError(f"the code of run {run} gives no {entry}: {told}") from error
        folder = self._base / code.hex()
        if not _lies_in(module, folder) or not _lies_in(home, folder):  # not what it only imports, such as os.fork
            raise TrainingError(f"the code of run {run} does not define {entry}; it names something else")
        if not callable(factory):
            raise TrainingError(f"{entry} of run {run} is a {type(factory).__name__}; it has to make a trainer")
        _check_options(run, factory, options)
        try:
            made: Trainer = factory(**options)
        except FledgeError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise TrainingError(f"{entry} of run {run} with options {sorted(options)}: {told}") from error
        return made


def _entry(run: str, task: Mapping[str, object]) -> str:
    named = task.get("trainer", FACTORY)
    if not isinstance(named, str) or not _ENTRY.fullmatch(named):
        raise TrainingError(f"the task of run {run} sets trainer to something other than module:factory")
    return named


def _check_options(run: str, factory: Callable[..., Trainer], options: Mapping[str, object]) -> None:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        given = f"the options {sorted(options)}" if options else "no options at all"
        raise ConfigError(
            f"the trainer of run {run} was given {given}, and cannot be called so: {error}; "
            f'correct [options] in worker.toml, or write [runs."{run}".options]'
        ) from error
    except ValueError:  # a factory that does not tell what it takes
        return


def forget_code(directory: Path) -> None:
    """Let nothing more be imported from folders below `directory`, nor what was be taken for another's."""
    sys.path[:] = [entry for entry in sys.path if not _below(entry, directory)]
    for name in [name for name, module in list(sys.modules.items()) if _lies_in(module, directory)]:
        del sys.modules[name]


def _lies_in(module: object, directory: Path) -> bool:
    names = getattr(module, "__dict__", {})  # not by attribute: some modules load others when they are asked
    places = [names.get("__file__"), *_listed(names.get("__path__"))]
    return any(isinstance(place, str) and _below(place, directory) for place in places)


def _listed(paths: object) -> list[object]:
    try:
        return list(paths) if isinstance(paths, Iterable) else []
    except Exception:  # foreign objects in `sys.modules`
        return []


def _below(place: str, directory: Path) -> bool:
    return place.startswith(f"{directory}/")
