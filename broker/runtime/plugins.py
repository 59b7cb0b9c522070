"""What installed packages may add to fledge: built-ins are a dict, those of other packages are entry points."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Any, Generic, TypeVar

from broker.runtime.settings import misfit
from protocol.errors import ConfigError, FledgeError

T = TypeVar("T")
FAILURES = (Exception, SystemExit)
"""What others' code may raise: an exit, too, which must neither end a program nor end a thread's work in silence."""


def whole(rule: str, name: str, value: object, least: int, most: int) -> None:
    """Check that a rule's parameter is a whole number within bounds.

    Raises:
        ConfigError: it is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{rule}: {name} must be a whole number from {least} to {most}")


def real(rule: str, name: str, value: object, least: float, most: float) -> None:
    """Check that a rule's parameter is a number above `least`, and at most `most`.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value <= most:
        raise ConfigError(f"{rule}: {name} must be a number above {least:g} and at most {most:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """Something that was found by its name."""

    made_by: Callable[..., Any]  # a stranger's factory; its signature is looked at before it is called
    """What the name stands for: a class, a function, or whatever else the kind of plug-in asks for."""
    told: str
    """The name as errors say it; for what others brought, with the entry point and its package."""
    builtin: bool


@dataclass(frozen=True)  # with slots as well, Python 3.11 cannot make a generic one
class ExtensionPoint(Generic[T]):
    """One kind of thing that packages may add to."""

    group: str
    """The entry-point group in which they register."""
    kind: str
    """How errors call one of them."""
    builtins: Mapping[str, Callable[..., T]]
    """Ours; no other package may use these names."""

    def names(self) -> list[str]:
        """All there are on this machine."""
        return sorted({*self.builtins, *_offered(self.group, tuple(sys.path)).by_name})

    def find(self, name: str) -> Plugin | None:
        """What this name stands for; None if it is not registered.

        Raises:
            ConfigError: several packages registered it, one took a built-in's name, or it cannot be loaded.
        """
        offers = _offered(self.group, tuple(sys.path)).by_name.get(name, ())
        if name in self.builtins:
            if offers:
                raise ConfigError(
                    f"{self.kind} {name!r} is fledge's own, and {_named(offers[0])} registers the same name; "
                    "uninstall that package, or have it choose another name"
                )
            return Plugin(made_by=self.builtins[name], told=f"{self.kind} {name!r}", builtin=True)
        if not offers:
            return None
        told = f"{self.kind} {name!r} ({_named(offers[0])})"
        if len(offers) > 1:
            raise ConfigError(f"{told} is registered by {_named(offers[1])} too; uninstall one of the two")
        try:
            found = offers[0].load()
        except FAILURES as error:
            raise ConfigError(f"{told} cannot be loaded: {type(error).__name__}: {error}") from error
        return Plugin(made_by=found, told=told, builtin=False)

    def build(self, name: str, parameters: Mapping[str, object]) -> T:
        """Make the one called `name` with `parameters`.

        Raises:
            ConfigError: the name is not registered, or it does not take these parameters.
        """
        plugin = self.find(name)
        if plugin is None:
            known = f"known: {', '.join(self.names())}"
            unread = "".join(f"; {why}" for why in _offered(self.group, tuple(sys.path)).unread)
            raise ConfigError(f"there is no {self.kind} called {name!r}; {known}{unread}")
        made: T = make(plugin, parameters)
        return made


def make(plugin: Plugin, parameters: Mapping[str, object]) -> Any:  # whoever asked for it knows what it is
    """Call what was found with `parameters`, once its signature takes them.

    Raises:
        ConfigError: it does not take them, or what others brought failed.
    """
    factory = plugin.made_by
    if not callable(factory):
        raise ConfigError(f"the {plugin.told} is a {type(factory).__name__}; it has to be a class or a function")
    if lacking := sorted(getattr(factory, "__abstractmethods__", ())):
        raise ConfigError(f"the {plugin.told} is not complete: it lacks {', '.join(lacking)}")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # one that does not tell what it takes
        signature = None
    if signature is not None:
        try:
            signature.bind(**parameters)
        except TypeError as error:
            said = misfit(error, signature.parameters, parameters)
            raise ConfigError(f"the {plugin.told} cannot be set up: {said}") from error
    # Lists and tables are its own: what it does to them must not alter what was configured, is kept and is signed.
    own = {name: deepcopy(value) if isinstance(value, list | dict) else value for name, value in parameters.items()}
    try:
        return factory(**own)
    except FledgeError:
        raise
    except FAILURES as error:
        if plugin.builtin:
            raise
        raise ConfigError(f"the {plugin.told} cannot be set up: {type(error).__name__}: {error}") from error


def _named(entry: EntryPoint) -> str:
    package = f" of {_package(entry.dist)}" if entry.dist is not None else ""
    return f"entry point {entry.name} = {entry.value}{package}"


def _package(dist: Distribution) -> str:
    name: str | None
    try:
        name = dist.name
    except Exception:  # its metadata is not UTF-8, for example
        name = None
    return f"the package {name}" if name else f"a package without a name in {dist.locate_file('')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offers:
    """What the packages of this machine register in one group."""

    by_name: Mapping[str, tuple[EntryPoint, ...]]
    unread: tuple[str, ...]
    """Whose lists cannot be read, and why."""


# Reading every installed package's list takes tens of milliseconds, and a replay asks for its strategy often.
@lru_cache(maxsize=64)
def _offered(group: str, path: tuple[str, ...]) -> _Offers:
    """The entry points of a group by name, as the packages on `path` (`sys.path`) have them."""
    unread: list[str] = []
    try:
        entries = list(entry_points(group=group))
    except Exception:  # one package's broken list is no reason to do without those of all others
        entries = list(_one_by_one(group, unread))
    offers: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entries:
        same = offers.get(entry.name, ())
        if all(_named(each) != _named(entry) for each in same):
            offers[entry.name] = (*same, entry)  # an editable installation can list one twice
    return _Offers(by_name=offers, unread=tuple(unread))


def _one_by_one(group: str, unread: list[str]) -> Iterator[EntryPoint]:
    for dist in distributions():
        try:
            yield from dist.entry_points.select(group=group)
        except Exception as error:
            unread.append(f"the entry points of {_package(dist)} cannot be read ({type(error).__name__}: {error})")
