"""Find a rule by name: a dict of built-ins first, then the entry points of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from broker.runtime.settings import misfit
from protocol.errors import ConfigError

T = TypeVar("T")


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


def build(group: str, builtins: Mapping[str, Callable[..., T]], name: str, parameters: Mapping[str, object]) -> T:
    """Make the rule called `name` with `parameters`.

    Args:
        group: the entry-point group third parties register in; its last word names the kind of rule in errors.

    Raises:
        ConfigError: nobody registered the name, or the rule does not take these parameters.
    """
    kind = group.rpartition(".")[2]
    factory: Callable[..., T] | None = builtins.get(name)
    if factory is None:
        others = entry_points(group=group)
        if name not in others.names:
            known = ", ".join(sorted({*builtins, *others.names}))
            raise ConfigError(f"there is no {kind} rule called {name!r}; known: {known}")
        factory = others[name].load()
    signature = inspect.signature(factory)
    try:
        signature.bind(**parameters)
    except TypeError as error:
        said = f"the {kind} rule {name!r} cannot be set up"
        raise ConfigError(f"{said}: {misfit(error, signature.parameters, parameters)}") from error
    return factory(**parameters)
