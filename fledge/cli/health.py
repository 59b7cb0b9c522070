"""`fledge healthcheck`: for supervisors and containers; nothing but a sentence and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import ConfigError


def healthcheck(
    kit: Annotated[Path | None, typer.Option(help="A site's kit: the folder that holds worker.toml.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Or: the aggregator's configuration file.")] = None,
) -> None:
    """Say whether a service works: exit code 0 once it has been accepted by the other side, 1 otherwise."""
    from fledge.health import hub_health, site_health

    if kit is not None and config is None:
        health = site_health(kit)
    elif kit is None and config is not None:
        health = hub_health(config)
    else:
        raise ConfigError("say --kit FOLDER for a site, or --config aggregator.toml for a hub")
    if not health.green:
        typer.echo(f"{health.text} (its log and `fledge doctor` say more)", err=True)
        raise typer.Exit(1)
    typer.echo(health.text)
