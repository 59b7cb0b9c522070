"""How the words after one of Clara's commands are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.errors import ConfigError

SERVER, CLIENT, ALL = "server", "client", "all"


def exactly(words: Sequence[str], usage: str, at_least: int = 0, at_most: int | None = None) -> list[str]:
    """The words, if there are as many as the usage says; `at_most` None: no limit beyond at least one.

    Raises:
        ConfigError: there are not.
    """
    most = at_most if at_most is not None else (len(words) if at_least else 0)
    if not at_least <= len(words) <= most:
        raise ConfigError(f"usage: {usage}")
    return list(words)


def one_of(word: str, what: str, known: Iterable[str]) -> None:
    """Let pass a word that is known.

    Raises:
        ConfigError: it is not; names those that are.
    """
    names = list(known)
    if word not in names:
        raise ConfigError(f"there is no {what} {word!r}; there is {', '.join(names) or 'none'}")


def target(words: Sequence[str], usage: str, *allowed: str) -> tuple[str, list[str]]:
    """`server`, `client` or `all`, and the names after it.

    Raises:
        ConfigError: it is none of those that are allowed, or names follow where none can.
    """
    if not words or words[0] not in allowed or (words[0] != CLIENT and len(words) > 1):
        raise ConfigError(f"usage: {usage}")
    return words[0], list(words[1:])


def options(words: Sequence[str], usage: str, known: str, numbers: str = "") -> tuple[str, dict[str, int], list[str]]:
    """The letters of options, the numbers that some of them take, and the words that are not options.

    Args:
        known: letters that stand alone, also several behind one dash.
        numbers: letters that a number follows.

    Raises:
        ConfigError: an option is not known, or its number is missing.
    """
    letters, values, rest = "", {}, []
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if word == "--":
            rest += pending
            break
        if len(word) > 1 and word[0] == "-" and word[1] in numbers:
            digits = word[2:] or (pending.pop(0) if pending else "")
            if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
                raise ConfigError(f"usage: {usage} (a number follows {word[:2]})")
            values[word[1]] = int(digits)
        elif len(word) > 1 and word[0] == "-":
            if strange := set(word[1:]) - set(known):
                raise ConfigError(f"usage: {usage} (there is no option -{min(strange)})")
            letters += word[1:]
        else:
            rest.append(word)
    return letters, values, rest
