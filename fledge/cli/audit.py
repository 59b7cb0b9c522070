"""`fledge audit`: a signed copy of the ledger, and its check on any machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import AGGREGATOR_TOML, AsJson, HubConfig, HubKit, config_in
from fledge.cli.receipt import AnyKit, members_of
from protocol.errors import ConfigError

app = typer.Typer(name="audit", help="The hub's ledger as a signed file.", no_args_is_help=True)


@app.command()
def export(
    out: Annotated[Path, typer.Option("-o", "--out", help="A new file; one JSON object a line.")],
    config: HubConfig = AGGREGATOR_TOML,
    kit: HubKit = None,
) -> None:
    """Write every entry of the ledger with its time, signed by the aggregator, beside it if it runs."""
    from fledge import history

    typer.echo(f"{out}: {history.export_ledger(config_in(kit, config, AGGREGATOR_TOML), out)} entries")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `fledge audit export`.")],
    kit: AnyKit = Path(),
    as_json: AsJson = False,
) -> None:
    """Check a copy of the ledger against the kit's root and list of members; exit code 1: it was altered."""
    from aggregator.audit.ledger_file import check

    registry, federation = members_of(kit)
    found = check(_lines(file), registry, federation)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    untimed = f"; {found.entries - found.timed} from before there were times" if found.entries > found.timed else ""
    typer.echo(f"{found.entries} entries from {found.first} to {found.last}{untimed}")
    typer.echo(f"it holds: {found.signed_by} of {federation} signed it at {found.issued}, and nothing was altered")


def _lines(file: Path) -> Iterator[bytes]:
    from aggregator.audit.ledger_file import LINE

    try:
        with file.open("rb") as opened:
            while line := opened.readline(LINE):
                yield line
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
