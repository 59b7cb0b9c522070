"""The user's own training code: found, called with a seed, and what goes wrong in it told with file and line."""

from __future__ import annotations

import inspect
import os
import random
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.net.redact import redacted
from fledge.process.terminal import clean
from protocol.errors import ConfigError, FledgeError
from worker.api.trainer import Trainer
from worker.config import find_factory, is_trainer
from worker.trainers.initial import HasModel

_OURS = ("protocol", "broker", "aggregator", "worker", "deploy", "fledge")
_HOME = Path(__file__).resolve().parents[2]
_LONGEST = 400
_CUSTOMARY = ("data", "dataset_dir", "data_dir", "folder", "path")
"""What factories call the place of their data."""


@dataclass(frozen=True, slots=True)
class Source:
    """A factory of trainers, `module:factory`, in one's own code."""

    name: str
    factory: Callable[..., object]
    shown: str
    """Where it is defined, `file:line`, as errors say it; of a bundle, its folder."""
    title: str = ""
    """What people call it; by default its name."""

    @classmethod
    def find(cls, name: str) -> Source:
        """Import it; modules of the present folder come first.

        Raises:
            ConfigError: there is none, or its module does not load.
        """
        module, colon, factory = name.partition(":")
        if not (module and colon and factory):
            raise ConfigError(f"{name!r}: write your training code as module:factory, for example mytask:trainer")
        seeded(0)  # a module may throw dice when it is imported
        try:
            found = find_factory(name, Path.cwd())
        except BaseException as error:
            cause = error.__cause__ if isinstance(error, ConfigError) else error
            if isinstance(cause, KeyboardInterrupt):
                raise
            if isinstance(cause, ModuleNotFoundError) and cause.name == module.partition(".")[0]:
                raise ConfigError(
                    f"there is no {cause.name}.py in {Path.cwd()}; go to the folder where your code lies, or write it"
                ) from None
            missing = isinstance(cause, AttributeError) and _users_line(cause) is None
            if cause is None or missing or isinstance(cause, SystemExit):
                raise
            raise ConfigError(f"{module} does not load: {told(cause, module)}") from error
        if not callable(found):
            raise ConfigError(f"{name} is a {type(found).__name__}; it has to be a function that makes a trainer")
        return cls(name, found, _defined_at(found, module), name)

    def data_parameter(self, options: Mapping[str, object]) -> str | None:
        """The argument that names the data, if these options leave one open; None: it takes none.

        Raises:
            ConfigError: several are open, and none is called as is customary.
        """
        known = self._parameters()
        for name in _CUSTOMARY:
            if name in known and name not in options:
                return name
        needed = [name for name, each in known.items() if name not in options and each.default is each.empty]
        if len(needed) > 1:
            raise ConfigError(
                f"{self.name} takes {', '.join(known)}, and which of them is the data cannot be told; call it data, "
                "and give the others by --option NAME=VALUE"
            )
        return needed[0] if needed else None

    def needs(self, options: Mapping[str, object]) -> list[str]:
        """Arguments without a default that these options do not give."""
        known = self._parameters()
        return [name for name, each in known.items() if name not in options and each.default is each.empty]

    def make(self, options: Mapping[str, object], seed: int) -> Trainer:
        """Call the factory; its dice follow from the seed.

        Raises:
            ConfigError: it does not take these options, fails, or makes no trainer that offers its model.
        """
        try:
            inspect.signature(self.factory).bind(**options)
        except TypeError as error:
            raise ConfigError(f"{self.name} does not take the options {sorted(options)}: {error}") from error
        except ValueError:  # one that does not tell what it takes
            pass
        seeded(seed)
        try:
            made = self.factory(**options)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{self.name} makes no trainer: {told(error, self.shown)}") from error
        if not is_trainer(made):
            raise ConfigError(
                f"{self.name} makes a {type(made).__name__} ({self.shown}); return a trainer, such as "
                "fledge.TorchTrainer(model, dataset, loss)"
            )
        if not isinstance(made, HasModel):
            raise ConfigError(
                f"{self.name} makes a {type(made).__name__} that does not offer its model ({self.shown}); give it "
                "`spec` and `initial()`, or use fledge.NumpyTrainer"
            )
        return made

    def _parameters(self) -> dict[str, inspect.Parameter]:
        try:
            found = inspect.signature(self.factory).parameters.values()
        except (TypeError, ValueError):
            return {}
        collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {each.name: each for each in found if each.kind not in collecting}


def seeded(seed: int) -> None:
    """Throw the dice of random, numpy and torch anew; torch is not loaded for it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # what libraries draw from that are not given a generator
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)


def told(error: BaseException, where: str) -> str:
    """What went wrong, in one sentence, and the line of the user's own code that it happened in, or else `where`."""
    origin: BaseException | None = error
    while origin is not None:
        if (line := _users_line(origin)) is not None:
            where = line
            break
        origin = origin.__cause__
    words = clean(redacted(" ".join(str(error).split()))) or "no reason given"
    words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]} …"
    kind = "" if isinstance(error, FledgeError) else f"{type(error).__name__}: "
    return f"{where}: {kind}{words}"


def _users_line(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if _is_users(each.filename)]
    return f"{_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else None


def _is_users(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(os.path.realpath(file))
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    if path.is_relative_to(_HOME) and path.relative_to(_HOME).parts[0] in _OURS:
        return False
    return not path.is_relative_to(os.path.realpath(sysconfig.get_path("stdlib")))


def _short(file: str) -> str:
    path = Path(os.path.realpath(file))
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _defined_at(found: object, module: str) -> str:
    plain = inspect.unwrap(found) if callable(found) else found
    code = getattr(plain, "__code__", None)
    if code is None:
        return module
    return f"{_short(code.co_filename)}:{code.co_firstlineno}"
