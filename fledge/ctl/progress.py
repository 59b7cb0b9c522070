"""How far a transfer is, on standard error: a bar for people, one line for whatever else reads there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

_MB = 1e6


@contextmanager
def moving(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a transfer of `total` bytes within the block, which tells how many are done."""
    if not sys.stderr.isatty():
        typer.echo(f"{what}: {total / _MB:.3g} MB", err=True)
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)
