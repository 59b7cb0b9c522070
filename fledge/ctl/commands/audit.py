"""`fledge ctl audit …`: the ledger, in which every entry holds the hash of the one before."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.ctl.options import command, group, session_of

app = group("The hash-chained ledger of everything that happened.")


@command(app, "log")
def log(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1024, help="How many at most.")] = 50,
    since: Annotated[int | None, typer.Option(min=0, help="Only entries after this number.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only such: command, refused, version, update, run, …")] = None,
) -> int:
    """The newest entries of the hash-chained ledger."""
    return session_of(context).send("audit.log", {"limit": limit, "since": since, "kind": kind})
