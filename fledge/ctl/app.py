"""`fledge ctl` as a command group: nothing beyond the command line itself is loaded before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.ctl import audit, dead, files, machine, models, registry, runs, sites, updates
from fledge.ctl.options import command, session_of
from fledge.ctl.session import Session, open_with_kit

KIT = "FLEDGE_KIT"

app = typer.Typer(
    name="ctl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def common(
    context: typer.Context,
    kit: Annotated[
        Path, typer.Option("--kit", envvar=KIT, help="Your kit: the folder that holds operator.toml.")
    ] = Path(),
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for answers.")] = 10.0,
) -> None:
    """Watch and steer a federation over the broker, with an operator's kit.

    Exit codes: 0 done, 1 refused or failed, 2 command line, configuration or not confirmed, 4 no answer in time.
    """
    if isinstance(context.obj, Session):  # a command inside the shell
        return
    context.obj = session = Session(kit, opener=context.obj or open_with_kit, timeout=timeout)
    context.call_on_close(session.close)


command(app, "status")(sites.status)
command(app, "metrics")(updates.metrics)
command(app, "logs")(machine.logs)
command(app, "stats")(machine.stats)
for _name, _group in (
    ("site", sites.app),
    ("registry", registry.app),
    ("run", runs.app),
    ("model", models.app),
    ("update", updates.app),
    ("dead", dead.dead),
    ("queue", dead.queue),
    ("audit", audit.app),
    ("sys", machine.app),
    ("file", files.app),
):
    app.add_typer(_group, name=_name)


@app.command()
def shell(
    context: typer.Context,
    line: Annotated[
        list[str] | None, typer.Option("-c", help="Run this line and leave; may be given again.", metavar="LINE")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Never ask for a name again.")] = False,
) -> None:
    """A console with history and completion that also understands Clara's commands; reads lines from a pipe too."""
    from fledge.ctl.shell import run_shell

    if code := run_shell(session_of(context, yes), line):
        raise typer.Exit(code)
