"""The figures that may leave a site, as they lie there and as an operator gets them: words and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypeGuard

from protocol.errors import ConfigError
from worker.policy import private_name
from worker.statistics.figures import MIN_CELL, PATIENTS, WITHHELD, Value

STATISTICS = "statistics.json"
LIMIT = 32 * 1024
"""Bytes of a document."""
FIGURES = 512
_LARGEST = 1e15
_FEW = re.compile(r"(?:all but )?<[1-9][0-9]{1,5}", re.ASCII)


def document(figures: Mapping[str, Value]) -> dict[str, object]:
    """A document of these figures, to be written as JSON.

    Raises:
        ConfigError: they are not fit to leave a site.
    """
    table = {"version": 1, "figures": check(figures)}
    if (size := len(json.dumps(table))) > LIMIT:
        raise ConfigError(f"the figures take {size} bytes, and {LIMIT} may leave the site; name fewer classes")
    return table


def load(raw: bytes) -> dict[str, Value]:
    """The figures of a document.

    Raises:
        ConfigError: it is none, or holds what may not leave a site.
    """
    try:
        if len(raw) > LIMIT:
            raise ValueError
        table = json.loads(raw)
        if table["version"] != 1:
            raise ValueError
        return check(table["figures"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError("the figures are damaged; have `fledge data stats --share` write them again") from error


def columns(figures: Mapping[str, Value]) -> dict[str, tuple[Value, ...]]:
    """The figures as a table of an answer."""
    return {"figure": tuple(figures), "value": tuple(figures.values())}


def from_columns(values: Mapping[str, object]) -> dict[str, Value]:
    """The figures in an answer.

    Raises:
        ConfigError: there is something else in it.
    """
    names, found = values.get("figure"), values.get("value")
    if values.keys() != {"figure", "value"} or not isinstance(names, tuple) or not isinstance(found, tuple):
        raise ConfigError("the site's answer is no table of figures; its software may be another version")
    if len(names) != len(found) or len(set(names)) != len(names):
        raise ConfigError("the site's table of figures does not fit together; ask again")
    return check(dict(zip(names, found, strict=True)))


def check(figures: Mapping[str, object]) -> dict[str, Value]:
    """The same figures, if every name is a word and every value a number or says that there are too few.

    Raises:
        ConfigError: one is something else, or counts fewer patients than may be told.
    """
    least = figures.get("min_cell")
    if not isinstance(least, int) or isinstance(least, bool) or least < MIN_CELL or len(figures) > FIGURES:
        raise ConfigError(
            f"figures need a min_cell of at least {MIN_CELL}, and are at most {FIGURES}; share them again"
        )
    fit: dict[str, Value] = {}
    for name, value in figures.items():
        if not isinstance(name, str) or private_name(name) or not _is_value(value) or _is_few(name, value, least):
            raise ConfigError(
                "a figure is not what may leave a site; have `fledge data stats --share` write them again"
            )
        fit[name] = value
    return fit


def check_names(figures: Mapping[str, Value]) -> None:
    """Let names of classes leave a site that at least one number goes with.

    Raises:
        ConfigError: every class is suppressed; a folder for each patient has made classes of patients.
    """
    counts = [value for name, value in figures.items() if f"{name}.".startswith(f"{PATIENTS}.")]
    if len(counts) > 1 and not any(isinstance(value, int) for value in counts):
        raise ConfigError(
            "no class has enough patients to be told of, and names of classes do not leave the site by themselves: "
            "they may be those of patients, whose folders were taken for classes"
        )


def check_change(before: Mapping[str, Value], now: Mapping[str, Value]) -> None:
    """Let new figures replace old ones unless their difference would tell of a few patients.

    Raises:
        ConfigError: there are a few patients more, or fewer, or others in their place.
    """
    least = now["min_cell"]
    counts = [name for name in before if f"{name}.".startswith(f"{PATIENTS}.")]  # of all, and of each class
    told = before.keys() & now.keys() - {"min_cell", *counts}
    for name in counts:
        old, new = before[name], now.get(name)
        if isinstance(old, int) and isinstance(new, int) and isinstance(least, int) and 0 < abs(new - old) < least:
            raise ConfigError(
                f"{new} {name} now and {old} when figures were last shared: whoever has both could work out what the "
                f"few between them are like; share again once there are {least} more"
            )
    if all(before[name] == now.get(name) for name in counts) and any(before[name] != now[name] for name in told):
        raise ConfigError(
            "as many patients as when figures were last shared, and other figures: had a few been exchanged, whoever "
            f"has both could work out what these are like; if it was not that, remove {STATISTICS} where it lies first"
        )


def _is_few(name: str, value: object, least: int) -> bool:
    return f"{name}.".startswith(f"{PATIENTS}.") and isinstance(value, int | float) and value < least


def _is_value(value: object) -> TypeGuard[Value]:
    if isinstance(value, str):
        return value == WITHHELD or _FEW.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
