"""`fledge bundle`: what is done with MONAI bundles before a run is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.errors import ConfigError

app = typer.Typer(name="bundle", help="MONAI bundles: make, check and convert them.", no_args_is_help=True)


@app.command()
def convert(
    mmar: Annotated[Path, typer.Argument(help="The folder of a Clara MMAR (3.1 or 4.x).")],
    bundle: Annotated[Path, typer.Argument(help="A new folder for the bundle.")],
    config: Annotated[str, typer.Option(help="The training configuration in its config folder.")] = "config_train.json",
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE before environment.json and the configuration; may be given again."),
    ] = None,
) -> None:
    """Translate a Clara MMAR to a MONAI bundle; nothing of the MMAR is run.

    Tells what was mapped, what was left out, and what each site has to set. The bundle is yours to work on; `fledge
    init-run --bundle BUNDLE` makes a run of it. What has no equal in MONAI is refused by name. A bundle holds no
    settings of a run: `fledge init-run --bundle MMAR` takes them from its config_fed_*.json.
    """
    from fledge.mmar_runs import lines
    from worker.mmar.converting import write
    from worker.trainers.mmar import convert_mmar

    converted = convert_mmar(mmar, config=config, given=dict(_given(text) for text in given or ()))
    write(converted, bundle)
    for line in lines(converted.notes):
        typer.echo(line)
    typer.echo(f"{bundle}: then `fledge init-run --bundle {bundle} -o RUN`")


def _given(text: str) -> tuple[str, Any]:
    """A value as JSON would read it; text that JSON cannot read is a string."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--set {text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
