"""Configuration of a site's worker: `worker.toml`. Paths are relative to the file."""

from __future__ import annotations

import filecmp
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

from broker.runtime.settings import TlsConfig, given_urls, read_toml
from protocol.codec import Value, Word
from protocol.errors import ConfigError, FledgeError
from protocol.messages import Named
from worker.api.trainer import Trainer
from worker.policy import SitePolicy, read_policy

_PUBLIC, _HOME = "fledge.trainers.", "worker.trainers."
"""How people name our trainers, and where they are."""

Options = dict[str, Any]  # TOML of the site's own: the factory that it is for looks at every value


class FilterConfig(BaseModel):
    """A privacy filter by name; every other key is one of its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Value]
    name: Word

    @property
    def parameters(self) -> dict[str, Value]:
        """The filter's own parameters; every update tells them, so they are what a message can say."""
        return dict(self.__pydantic_extra__ or {})


class RunOptions(BaseModel):
    """What this site gives the trainer of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    options: Options = {}
    """Arguments of the factory in the run's code, instead of `options` of the whole file."""


class WorkerConfig(BaseModel):
    """Who this site is, where the federation is, what it trains and what may leave it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    federation: Word
    site: str | None = None
    """Only checked: the name stands in the keys."""
    broker: str
    store: str
    keys: Path = Path("site.keys")
    registry: Path = Path("registry.bin")
    root: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=["64 hexadecimal digits"])]
    """The federation root's verify key, in hex."""
    state: Path = Path("state")
    trainer: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$", examples=["module:factory"])] | None = None
    """`module:factory`; the module is looked for beside the file too. Without it only runs that bring code train."""
    options: Options = {}
    """Arguments of the trainer's factory."""
    runs: dict[Word, RunOptions] = {}
    """For runs that bring code."""
    filters: tuple[FilterConfig, ...] = ()
    """Applied to every update in this order; an empty list is refused when the worker starts."""
    exclude: tuple[str, ...] = ()
    """Tensors that stay at the site: names, or patterns with `*`."""
    spool_mb: Annotated[int, Field(ge=1)] = 16_384
    cache_mb: Annotated[int, Field(ge=0)] = 16_384
    """MiB of published models kept as ciphertext, for stores that are not a directory; 0 keeps none."""
    heartbeat: Annotated[float, Field(ge=0.1, le=3600)] = 20.0
    """Seconds between signs of life."""
    insecure: bool = False
    """Lets `amqp:` and `s3:` be used without TLS to other machines; for tests on a closed network only."""
    tls: TlsConfig | None = None
    proxy: Annotated[str, Field(pattern=r"^https?://.", examples=["http://host:port"])] | None = None
    """An HTTP proxy for both connections; without it HTTPS_PROXY and NO_PROXY of the environment count."""
    access: Literal["credentials", "presigned"] = "credentials"
    """How the store lets the site in: by keys of its own, or by URLs that the aggregator grants."""
    policy: Path = Path("policy.toml")
    """What the hospital allows; without this file everything that the registry allows."""

    @property
    def chain(self) -> list[Named]:
        """The privacy filters as updates tell them."""
        return [Named(name=each.name, parameters=each.parameters) for each in self.filters]

    def options_of(self, run: str) -> Options:
        """The arguments of the factory in a run's code."""
        return self.runs[run].options if run in self.runs else self.options

    def __repr__(self) -> str:
        # Broker, store and proxy may hold passwords, and so may the trainer's options.
        return f"WorkerConfig(federation={self.federation!r}, trainer={self.trainer!r})"

    __str__ = __repr__


def read_config(path: Path, environment: Mapping[str, str] = os.environ) -> WorkerConfig:
    """Read and check `worker.toml`; FLEDGE_BROKER and FLEDGE_STORE in the environment come before its URLs.

    Raises:
        ConfigError: it is missing, not TOML, or a value is wrong; says which, never the value.
    """
    return read_toml(path, WorkerConfig, given_urls(environment))


def site_policy(config: WorkerConfig, base: Path) -> SitePolicy:
    """The site's policy; `base` is the directory of `worker.toml`.

    Raises:
        ConfigError: the file is wrong, or `worker.toml` names one that is not there.
    """
    return read_policy(base / config.policy, needed="policy" in config.model_fields_set)


def trainer_home(name: str) -> str:
    """`module:factory` with a trainer of ours by the module that it is defined in, however it was written."""
    return _HOME + name.removeprefix(_PUBLIC) if name.startswith(_PUBLIC) else name


def trainer_digest(name: str, beside: Path) -> str:
    """SHA-256, in hex, of the source file of the module that `module:factory` names; the module itself is not run.

    Of a trainer of ours it is the file that defines it, under both its names.

    Raises:
        ConfigError: there is no such file.
    """
    module = trainer_home(name).partition(":")[0]
    _look_beside(beside, module)
    try:
        spec = importlib.util.find_spec(module)
        source = Path(spec.origin or "") if spec is not None else Path()
        return hashlib.sha256(source.read_bytes()).hexdigest()
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(f"trainer {name!r}: there is no source file of {module} to check: {error}") from error


def _look_beside(directory: Path, module: str) -> None:
    resolved = str(directory.resolve())
    if resolved not in sys.path:
        sys.path.insert(0, resolved)
    top = module.partition(".")[0]
    meant = Path(resolved, f"{top}.py")
    if top not in sys.modules or not meant.is_file():
        return
    loaded = getattr(sys.modules[top], "__file__", None)
    if loaded is None or not filecmp.cmp(loaded, meant, shallow=False):  # sites of one process may share a module
        raise ConfigError(
            f"{meant} has the name of a module that is in use already ({loaded or 'of Python'}) and would never be "
            "loaded; call it something else, in trainer too"
        )


def load_trainer(name: str, options: Mapping[str, object], beside: Path) -> Trainer:
    """What the factory `module:factory` makes of `options`; modules in the directory `beside` come first.

    Raises:
        ConfigError: there is no such module or factory, it does not take these options, or it makes no trainer.
    """
    made = call_factory(name, options, beside)
    if not is_trainer(made):
        raise ConfigError(f"trainer {name!r} makes a {type(made).__name__}; return what has train and evaluate")
    return made


def is_trainer(made: object) -> TypeGuard[Trainer]:
    """Whether it has what every trainer has."""
    return all(callable(getattr(made, name, None)) for name in ("train", "evaluate"))


def find_factory(name: str, beside: Path) -> Callable[..., object]:
    """What `module:factory` names; modules in the directory `beside` come first.

    Raises:
        ConfigError: there is no such module, or it has no such factory.
    """
    module_name, _, factory_name = name.partition(":")
    _look_beside(beside, module_name)
    try:
        factory: Callable[..., object] = attrgetter(factory_name)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"trainer {name!r}: {error}; it has to be module:factory, and importable here") from error
    except SystemExit as error:  # a script, which would end the worker without a word
        raise ConfigError(
            f"trainer {name!r}: its module ends the program when it is imported (exit code {error.code}); put what "
            'only a script does below `if __name__ == "__main__":`'
        ) from error
    return factory


def call_factory(name: str, options: Mapping[str, object], beside: Path) -> object:
    """Likewise, called: whatever it makes, a trainer or the model that a run begins with.

    Raises:
        ConfigError: there is no such factory, or it does not take these options.
    """
    factory = find_factory(name, beside)
    try:
        return factory(**options)
    except FledgeError:
        raise
    except Exception as error:  # the site's own code: whatever it finds wrong, its options are where to look
        told = f"trainer {name!r} with options {sorted(options)}: {type(error).__name__}: {error}"
        raise ConfigError(f"{told}; look at trainer and [options] in worker.toml") from error
