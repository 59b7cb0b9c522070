"""`fledge ctl status` and `fledge ctl site …`: who takes part, and what to do about it."""

from __future__ import annotations

import typer

from fledge.ctl.options import AlsoSites, Everywhere, OneSite, Sites, Yes, chosen, command, group, session_of

app = group("The sites of the federation.")


def status(context: typer.Context) -> int:
    """The run, and every site: when last seen, what it does, how old its version is."""
    return session_of(context).order("status")


@command(app, "list")
def list_sites(context: typer.Context) -> int:
    """Every member with its organisation, and whether its keys hold."""
    return session_of(context).order("site.list")


@command(app, "show")
def show(context: typer.Context, site: OneSite) -> int:
    """One site: what it does now and what became of its updates."""
    return session_of(context).order("site.show", {"site": site})


@command(app, "quarantine")
def quarantine(context: typer.Context, site: OneSite, yes: Yes = False) -> int:
    """Take a site's updates no longer, but leave it connected."""
    return session_of(context, yes).order("site.quarantine", {"site": site})


@command(app, "readmit")
def readmit(context: typer.Context, site: OneSite) -> int:
    """Take a quarantined site's updates again."""
    return session_of(context).order("site.readmit", {"site": site})


@command(app, "revoke")
def revoke(context: typer.Context, site: OneSite, yes: Yes = False) -> int:
    """Cut a site off at once; the root's signature follows."""
    return session_of(context, yes).order("site.revoke", {"site": site})


@command(app, "drain")
def drain(context: typer.Context, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False) -> int:
    """Finish what is trained, send it, and train no more."""
    session = session_of(context)
    return session.order("site.drain", targets=chosen(session, sites, site, everywhere))


@command(app, "undrain")
def undrain(context: typer.Context, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False) -> int:
    """Train again after a drain."""
    session = session_of(context)
    return session.order("site.undrain", targets=chosen(session, sites, site, everywhere))


@command(app, "restart")
def restart(
    context: typer.Context,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    yes: Yes = False,
) -> int:
    """End the worker in order; its supervisor starts it again."""
    session = session_of(context, yes)
    return session.order("site.restart", targets=chosen(session, sites, site, everywhere))


@command(app, "shutdown")
def shutdown(
    context: typer.Context,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    yes: Yes = False,
) -> int:
    """End the worker in order and leave it down."""
    session = session_of(context, yes)
    return session.order("site.shutdown", targets=chosen(session, sites, site, everywhere))


@command(app, "doctor")
def doctor(context: typer.Context, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False) -> int:
    """What the site's own checks say, without anything private."""
    session = session_of(context)
    return session.order("site.doctor", targets=chosen(session, sites, site, everywhere))
