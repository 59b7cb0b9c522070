"""JSON in which nothing is said twice: of two values under one name people may read one and programs the other."""

from __future__ import annotations

import json
from collections.abc import Sequence


class SaidTwice(ValueError):
    """A name stands twice in one table; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} stands twice in one table")
        self.name = name


def loads(text: str | bytes) -> object:
    """The values of a JSON text.

    Raises:
        SaidTwice: a table has one name twice.
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    values: object = json.loads(text, object_pairs_hook=_table)
    return values


def _table(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise SaidTwice(name)
        found[name] = value
    return found
