"""`fledge ctl` as a command group: nothing beyond the command line itself is loaded before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.ctl.commands import audit, files, models, queues, registry, runs, sites, system, updates
from fledge.ctl.options import command
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
command(app, "logs")(system.logs)
command(app, "stats")(system.stats)
for _name, _group in (
    ("site", sites.app),
    ("registry", registry.app),
    ("run", runs.app),
    ("model", models.app),
    ("update", updates.app),
    ("dead", queues.dead),
    ("queue", queues.queue),
    ("audit", audit.app),
    ("sys", system.app),
    ("file", files.app),
):
    app.add_typer(_group, name=_name)
