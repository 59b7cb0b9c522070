"""`fledge ctl update …` and `fledge ctl metrics`: what sites sent, and what they measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.ctl import render
from fledge.ctl.options import Follow, OldRun, OneRun, command, complete_site, group, session_of, the_run
from fledge.ctl.session import Session

if TYPE_CHECKING:
    from fledge.operator.console import Answer, Arguments
    from protocol.codec import Plain, Value

app = group("Updates of sites.")
NOTHING = (
    "no site has measured a version yet; they do unless run.toml says `evaluate = false`, if they have data for it"
)


@command(app, "list")
def list_updates(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Of this run only.")] = None,
    site: Annotated[str | None, typer.Option(help="Of this site only.", autocompletion=complete_site)] = None,
    state: Annotated[str | None, typer.Option(help="In this state only: merged, rejected, …")] = None,
    old: OldRun = None,
    limit: Annotated[int, typer.Option(min=1, max=1024, help="How many at most.")] = 50,
) -> int:
    """The newest updates and what became of them."""
    wanted: Arguments = {"site": site, "state": state, "run": the_run(run, old), "limit": limit}
    return session_of(context).send("update.list", wanted)


@command(app, "show")
def show(
    context: typer.Context, update: Annotated[str, typer.Argument(help="The update, as `update list` names it.")]
) -> int:
    """One update."""
    return session_of(context).send("update.show", {"update": update})


@command(app, "receipt")
def receipt(
    context: typer.Context,
    update: Annotated[str, typer.Argument(help="The update, as `update list` names it.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new file for it, which `fledge receipt verify` checks.")
    ] = None,
) -> int:
    """The aggregator's signed word on an update, which anybody with a kit can check without the hub."""
    from fledge.ctl import receipt_action

    session = session_of(context)
    return session.told(receipt_action.receipt(session, update, out))


def metrics(context: typer.Context, run: OneRun = None, follow: Follow = False) -> int:
    """What sites measured of each version."""
    session = session_of(context)
    if follow:
        return _follow(session, {"run": run})
    return session.told([_explained(answer) for answer in session.ask("metrics", {"run": run})])


def _explained(answer: Answer) -> Answer:
    """An answer that holds nothing says why."""
    empty = answer.ok and not answer.text and not render.parts(answer.values).rows()
    return replace(answer, text=NOTHING, values={}) if empty else answer


def _follow(session: Session, arguments: dict[str, Value]) -> int:
    """Show what is new since the last answer, as long as the aggregator does not refuse."""
    seen: set[tuple[Plain, ...]] = set()
    for answers in session.follow("metrics", arguments):
        fresh = [unseen(answer, seen) for answer in answers]
        session.show([answer for answer in fresh if not answer.ok or render.parts(answer.values).rows()])
        for answer in answers:
            numbers = [number for number in answer.column("version") if isinstance(number, int)]
            arguments["since"] = max(numbers, default=arguments.get("since"))
        if render.exit_code(answers) == render.FAILED:
            return render.FAILED
    return render.OK


def unseen(answer: Answer, seen: set[tuple[Plain, ...]]) -> Answer:
    """The answer with only the rows of its table that are not in `seen`, which learns them."""
    columns = render.parts(answer.values).columns
    rows = [row for row in zip(*columns.values(), strict=True) if row not in seen]
    seen.update(rows)
    return replace(answer, values={name: tuple(row[at] for row in rows) for at, name in enumerate(columns)})
