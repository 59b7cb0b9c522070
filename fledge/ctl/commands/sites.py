"""`fledge ctl status` and `fledge ctl site …`: who takes part, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from fledge.ctl import render
from fledge.ctl.options import (
    AlsoSites,
    Everywhere,
    OneRun,
    OneSite,
    Sites,
    Yes,
    chosen,
    command,
    complete_site,
    group,
    session_of,
)

app = group("The sites of the federation.")
DISPENSABLE = ("staleness", "waiting", "certificate", "base", "run_of", "progress", "measured_here", "loss")
"""Columns of the status that a narrow screen does without, in this order; `--json` holds them all."""


def status(context: typer.Context, run: OneRun = None) -> int:
    """A run, and every site: when last seen, what it does, how old its version is."""
    session = session_of(context)
    answers = session.ask("status", {"run": run})
    if not session.as_json:
        answers = [render.narrowed(answer, session.screen().width, DISPENSABLE) for answer in answers]
    return session.told(answers)


@command(app, "list")
def list_sites(context: typer.Context) -> int:
    """Every member with its organisation, and whether its keys hold."""
    return session_of(context).send("site.list")


@command(app, "show")
def show(
    context: typer.Context,
    site: Annotated[
        str | None,
        typer.Argument(
            metavar="SITE", help="The site's name; default: the only one you may see.", autocompletion=complete_site
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1024, help="How many of its newest updates.")] = 20,
) -> int:
    """One site: what it does now and what became of its updates."""
    return session_of(context).send("site.show", {"site": site, "limit": limit})


@command(app, "quarantine")
def quarantine(context: typer.Context, site: OneSite, yes: Yes = False) -> int:
    """Take a site's updates no longer, but leave it connected."""
    return session_of(context, yes).send("site.quarantine", {"site": site})


@command(app, "readmit")
def readmit(context: typer.Context, site: OneSite) -> int:
    """Take a quarantined site's updates again."""
    return session_of(context).send("site.readmit", {"site": site})


@command(app, "revoke")
def revoke(context: typer.Context, site: OneSite, yes: Yes = False) -> int:
    """Cut a site off at once; the root's signature follows."""
    return session_of(context, yes).send("site.revoke", {"site": site})


def _at_sites(name: str, about: str) -> Callable[..., int]:
    def act(context: typer.Context, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False) -> int:
        session = session_of(context)
        return session.send(f"site.{name}", targets=chosen(session, sites, site, everywhere))

    act.__doc__ = about
    return act


def _asking_first(name: str, about: str) -> Callable[..., int]:
    def act(
        context: typer.Context,
        sites: Sites = None,
        site: AlsoSites = None,
        everywhere: Everywhere = False,
        yes: Yes = False,
    ) -> int:
        session = session_of(context, yes)
        return session.send(f"site.{name}", targets=chosen(session, sites, site, everywhere))

    act.__doc__ = about
    return act


for _make, _name, _about in (
    (_at_sites, "drain", "Finish what is trained, send it, and train no more."),
    (_at_sites, "undrain", "Train again after a drain."),
    (_asking_first, "restart", "End the worker in order; its supervisor starts it again."),
    (_asking_first, "shutdown", "End the worker in order and leave it down."),
    (_at_sites, "doctor", "What the site's own checks say, without anything private."),
):
    command(app, _name)(_make(_name, _about))
