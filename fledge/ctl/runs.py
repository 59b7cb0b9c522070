"""`fledge ctl run …`: the training that is going on."""

from __future__ import annotations

import typer

from fledge.ctl.options import OneRun, Yes, command, group, session_of

app = group("Runs: one training each.")


@command(app, "list")
def list_runs(context: typer.Context) -> int:
    """Every run with its state and version."""
    return session_of(context).order("run.list")


@command(app, "show")
def show(context: typer.Context, run: OneRun = None) -> int:
    """The run's settings, state and reason."""
    return session_of(context).order("run.show", {"run": run})


@command(app, "pause")
def pause(context: typer.Context, run: OneRun = None) -> int:
    """Merge nothing until the run is resumed; updates are still taken."""
    return session_of(context).order("run.pause", {"run": run})


@command(app, "resume")
def resume(context: typer.Context, run: OneRun = None) -> int:
    """Go on after a pause."""
    return session_of(context).order("run.resume", {"run": run})


@command(app, "stop")
def stop(context: typer.Context, run: OneRun = None, yes: Yes = False) -> int:
    """End the run in order; what waits gets its receipt."""
    return session_of(context, yes).order("run.stop", {"run": run})


@command(app, "abort")
def abort(context: typer.Context, run: OneRun = None, yes: Yes = False) -> int:
    """End the run at once; workers drop what they train."""
    return session_of(context, yes).order("run.abort", {"run": run})
