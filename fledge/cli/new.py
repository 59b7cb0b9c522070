"""`fledge new`: a project of one's own to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[Path, typer.Argument(metavar="APP", help="A new folder; its name becomes the project's.")],
    template: Annotated[
        str, typer.Option(help="torch, monai, sklearn (what a site trains), or strategy (how the hub merges).")
    ] = "torch",
) -> None:
    """Make a project that `fledge try` runs: code, a test, a README and pyproject.toml, to be made your own."""
    from fledge.runs.new_project import new_project

    made = new_project(folder, template)
    typer.echo(f"{folder}: {', '.join(made)}")
    typer.echo(f"then `cd {folder}`, `fledge try` and `python -m pytest`")
