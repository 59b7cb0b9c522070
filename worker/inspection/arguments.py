"""The arguments of a command, read one by one: of the right type, within bounds, and none that is not known."""

from __future__ import annotations

from collections.abc import Mapping

from protocol.errors import ConfigError

_TEXT = 256


class Arguments:
    """What an operator wrote; `done` refuses what was not asked for."""

    def __init__(self, command: str, given: Mapping[str, object]) -> None:
        self._command = command
        self._given = given
        self._known: list[str] = []

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number, at least `least` and at most `most`.

        Raises:
            ConfigError: it is something else.
        """
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(f"{self._command}: {name} has to be a whole number from {least} to {most}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A short text; needed if there is no default.

        Raises:
            ConfigError: it is missing, or something else.
        """
        value = self._take(name, default)
        if value is None:
            raise ConfigError(f"{self._command} needs {name}; say which")
        if not isinstance(value, str) or len(value) > _TEXT:
            raise ConfigError(f"{self._command}: {name} has to be a text of at most {_TEXT} characters")
        return value

    def options(self, allowed: str) -> frozenset[str]:
        """The letters of `options`, written like `-l -t` or `-lt`.

        Raises:
            ConfigError: one of them is not among `allowed`.
        """
        given = self.text("options", "")
        letters = frozenset("".join(word.removeprefix("-") for word in given.split()))
        if not letters <= frozenset(allowed):
            raise ConfigError(
                f"{self._command} takes the options {' '.join(f'-{each}' for each in allowed)} and no others"
            )
        return letters

    def given(self, name: str) -> bool:
        """Whether the operator said anything for `name`."""
        return self._take(name, None) is not None

    def done(self) -> None:
        """Refuse what is not known.

        Raises:
            ConfigError: there is such an argument.
        """
        known = list(dict.fromkeys(self._known))
        if self._given.keys() - set(known):
            raise ConfigError(f"{self._command} takes {', '.join(known) or 'no arguments'} and nothing else")

    def _take(self, name: str, default: object) -> object:
        self._known.append(name)
        value = self._given.get(name)
        return default if value is None else value
