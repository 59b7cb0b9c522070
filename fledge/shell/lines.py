"""A line of the shell taken apart, and where the shell's lines come from."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from fledge.operator.members import folder_of
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer

PROMPT = "> "
HISTORY = "history"
_REDIRECTION = re.compile(r"\s(>>?)\s*([^\s\"'>]+)\s*$")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The words of a line, and the file its output goes to as well (`>file`) or alone (`>>file`)."""

    words: tuple[str, ...]
    file: str = ""
    alone: bool = False


def split(text: str) -> CommandLine:
    """Take a line apart as a POSIX shell would.

    Raises:
        ConfigError: a quotation mark is not closed.
    """
    found = _REDIRECTION.search(text)
    command = text[: found.start()] if found else text
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"this line cannot be read ({error}); close every quotation mark") from None
    return CommandLine(words, found[2], found[1] == ">>") if found else CommandLine(words)


@contextmanager
def redirected(line: CommandLine) -> Iterator[None]:
    """Send what is printed within the block where the line wants it; a file that it goes to alone is added to.

    Raises:
        ConfigError: the file cannot be written.
    """
    if not line.file:
        yield
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(line.file).open("a" if line.alone else "w", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{line.file}: {error.strerror}; nothing was sent") from error
        stack.enter_context(redirect_stdout(file if line.alone else Tee(sys.stdout, file)))
        yield


class Tee(io.TextIOBase):
    """Writes to several streams; never a terminal."""

    def __init__(self, *streams: TextIO) -> None:
        self._streams = streams

    def write(self, text: str, /) -> int:
        """Write to all."""
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush all."""
        for stream in self._streams:
            stream.flush()


class Lines(Protocol):
    """Where the shell reads from."""

    def read(self) -> str | None:
        """The next line, or None at the end."""

    def confirm(self, text: str) -> str | None:
        """What is typed when asked; None if there is no one to ask."""


class Given:
    """Lines of the command line (`-c`); there is no one to confirm anything."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)

    def read(self) -> str | None:
        line = next(self._lines, None)
        return None if line is None else _repeated(PROMPT, line)

    def confirm(self, text: str) -> str | None:
        return None


class Piped:
    """Lines of a stream, repeated in the output so that it reads as a transcript; the next line confirms."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self) -> str | None:
        for line in self._stream:
            if line.strip():
                return _repeated(PROMPT, line.rstrip("\n"))
        return None

    def confirm(self, text: str) -> str | None:
        line = self._stream.readline()
        return _repeated(text, line.rstrip("\n")) if line else None


def _repeated(prompt: str, line: str) -> str:
    sys.stdout.write(f"{prompt}{line}\n")
    return line


class Typed:
    """A person on a terminal, with a history that only they can read."""

    def __init__(self, kit: Path, completer: Completer) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        path = folder_of(kit) / HISTORY
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.fchmod(file, 0o600)
            os.close(file)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; the history is kept there") from error
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(path)), completer=completer, complete_while_typing=False
        )

    def read(self) -> str | None:
        try:
            return self._session.prompt(PROMPT)
        except KeyboardInterrupt:  # drops the line, as everywhere
            return ""
        except EOFError:
            return None

    def confirm(self, text: str) -> str | None:
        from prompt_toolkit import PromptSession

        try:
            return str(PromptSession[str]().prompt(text))
        except (EOFError, KeyboardInterrupt):
            return None
