"""`fledge site`: what is said and looked up at a hospital, beside its running worker and without any network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.cli.options import WORKER_TOML, AsJson, SiteConfig, SiteKit, config_in
from protocol.errors import ConfigError, StateError

if TYPE_CHECKING:
    from worker.domain.state import RunRow

app = typer.Typer(
    name="site",
    help="At a hospital: approve runs, see what became of updates, what went wrong, which models are here; rehearse.",
    no_args_is_help=True,
)

Run = Annotated[str, typer.Argument(help="The run's name, as `fledge site waiting` shows it.")]


@app.command()
def waiting(config: SiteConfig = WORKER_TOML, kit: SiteKit = None, as_json: AsJson = False) -> None:
    """List the runs that wait for a yes of this hospital."""
    from worker.config import read_config, site_policy

    config = at(config, kit)
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
def approve(run: Run, config: SiteConfig = WORKER_TOML, kit: SiteKit = None) -> None:
    """Let this site train a run; the worker hears of it with its next sign of life."""
    _say(at(config, kit), run, approved=True)


@app.command()
def refuse(run: Run, config: SiteConfig = WORKER_TOML, kit: SiteKit = None) -> None:
    """Let this site not train a run: a training under way is stopped, and none begins."""
    _say(at(config, kit), run, approved=False)


@app.command()
def cases(config: SiteConfig = WORKER_TOML, kit: SiteKit = None, as_json: AsJson = False) -> None:
    """List what went wrong here, the newest first; operators elsewhere see the numbers alone."""
    from worker.storage.incidents import Incidents

    found = Incidents(state_of(at(config, kit)) / "cases").all()
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
    config: SiteConfig = WORKER_TOML,
    kit: SiteKit = None,
) -> None:
    """Show the full text of a case. It may name patients: it is for people of this hospital."""
    from worker.storage.incidents import Incidents

    typer.echo(Incidents(state_of(at(config, kit)) / "cases").text(number))


@app.command()
def models(config: SiteConfig = WORKER_TOML, kit: SiteKit = None, as_json: AsJson = False) -> None:
    """List the versions of each run that `fledge infer` can use here, and how they did on this site's data."""
    from worker.service.assembly import MODELS
    from worker.storage.kept_versions import KeptVersions, best

    known = KeptVersions(state_of(at(config, kit)) / MODELS)
    found = [(each, best(held) is each) for run in known.runs() for held in [known.of(run)] for each in held]
    if as_json:
        rows = [
            {"run": each.run, "version": each.version, "metrics": dict(each.metrics), "best": is_best}
            for each, is_best in found
        ]
        typer.echo(json.dumps(rows))
        return
    for each, is_best in found:
        did = "".join(f"  {name} {value:.4g}" for name, value in each.metrics.items())
        typer.echo(f"{each.run}  version {each.version}{did}{'  best' if is_best else ''}")
    if not found:
        typer.echo("no version is here; the worker keeps those that it trains from")


@app.command()
def rehearse(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Take the options that worker.toml has for this run.")] = "",
    code: Annotated[
        Path | None, typer.Option(help="A run's code to be tried; by default the trainer that worker.toml names.")
    ] = None,
    versions: Annotated[int, typer.Option(min=1, max=1000, help="How many versions to train one after another.")] = 2,
    config: SiteConfig = WORKER_TOML,
    kit: SiteKit = None,
    old: Annotated[str, typer.Option("--run", hidden=True, help="As RUN, which was once named so.")] = "",
) -> None:
    """Try a trainer with this site's data, filters and exclusions: everything is real but federation and store."""
    from fledge.runs.code_archive import CODE
    from worker.api.filters import build
    from worker.config import load_trainer, read_config
    from worker.pipeline.code_loader import FACTORY
    from worker.rehearsal import rehearse

    config, run = at(config, kit), run or old
    settings = read_config(config)
    if code is not None and (code / CODE).is_dir():  # a run's directory
        code = code / CODE
    factory = settings.trainer if code is None else FACTORY
    if factory is None:
        raise ConfigError(f"{config} names no trainer; say with --code which run's code to try")
    options = settings.options_of(run) if run else settings.options
    trainer = load_trainer(factory, options, config.parent if code is None else code)
    filters = build(settings.chain)
    for done in rehearse(trainer, filters, versions=versions, exclude=settings.exclude):
        did = "".join(f"  {name} {value:.4g}" for name, value in done.metrics.items())
        typer.echo(
            f"version {done.version}{did}  then {done.steps} steps on {done.examples} examples in {done.seconds:.1f} s"
            f"  L2 norm of the update {done.norm:.4g}"
        )


def at(config: Path, kit: Path | None) -> Path:
    """The configuration file that two options name."""
    return config_in(kit, config, WORKER_TOML)


def state_of(config: Path) -> Path:
    """The state directory of a site with this configuration, which belongs to the user that its worker runs as.

    Raises:
        StateError: it is not there, or is another user's.
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
    from protocol.messages import RunState
    from worker.journal.approvals import Approvals
    from worker.journal.journal import Journal

    state = state_of(config)
    known = Journal.beside(state / "worker.db")
    said = {**known.answers, **Approvals(state / "approvals").peek()}
    under_way = (RunState.RUNNING, RunState.PAUSED)
    return {run.run: (run, said.get(run.run)) for run in known.runs if run.state in under_way}


def _say(config: Path, run: str, *, approved: bool) -> None:
    from worker.journal.approvals import Approvals

    known = _runs(config)
    if run not in known:
        names = ", ".join(sorted(known)) or "none yet"
        raise ConfigError(f"the worker here knows no run {run!r} that is under way; it knows: {names}")
    Approvals(state_of(config) / "approvals").say(run, approved)
    typer.echo(f"{run}: {'approved' if approved else 'refused'}; the worker hears of it with its next sign of life")
