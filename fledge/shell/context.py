"""What commands of the shell work with: members, output, the hub's and sites' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from fledge.ctl import render
from fledge.ctl.session import Session
from fledge.operator.members import KnownMembers, read_members
from fledge.process import terminal

if TYPE_CHECKING:
    from fledge.operator.console import Answer, Arguments
    from fledge.runs.upload import Packed


@dataclass(frozen=True, slots=True)
class Staged:
    """A folder that was uploaded under a run's name."""

    packed: Packed
    record: str


class ShellContext:
    """One sitting at the console: the run that was chosen, and whether everything went well so far."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.run: str | None = None
        """The run that `set_run_number` chose; None: the one that goes on."""
        self.staged: dict[tuple[str, str], Staged] = {}
        """What was uploaded in this sitting, by folder and run."""
        self.runs: set[str] = set()
        """Names of runs that were seen, for completion."""
        self.code = 0
        self.left = False

    def own(self, words: Sequence[str]) -> None:
        """Run one of `fledge ctl`'s commands."""
        try:
            get_command(self._app).main(args=list(words), prog_name="", obj=self.session)
        except SystemExit as done:
            self.note(done.code if isinstance(done.code, int) else render.FAILED)

    @cached_property
    def _app(self) -> typer.Typer:
        from fledge.ctl.app import app

        return app

    @cached_property
    def commands(self) -> Mapping[str, Mapping[str, str]]:
        """Our own commands by their first word, with what each second word does (`""` where there is none)."""
        return {name: each for name, each in own_commands().items() if name != "shell"}

    @property
    def members(self) -> KnownMembers:
        """The kit's own list of members."""
        return read_members(self.session.kit)

    # ---- what commands use

    def say(self, *texts: str) -> None:
        """Print lines; whatever could steer a terminal is escaped."""
        for text in texts:
            typer.echo(terminal.line(text))

    def fail(self, text: str, code: int = render.FAILED) -> None:
        """Print a line and note that a command did not do what it was to do."""
        self.say(text)
        self.note(code)

    def refused(self, answers: Sequence[Answer]) -> None:
        """Print why the first of these answers is a refusal, and note what all of them come to."""
        self.fail(f"Error: {answers[0].why}", render.exit_code(answers))

    def note(self, code: int) -> None:
        """Keep the first exit code that is not 0."""
        self.code = self.code or code

    def table(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Print a table in a frame."""
        from rich import box

        self.session.screen().print(render.table(columns, box.ASCII2, heading=str.upper))

    def hub(self, command: str, arguments: Arguments | None = None) -> Answer | None:
        """Have the aggregator obey; a refusal is printed and None."""
        self.session.confirm(command, arguments or {})
        answer = self.session.ask(command, arguments)[0]
        if answer.ok:
            named = answer.values.get("run")
            self.runs.update([named] if isinstance(named, str) else map(str, answer.column("run")))
            return answer
        self.refused([answer])
        return None

    def at_sites(
        self,
        command: str,
        sites: Sequence[str],
        arguments: Arguments | None = None,
        titles: Mapping[str, str] | None = None,
        done: str = "",
    ) -> None:
        """Have sites obey and print what each says; `titles` and `done` are Clara's words for columns and for a yes."""
        self.session.confirm(command, arguments or {}, sites)
        self.instances(self.session.ask(command, arguments, sites), titles, done)

    def instances(self, answers: Sequence[Answer], titles: Mapping[str, str] | None = None, done: str = "") -> None:
        """Print what each site says."""
        for answer in answers:
            self._say_instance(answer, titles or {}, done, alone=len(answers) == 1)
        self.note(render.exit_code(answers))

    def _say_instance(self, answer: Answer, titles: Mapping[str, str], done: str, *, alone: bool) -> None:
        instance = f"instance:{answer.sender}"
        if not answer.ok:
            self.say(f"{instance} : Error: {answer.why}")
            return
        found = render.parts(answer.values)
        if found.lines:
            self.say(*(() if alone else (instance,)), *found.lines)
        elif found.columns:
            self.say(instance)
            self.table({titles.get(name, name): column for name, column in found.columns.items()})
        else:
            self.say(f"{instance} : {' '.join(filter(None, (done, answer.text))) or 'done'}")


def own_commands() -> dict[str, dict[str, str]]:
    """Every command of `fledge ctl`: first word to second word to what it does; `""` for commands of one word."""
    from fledge.ctl.app import app

    return {
        name: {second: _summary(about.help) for second, about in each.commands.items()}
        if isinstance(each, TyperGroup)
        else {"": _summary(each.help)}
        for name, each in get_group(app).commands.items()
    }


def _summary(about: str | None) -> str:
    return str(about).partition("\n\n")[0]
