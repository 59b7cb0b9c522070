"""Values of an MMAR's configuration as what they have to be, or a sentence that says so."""

from __future__ import annotations

from typing import Any

from protocol.errors import ConfigError

Config = dict[str, Any]  # JSON from anywhere: only a look at a value says what it is
"""A mapping of an MMAR's or a bundle's configuration, or a component's arguments."""


def mapping(value: object, where: str) -> Config:
    """A mapping; nothing is an empty one.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is a {type(value).__name__}; it has to be a mapping")
    return value


def listed(value: object, where: str) -> list[object]:
    """A list; nothing is an empty one.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{where} is a {type(value).__name__}; it has to be a list")
    return value


def flag(value: object, where: str) -> bool:
    """True or false, perhaps written as a text; nothing is false.

    Raises:
        ConfigError: it is something else.
    """
    found = {"true": True, "false": False, "none": False}.get(str(value).lower())
    if found is None:
        raise ConfigError(f"{where} is {str(value)[:60]!r}; it has to be true or false")
    return found
