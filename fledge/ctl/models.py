"""`fledge ctl model …`: the versions of the global model."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.ctl.options import command, group, session_of

app = group("Versions of the global model.")


@command(app, "list")
def list_models(context: typer.Context) -> int:
    """Every version: members, staleness, digest."""
    return session_of(context).order("model.list")


@command(app, "show")
def show(context: typer.Context, version: Annotated[int, typer.Argument(min=0, help="The version.")]) -> int:
    """One version: who is in it, with which weight."""
    return session_of(context).order("model.show", {"version": version})
