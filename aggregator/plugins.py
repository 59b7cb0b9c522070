"""Find a rule by name: a dict of built-ins first, then the entry points of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from broker.settings import misfit
from protocol.errors import ConfigError

T = TypeVar("T")


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
