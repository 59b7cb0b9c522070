"""`fledge site`: what is said and looked up at a hospital, beside its running worker and without any network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigError, StateError

if TYPE_CHECKING:
    from worker.events import RunRow

app = typer.Typer(
    name="site", help="At a hospital: approve or refuse runs, look at what went wrong.", no_args_is_help=True
)

Config = Annotated[Path, typer.Option("--config", help="The site's configuration file.")]
Kit = Annotated[Path | None, typer.Option("--kit", help="Or: the site's kit, the folder that holds worker.toml.")]
Run = Annotated[str, typer.Argument(help="The run's name, as `fledge site waiting` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]
WORKER_TOML = Path("worker.toml")


@app.command()
def waiting(config: Config = WORKER_TOML, kit: Kit = None, as_json: AsJson = False) -> None:
    """List the runs that wait for somebody here to say yes."""
    from worker.config import read_config, site_policy

    config = _at(config, kit)
    settings = read_config(config)
    asked = site_policy(settings, config.parent).ask_first
    runs = [run for run, answer in _runs(config).values() if answer is None] if asked else []
    if as_json:
        typer.echo(json.dumps([{"run": run.run, "version": run.version} for run in runs]))
        return
    for run in runs:
        typer.echo(f"{run.run}: version {run.version}; say `fledge site approve {run.run}` or `… refuse {run.run}`")
    if not runs:
        typer.echo("no run is waiting" + ("" if asked else "; the policy does not ask first (`ask_first`)"))


@app.command()
def approve(run: Run, config: Config = WORKER_TOML, kit: Kit = None) -> None:
    """Let this site train a run; the worker hears of it with its next sign of life."""
    _say(_at(config, kit), run, approved=True)


@app.command()
def refuse(run: Run, config: Config = WORKER_TOML, kit: Kit = None) -> None:
    """Let this site not train a run: a training under way is stopped, and none begins."""
    _say(_at(config, kit), run, approved=False)


@app.command()
def cases(config: Config = WORKER_TOML, kit: Kit = None, as_json: AsJson = False) -> None:
    """List what went wrong here, the newest first; operators elsewhere see the numbers alone."""
    from worker.cases import Cases

    found = Cases(state_of(_at(config, kit)) / "cases").all()
    if as_json:
        typer.echo(json.dumps([{"case": case.number, "title": case.title} for case in found]))
        return
    for case in found:
        typer.echo(f"{case.number}  {case.title}")
    if not found:
        typer.echo("no case is kept here")


@app.command()
def case(
    number: Annotated[str, typer.Argument(help="The case's number.")],
    config: Config = WORKER_TOML,
    kit: Kit = None,
) -> None:
    """Show the full text of a case. It may name patients: it is for people of this hospital."""
    from worker.cases import Cases

    typer.echo(Cases(state_of(_at(config, kit)) / "cases").text(number))


def _at(config: Path, kit: Path | None) -> Path:
    return config if kit is None else kit / WORKER_TOML


def state_of(config: Path) -> Path:
    """The state directory of a site with this configuration, which belongs to the user that its worker runs as.

    Raises:
        StateError: it is not there, or is somebody else's.
    """
    from worker.config import read_config

    state = config.parent / read_config(config).state
    try:
        owner = state.stat().st_uid
    except OSError as error:
        raise StateError(f"{state}: {error.strerror}; has the worker been started here?") from error
    if owner != os.geteuid():
        raise StateError(f"{state} belongs to another user; say it as the user that the worker runs as")
    return state


def _runs(config: Path) -> dict[str, tuple[RunRow, bool | None]]:
    """The runs under way that the worker knows, and what was said to each so far."""
    from protocol.messages import RunState
    from worker.answers import Answers
    from worker.journal import Journal

    state = state_of(config)
    known = Journal.beside(state / "worker.db")
    said = {**known.answers, **Answers(state / "approvals").peek()}
    under_way = (RunState.RUNNING, RunState.PAUSED)
    return {run.run: (run, said.get(run.run)) for run in known.runs if run.state in under_way}


def _say(config: Path, run: str, *, approved: bool) -> None:
    from worker.answers import Answers

    known = _runs(config)
    if run not in known:
        names = ", ".join(sorted(known)) or "none yet"
        raise ConfigError(f"the worker here knows no run {run!r} that is under way; it knows: {names}")
    Answers(state_of(config) / "approvals").say(run, approved)
    typer.echo(f"{run}: {'approved' if approved else 'refused'}; the worker hears of it with its next sign of life")
