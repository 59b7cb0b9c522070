"""`fledge ctl shell`: a console that understands Clara's commands and our own, from a terminal, a pipe or `-c`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime

from fledge.ctl import render
from fledge.ctl.session import Session
from fledge.process import terminal
from fledge.shell import clara
from fledge.shell.context import ShellContext
from fledge.shell.lines import CommandLine, Given, Lines, Piped, Typed, redirected, split
from protocol.errors import ConfigError, FledgeError


def run_shell(session: Session, given: Sequence[str] | None = None) -> int:
    """Obey lines until they end; the exit code is the first that was not 0, and 0 for a person on a terminal."""
    interactive = not given and sys.stdin.isatty()
    shell = Shell(session)
    lines: Lines
    if given:
        lines = Given(given)
    elif interactive:
        from fledge.shell.completion import ShellCompleter

        lines = Typed(session.kit, ShellCompleter(shell))
    else:
        lines = Piped(sys.stdin)
    shell.serve(lines)
    return 0 if interactive else shell.code


class Shell(ShellContext):
    """The loop: one line after the other, each by Clara's table or our own commands."""

    def serve(self, lines: Lines) -> None:
        """Obey one line after the other until `bye` or the end."""
        self.session.ask_person = lines.confirm
        console = self.session.console
        self.say(f"{console.name}: help lists the commands, bye ends.")
        while not self.left and (text := lines.read()) is not None:
            if text.strip():
                self.obey(text)

    def obey(self, text: str) -> None:
        """Obey one line, and say how long it took."""
        began = time.perf_counter()
        always = self.session.yes
        self.session.as_json = False
        try:
            line = split(text)
            with redirected(line):
                self._dispatch(line)
        except FledgeError as error:
            self.fail(f"Error: {error}", 2 if isinstance(error, ConfigError) else render.FAILED)
        except KeyboardInterrupt:
            self.fail("stopped", 130)
        self.session.yes = always
        self.say(f"Done [{(time.perf_counter() - began) * 1e6:.0f} usecs] {datetime.now()}")

    def _dispatch(self, line: CommandLine) -> None:
        name, *words = line.words or ("",)
        if name in clara.HELP:
            clara.show_help(self, words)
        elif (found := clara.find(name)) is not None:
            found.obey(self, words)
        elif name in self.commands:
            self.own(line.words)
        else:
            raise ConfigError(f"there is no command {terminal.clean(name)!r}; help lists them")
