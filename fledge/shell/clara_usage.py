"""How the words after one of Clara's commands are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.errors import ConfigError

SERVER, CLIENT, ALL = "server", "client", "all"


class Misused(ConfigError):
    """The words are not as the command's usage has them, which the caller puts before this hint."""


def exactly(words: Sequence[str], at_least: int = 0, at_most: int | None = None) -> list[str]:
    """The words, if they are as many; `at_most` None: no limit where at least one is needed, else none.

    Raises:
        Misused: they are not.
    """
    most = at_most if at_most is not None else (len(words) if at_least else 0)
    if not at_least <= len(words) <= most:
        raise Misused
    return list(words)


def one_of(word: str, what: str, known: Iterable[str]) -> None:
    """Let pass a word that is known.

    Raises:
        ConfigError: it is not; names those that are.
    """
    names = list(known)
    if word not in names:
        raise ConfigError(f"there is no {what} {word!r}; there is {', '.join(names) or 'none'}")


def target(words: Sequence[str], *allowed: str) -> tuple[str, list[str]]:
    """`server`, `client` or `all`, and the names after it.

    Raises:
        Misused: it is none of those that are allowed, or names follow where none can.
    """
    if not words or words[0] not in allowed or (words[0] != CLIENT and len(words) > 1):
        raise Misused
    return words[0], list(words[1:])


def options(words: Sequence[str], known: str, numbers: str = "") -> tuple[str, dict[str, int], list[str]]:
    """The letters of options, the numbers that some of them take, and the words that are not options.

    Args:
        known: letters that stand alone, also several behind one dash.
        numbers: letters that a number follows.

    Raises:
        Misused: an option is not known, or its number is missing.
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
                raise Misused(f"a number follows {word[:2]}")
            values[word[1]] = int(digits)
        elif len(word) > 1 and word[0] == "-":
            if strange := set(word[1:]) - set(known):
                raise Misused(f"there is no option -{min(strange)}")
            letters += word[1:]
        else:
            rest.append(word)
    return letters, values, rest
