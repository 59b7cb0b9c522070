"""One sitting of an operator: the connection, how answers are shown, and what has to be confirmed first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fledge.ctl import render
from fledge.process import terminal
from protocol.errors import ConfigError
from protocol.topology import AGGREGATOR

if TYPE_CHECKING:
    from rich.console import Console as Screen

    from fledge.operator.console import Answer, Arguments, Console

WIDE = 200
"""Columns of what is not shown on a terminal, so that tables in files and pipes are not broken up."""
FOLLOW_S = 5.0
"""Seconds between two questions of `--follow`: each is a signed command that stands in the ledger."""
WAITS = {"run.create": 600.0, "run.clone": 600.0, "model.export": 600.0, "model.publish": 600.0}
WAITS |= {"run.offer": 60.0, "run.deploy": 60.0}
"""Seconds for answers to commands that take a while: a model is read and written, or code is fetched by a site."""
Opener = Callable[[Path], AbstractContextManager["Console"]]


def open_with_kit(kit: Path) -> AbstractContextManager[Console]:
    """Connect as the operator whose kit this is.

    Raises:
        ConfigError: there is no kit, or something is wrong with it.
    """
    from fledge.operator.config import OPERATOR_TOML
    from fledge.operator.open import open_console

    if kit.is_dir() and not (kit / OPERATOR_TOML).exists():
        raise ConfigError(f"{kit}: no operator's kit is here; name its folder with --kit or in FLEDGE_KIT")
    return open_console(kit)


class Session:
    """Connects at the first question; `close` ends it."""

    def __init__(self, kit: Path, *, opener: Opener = open_with_kit, timeout: float = 10.0) -> None:
        self.kit = kit
        self.timeout = timeout
        self.as_json = False
        self.yes = False
        self.ask_person: Callable[[str], str | None] = prompt
        """Shows a text and returns the line that is typed, or None if there is no one to ask."""
        self._opener = opener
        self._stack = ExitStack()
        self._console: Console | None = None

    def close(self) -> None:
        self._stack.close()
        self._console = None

    @property
    def console(self) -> Console:
        """The connection, made when it is first needed."""
        if self._console is None:
            with self._busy("connecting"):
                self._console = self._stack.enter_context(self._opener(self.kit))
        return self._console

    def ask(self, command: str, arguments: Arguments | None = None, targets: Sequence[str] = ()) -> list[Answer]:
        """Send a command and return what came back in time; arguments that are None are left out."""
        given = {name: value for name, value in (arguments or {}).items() if value is not None}
        console = self.console
        wait = max(self.timeout, WAITS.get(command, 0.0))
        with self._busy(f"{command} (up to {wait / 60:.0f} min for a large model)" if wait >= 60 else command):
            return list(console.ask(command, given, tuple(targets), wait))

    def send(self, command: str, arguments: Arguments | None = None, targets: Sequence[str] = ()) -> int:
        """Have a command confirmed if it is dangerous, send it, show the answers, and return the exit code."""
        self.confirm(command, arguments or {}, targets)
        return self.told(self.ask(command, arguments, targets))

    def told(self, answers: Sequence[Answer]) -> int:
        """Show answers and return the exit code."""
        self.show(answers)
        return render.exit_code(answers)

    def follow(self, command: str, arguments: Arguments, targets: Sequence[str] = ()) -> Iterator[list[Answer]]:
        """Ask again and again, a while apart, until Ctrl-C; the arguments are read anew each time."""
        try:
            while True:
                yield self.ask(command, arguments, targets)
                time.sleep(FOLLOW_S)
        except KeyboardInterrupt:
            return

    def confirm(self, command: str, arguments: Arguments, targets: Sequence[str] = ()) -> None:
        """Let a dangerous command pass once its target's name was typed again.

        Raises:
            ConfigError: something else was typed, or there was no one to ask.
        """
        from protocol.commands import COMMANDS

        if COMMANDS[command].dangerous:
            self.confirm_word(command, f"{command}: {COMMANDS[command].summary}", target_word(arguments, targets))

    def confirm_word(self, command: str, text: str, word: str) -> None:
        """Go on once `word` was typed, or if there is no need to ask.

        Raises:
            ConfigError: something else was typed, or there was no one to ask.
        """
        if self.yes:
            return
        typed = self.ask_person(f"{text} Type {word} to confirm: ")
        if typed is None or typed.strip() != word:
            raise ConfigError(f"{command} was not sent: nobody confirmed it; type {word!r} when asked, or give --yes")

    def sites(self) -> list[str]:
        """Every site that is a member now, as the aggregator knows them.

        Raises:
            ConfigError: it has not said.
        """
        (answer,) = self.ask("site.list")[:1]
        if not answer.ok:
            raise ConfigError(f"the sites are not known: {answer.why}; name them one by one")
        rows = render.parts(answer.values).rows()
        return [str(row["site"]) for row in rows if row.get("role") == "site" and row.get("held") != "revoked"]

    def show(self, answers: Sequence[Answer]) -> None:
        """Print answers to standard output, as the person asked for."""
        if not answers:
            return
        if self.as_json:
            typer.echo(render.as_json(answers))
            return
        screen = self.screen()
        for answer in answers:
            for part in render.people(answer, headed=len(answers) > 1):
                if isinstance(part, str):
                    typer.echo(part)
                else:
                    screen.print(part)
            if beside := render.aside(answer):
                typer.echo(f"({beside})", err=True)

    def screen(self) -> Screen:
        """Standard output as it is at this moment; whatever is printed is taken as it stands."""
        from rich.console import Console as Screen

        width = None if sys.stdout.isatty() else WIDE
        return Screen(width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)

    def _busy(self, what: str) -> AbstractContextManager[object]:
        if not sys.stderr.isatty():
            return nullcontext()
        from rich.console import Console as Screen

        return Screen(stderr=True).status(f"{what} …")


def target_word(arguments: Arguments, targets: Sequence[str]) -> str:
    """What has to be typed again: the one target's name, or how many sites there are."""
    if targets:
        return targets[0] if len(targets) == 1 else f"{len(targets)} sites"
    for name in ("site", "run", "channel", "id"):
        if arguments.get(name) is not None:
            return str(arguments[name])
    return AGGREGATOR


def prompt(text: str) -> str | None:
    """Ask on standard error, beside what programs read; None if the input ends."""
    sys.stderr.write(terminal.clean(text))  # it may repeat what another participant said
    sys.stderr.flush()
    return sys.stdin.readline() or None
