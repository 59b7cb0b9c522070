"""What a long command shows while it works, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def progress_bars(*, lines: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal for each thing that is done; elsewhere nothing, or `lines` that say what begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    shape = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shape, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def moved(what: str, count: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
                if lines and not screen.is_terminal:
                    typer.echo(f"{what}: {total}", err=True)
            bar.update(tasks[what], completed=count, total=total or None)

        yield moved
