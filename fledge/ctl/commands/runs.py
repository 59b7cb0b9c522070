"""`fledge ctl run …`: trainings, from the folder on an operator's laptop to the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.ctl.options import (
    AlsoSites,
    Everywhere,
    OneRun,
    Sites,
    ThisRun,
    Yes,
    chosen,
    command,
    group,
    session_of,
    some_sites,
)
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from protocol.codec import Value

app = group("Runs: one training each.")


@command(app, "create")
def create(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The run's folder, as `fledge init-run` writes it.")],
    name: Annotated[str, typer.Option(help="Another name than the one in run.toml.")] = "",
) -> int:
    """Send a run's settings, code and version 0, encrypted; it does not begin yet.

    The folder holds run.toml, initial.safetensors, spec.bin and, if the code is to travel, code/trainer.py with `def
    trainer(**options)` that returns the trainer. Other files of code/ are imported from there as plain modules.
    """
    from fledge.ctl import run_actions

    session = session_of(context)
    return session.told(run_actions.create(session, folder, name))


@command(app, "deploy")
def deploy(
    context: typer.Context,
    run: ThisRun,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    code: Annotated[str, typer.Option(help="The SHA-256 that the code has to have, in hex.")] = "",
    yes: Yes = False,
) -> int:
    """Have sites (default: all) take over a run's code.

    The code has to be the one of --code, or the one that was created with this kit; if neither is known, its digest is
    shown and has to be confirmed.
    """
    from fledge.ctl import run_actions

    session = session_of(context, yes)
    return session.told(run_actions.deploy(session, run, some_sites(session, sites, site, everywhere), code))


@command(app, "start")
def start(
    context: typer.Context,
    run: ThisRun,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    until: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="End after this version, and by nothing else.")
    ] = None,
) -> int:
    """Begin a run, or go on with one that was paused, stopped or aborted; with sites: as `run join`."""
    session = session_of(context)
    targets = some_sites(session, sites, site, everywhere)
    if targets and until is not None:
        raise ConfigError("--until is about the run, not about single sites; leave one of them out")
    arguments: dict[str, Value] = {"run": run} if until is None else {"run": run, "until": until}
    return session.send("run.join" if targets else "run.start", arguments, targets)


@command(app, "list")
def list_runs(context: typer.Context) -> int:
    """Every run with its state and version."""
    return session_of(context).send("run.list")


@command(app, "show")
def show(context: typer.Context, run: OneRun = None) -> int:
    """The run's settings, state and reason."""
    return session_of(context).send("run.show", {"run": run})


@command(app, "pause")
def pause(context: typer.Context, run: OneRun = None) -> int:
    """Merge nothing until the run is resumed; updates are still taken."""
    return session_of(context).send("run.pause", {"run": run})


@command(app, "resume")
def resume(context: typer.Context, run: OneRun = None) -> int:
    """Go on after a pause."""
    return session_of(context).send("run.resume", {"run": run})


@command(app, "stop")
def stop(context: typer.Context, run: OneRun = None, yes: Yes = False) -> int:
    """End the run in order; what waits gets its receipt."""
    return session_of(context, yes).send("run.stop", {"run": run})


@command(app, "abort")
def abort(
    context: typer.Context,
    run: OneRun = None,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    yes: Yes = False,
) -> int:
    """End the run at once, workers drop what they train; with sites: as `run leave`."""
    session = session_of(context, yes)
    targets = some_sites(session, sites, site, everywhere)
    return session.send("run.leave" if targets else "run.abort", {"run": run}, targets)


@command(app, "clone")
def clone(
    context: typer.Context, run: ThisRun, new: Annotated[str, typer.Argument(metavar="NEW", help="Its name.")]
) -> int:
    """Make a new run from another one's settings, code and version 0."""
    from fledge.ctl import run_actions

    session = session_of(context)
    return session.told(run_actions.clone(session, run, new))


@command(app, "delete")
def delete(
    context: typer.Context,
    run: ThisRun,
    sites: Annotated[bool, typer.Option("--sites", help="Before that, as `run withdraw` at every site.")] = False,
    yes: Yes = False,
) -> int:
    """Forget a run that does not go on: its versions and updates."""
    from fledge.ctl import run_actions

    session = session_of(context, yes)
    return session.told(run_actions.delete(session, run, sites=sites))


@command(app, "offer")
def offer(context: typer.Context, run: ThisRun) -> int:
    """Hold a run's code ready for the sites there are now, and show its digest; `run deploy` does so by itself."""
    return session_of(context).send("run.offer", {"run": run})


@command(app, "join")
def join(
    context: typer.Context, run: ThisRun, sites: Sites = None, site: AlsoSites = None, everywhere: Everywhere = False
) -> int:
    """Train a run at sites, also after they left it."""
    session = session_of(context)
    return session.send("run.join", {"run": run}, chosen(session, sites, site, everywhere))


@command(app, "leave")
def leave(
    context: typer.Context,
    run: ThisRun,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    yes: Yes = False,
) -> int:
    """Drop what sites train of a run, and train it there no more until `run join`."""
    session = session_of(context, yes)
    return session.send("run.leave", {"run": run}, chosen(session, sites, site, everywhere))


@command(app, "withdraw")
def withdraw(
    context: typer.Context,
    run: ThisRun,
    sites: Sites = None,
    site: AlsoSites = None,
    everywhere: Everywhere = False,
    yes: Yes = False,
) -> int:
    """Forget a run's code at sites and what they keep of the run."""
    session = session_of(context, yes)
    return session.send("run.withdraw", {"run": run}, chosen(session, sites, site, everywhere))
