"""`fledge ctl dead …` and `fledge ctl queue …`: messages that were refused, and messages that wait."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.ctl.options import Yes, command, group, session_of

dead = group("Messages that were refused.")
queue = group("Queues of the federation.")

Letter = Annotated[int, typer.Argument(min=0, metavar="ID", help="Its number in `dead list`.")]


@command(dead, "list")
def list_letters(context: typer.Context) -> int:
    """Messages that were refused, with the reason."""
    return session_of(context).send("dead.list")


@command(dead, "show")
def show(context: typer.Context, letter: Letter) -> int:
    """One refused message: from which queue, why, how large."""
    return session_of(context).send("dead.show", {"id": letter})


@command(dead, "replay")
def replay(
    context: typer.Context,
    letter: Annotated[
        list[int] | None, typer.Argument(min=0, metavar="ID", help="Only these; default: the oldest 200.")
    ] = None,
) -> int:
    """Hand refused messages to intake again, and say what became of each and how many are left."""
    return session_of(context).send("dead.replay", {"id": tuple(letter) if letter else None})


@command(dead, "purge")
def purge(
    context: typer.Context,
    letter: Annotated[int | None, typer.Argument(min=0, metavar="ID", help="Only this one; default: all.")] = None,
    yes: Yes = False,
) -> int:
    """Forget refused messages."""
    return session_of(context, yes).send("dead.purge", {"id": letter})


@command(queue, "list")
def list_queues(context: typer.Context) -> int:
    """How many messages wait in each queue."""
    return session_of(context).send("queue.list")
