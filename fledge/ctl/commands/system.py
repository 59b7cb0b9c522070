"""`fledge ctl sys …`, `logs` and `stats`: a site's machine, what its worker logs, and figures it shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fledge.ctl import render
from fledge.ctl.options import AlsoSites, Everywhere, Follow, Sites, chosen, command, group, session_of
from fledge.ctl.session import Session
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from protocol.codec import Value

app = group("The machines of the sites.")


@command(app, "info")
def info(context: typer.Context, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False) -> int:
    """Memory, processors, disk and accelerators of the site's machine."""
    session = session_of(context)
    return session.send("sys.info", targets=chosen(session, sites, site, everywhere))


def logs(
    context: typer.Context,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=1024, help="How many at most.")] = 50,
    grep: Annotated[str | None, typer.Option(metavar="TEXT", help="Only lines with this in them.")] = None,
    since: Annotated[int | None, typer.Option(min=0, help="Only what came after this cursor (`next`).")] = None,
    follow: Follow = False,
) -> int:
    """The newest lines of the worker's log, without anything private."""
    session = session_of(context)
    targets = chosen(session, sites, site, everywhere)
    arguments: dict[str, Value] = {"lines": lines, "grep": grep, "since": since}
    if not follow:
        return session.send("logs", arguments, targets)
    if len(targets) > 1:
        raise ConfigError("--follow shows one site's log; name one")
    return _follow(session, arguments, targets)


def stats(context: typer.Context, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False) -> int:
    """Figures of the site's data, if the site shares them."""
    from worker.statistics.document import from_columns

    session = session_of(context)
    answers = session.ask("stats", targets=chosen(session, sites, site, everywhere))
    for answer in answers:
        if answer.ok:
            from_columns(answer.values)
    return session.told(answers)


def _follow(session: Session, arguments: dict[str, Value], targets: list[str]) -> int:
    """Show what is new since the last answer; a site that is away for a while is waited for."""
    for answers in session.follow("logs", arguments, targets):
        session.show([answer for answer in answers if not answer.ok or render.parts(answer.values).lines])
        for answer in answers:
            arguments["since"] = answer.values.get("next", arguments["since"])
        if render.exit_code(answers) == render.FAILED:
            return render.FAILED
    return render.OK
