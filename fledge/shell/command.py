"""The command `fledge ctl shell`."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.ctl.options import session_of


def shell(
    context: typer.Context,
    line: Annotated[
        list[str] | None, typer.Option("-c", help="Run this line and leave; may be given again.", metavar="LINE")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Never ask for a name again.")] = False,
) -> None:
    """A console with history and completion that also understands Clara's commands; reads lines from a pipe too."""
    from fledge.shell.loop import run_shell

    if code := run_shell(session_of(context, yes), line):
        raise typer.Exit(code)
