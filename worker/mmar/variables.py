"""`{NAME}` in an MMAR's configuration, put in by plain replacement: nothing is evaluated, and it always ends."""

from __future__ import annotations

import re
from collections.abc import Mapping

from protocol.errors import ConfigError
from worker.mmar.values import Config

_NAME = re.compile(r"\{([A-Za-z_]\w*)\}")
_LONGEST = 64 * 1024
_ALTOGETHER = 4 * 1024 * 1024
Scalar = str | int | float | bool | None


class Variables:
    """What names stand for; a value may name others in turn."""

    def __init__(self, values: Mapping[str, object]) -> None:
        """`values`: single values and lists of numbers count; anything else is no variable."""
        self._values = {name: value for name, value in values.items() if _usable(value)}
        self._known: dict[str, object] = {}
        self._left = _ALTOGETHER

    def put_in(self, value: object) -> object:
        """A value with every `{NAME}` replaced; a text that is nothing but a name takes the value's type.

        Raises:
            ConfigError: a name stands for nothing or for itself, or what it stands for is absurdly long.
        """
        if isinstance(value, str):
            return self._text(value, ())
        if isinstance(value, list):
            return [self.put_in(each) for each in value]
        if isinstance(value, dict):
            return self.filled(value)
        return value

    def filled(self, config: Mapping[str, object]) -> Config:
        """A whole configuration, likewise."""
        return {name: self.put_in(each) for name, each in config.items()}

    def _text(self, text: str, above: tuple[str, ...]) -> object:
        if whole := _NAME.fullmatch(text):
            value = self._value(whole[1], above)
            self._charge(len(value) if isinstance(value, str | list) else 1)
            return value
        pieces, length, end = [], 0, 0
        for found in _NAME.finditer(text):
            pieces += [text[end : found.start()], str(self._value(found[1], above))]
            length, end = length + len(pieces[-1]) + len(pieces[-2]), found.end()
            _bounded(length, text)
        self._charge(length)
        return "".join([*pieces, text[end:]])

    def _charge(self, length: int) -> None:
        if (left := self._left - length) < 0:
            raise ConfigError(f"the configuration becomes longer than {_ALTOGETHER} characters; shorten its variables")
        self._left = left

    def _value(self, name: str, above: tuple[str, ...]) -> object:
        if name in above:
            circle = " → ".join([*above[above.index(name) :], name])
            raise ConfigError(f"{{{name}}} stands for itself ({circle}); give one of them a value in environment.json")
        if name not in self._values:
            raise ConfigError(f"{{{name}}} stands for nothing; set {name} in environment.json or with --set {name}=…")
        if name not in self._known:
            value = self._values[name]
            found = self._text(value, (*above, name)) if isinstance(value, str) else value
            _bounded(len(found) if isinstance(found, str) else 0, f"{{{name}}}")
            self._known[name] = found
        return self._known[name]


def _usable(value: object) -> bool:
    numbers = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
    return numbers or isinstance(value, Scalar)


def _bounded(length: int, text: str) -> None:
    if length > _LONGEST:
        raise ConfigError(f"{text[:60]!r} becomes longer than {_LONGEST} characters; shorten what it names")
