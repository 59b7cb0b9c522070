"""`fledge healthcheck`: for supervisors and containers; nothing but a sentence and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import AGGREGATOR_TOML, WORKER_TOML
from protocol.errors import ConfigError


def healthcheck(
    kit: Annotated[
        Path | None,
        typer.Option(help="A kit: the folder that holds worker.toml or aggregator.toml; default: this one."),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Or: one of these files.")] = None,
) -> None:
    """Say whether a service works: exit code 0 once it has been accepted by the other side, 1 otherwise."""
    from fledge.health import hub_health, site_health

    if kit is not None and config is not None:
        raise ConfigError("give --kit or --config, not both")
    folder = kit or Path()
    site, hub = folder / WORKER_TOML, folder / AGGREGATOR_TOML
    path = config or (site if site.exists() or not hub.exists() else hub)
    if kit is None and config is None and not path.exists():
        raise ConfigError("whose service? give --kit FOLDER of a site or of the hub, or --config FILE")
    health = site_health(path.parent) if path.name == WORKER_TOML.name else hub_health(path)
    if not health.green:
        typer.echo(f"{health.text} (its log and `fledge doctor` say more)", err=True)
        raise typer.Exit(1)
    typer.echo(health.text)
