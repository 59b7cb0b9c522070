"""Strategies that a run brings as code: executed only if the hub's operator has allowed that code by its digest.

`[strategy] name = "module:Class"` names a class in the run's code, the archive that its sites train with. Its modules
are imported from memory, below a package that is named after the digest: they find each other by relative imports
(`from .median import median`), and can neither hide nor replace a module of anybody else.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from aggregator.strategy.base import Strategy
from aggregator.strategy.strategies import strategy, strategy_from
from broker.runtime.code_archive import read_archive
from broker.runtime.folders import private_folder, sync_folder
from broker.runtime.plugins import FAILURES
from protocol import limits
from protocol.errors import ConfigError, StateError, WireError

_NAME = r"[A-Za-z]\w*"
_ENTRY = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})", re.ASCII)
_PACKAGE = "fledge_run_code_"
_loading = threading.RLock()


def is_brought(name: str) -> bool:
    """Whether a strategy's name means a class in the run's own code."""
    return ":" in name


class StrategyCode:
    """The code of runs that bring their strategy, kept by digest in a directory of the hub's state."""

    def __init__(self, directory: Path | None = None, allowed: Iterable[str] = ()) -> None:
        """`allowed`: SHA-256 digests in hex; without a directory nothing that a run brings is taken."""
        self._directory = directory
        self._allowed = frozenset(allowed)

    def keep(self, name: str, code: bytes) -> None:
        """Keep a run's archive, durable on return, if the strategy of this name is in it.

        Raises:
            ConfigError: the run brings no code, or the hub has not allowed it.
            StateError: it cannot be written.
        """
        if not is_brought(name):
            return
        path = self._path(name, hashlib.sha256(code).digest() if code else None)
        unfinished = path.with_suffix(".unfinished")
        try:
            private_folder(path.parent)
            with unfinished.open("wb") as file:
                file.write(code)
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            sync_folder(path.parent)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror or error}; the run's strategy could not be kept") from error

    def strategy(self, name: str, parameters: Mapping[str, object], bundle: bytes | None) -> Strategy:
        """Make a run's strategy; `bundle` is the SHA-256 of the run's code.

        Raises:
            ConfigError: there is no such strategy, it does not take these parameters, or its code is not allowed.
            StateError: its code is not here.
        """
        if not is_brought(name):
            return strategy(name, **parameters)
        path = self._path(name, bundle)
        try:
            with path.open("rb") as file:
                code = file.read(limits.CODE + 1)
        except OSError:
            code = b""
        if hashlib.sha256(code).digest() != bundle:
            raise StateError(
                f"the run's strategy {name!r} is code that is not here, or was changed: {path} has to be the archive "
                "with that SHA-256; put it back, because versions are made, replayed and audited with it alone"
            )
        return strategy_in(code, name, parameters)

    def _path(self, name: str, bundle: bytes | None) -> Path:
        if bundle is None:
            raise ConfigError(f"strategy {name!r} names a class in the run's code, and the run brings no code")
        if bundle.hex() not in self._allowed or self._directory is None:
            raise ConfigError(
                f"strategy {name!r} is code of the run, which this hub has not allowed; whoever runs the hub looks at "
                f'it first, and then adds "{bundle.hex()}" to allow_strategy_code in aggregator.toml'
            )
        return self._directory / f"{bundle.hex()}.zip"


NO_CODE = StrategyCode()
"""A hub that takes no strategies from runs."""


def strategy_in(code: bytes, name: str, parameters: Mapping[str, object]) -> Strategy:
    """Make the strategy `module:Class` of an archive; this executes its code.

    Raises:
        ConfigError: there is none, it fails when it is imported, or it is no complete strategy.
    """
    entry = _ENTRY.fullmatch(name)
    if entry is None:
        raise ConfigError(f'strategy {name!r}: write the class in the run\'s code as "module:Class"')
    package = _PACKAGE + hashlib.sha256(code).hexdigest()
    with _loading:
        try:
            module = _imported(package, entry[1], code)
        except WireError as error:
            raise ConfigError(f"strategy {name!r}: {error}") from error
        except FAILURES as error:
            _forget(package)
            raise ConfigError(
                f"strategy {name!r}: the run's code gives no {entry[1]}: {type(error).__name__}: {error}; its modules "
                "find each other as `from .other import …`"
            ) from error
    kind: object = vars(module).get(entry[2])  # not by attribute: a module may answer for one with code
    if not _is_strategy(kind) or (kind.__module__, kind.__name__) != (module.__name__, entry[2]):
        _forget(package)  # what is refused stays nowhere: a module may answer with code whoever looks at it
        raise ConfigError(f"strategy {name!r}: {entry[1]} defines no class {entry[2]} derived from fledge.Strategy")
    return strategy_from(kind, name, parameters)


def _is_strategy(kind: object) -> TypeGuard[type[Strategy]]:
    return isinstance(kind, type) and issubclass(kind, Strategy)


def _imported(package: str, module: str, code: bytes) -> ModuleType:
    if package not in sys.modules:
        sources = {parts: data for parts, data in read_archive(code) if parts[-1].endswith(".py")}
        if not sources:
            raise ImportError("it has no Python files")
        sys.meta_path.append(_Modules(package, sources))
    return importlib.import_module(f"{package}.{module}")


def _forget(package: str) -> None:
    """Let the next attempt begin anew."""
    sys.meta_path[:] = [each for each in sys.meta_path if getattr(each, "package", None) != package]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


class _Modules(MetaPathFinder, InspectLoader):
    """Imports the modules of one archive, from memory, below one package."""

    def __init__(self, package: str, sources: Mapping[tuple[str, ...], bytes]) -> None:
        """`sources` by the parts of their paths; folders are packages, with an `__init__.py` or without."""
        self.package = package
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module, if it is one of ours."""
        first, *parts = fullname.split(".")
        if first != self.package or not (self._is_folder(parts) or self._path(parts) in self._sources):
            return None
        return spec_from_loader(fullname, self, origin=f"<the run's code>/{'/'.join(parts)}")

    def is_package(self, fullname: str) -> bool:
        """Whether it holds others."""
        return self._is_folder(fullname.split(".")[1:])

    def get_source(self, fullname: str) -> str:
        """Its text; empty for a folder without `__init__.py`."""
        # Always as UTF-8, which is how it was looked at: by a line about its encoding comments could turn into code.
        return self._sources.get(self._path(fullname.split(".")[1:]), b"").decode("utf-8-sig")

    def _is_folder(self, parts: Sequence[str]) -> bool:
        depth = len(parts)
        return any(len(each) > depth and list(each[:depth]) == list(parts) for each in self._sources)

    def _path(self, parts: Sequence[str]) -> tuple[str, ...]:
        if self._is_folder(parts):
            return (*parts, "__init__.py")
        return (*parts[:-1], f"{parts[-1]}.py")
