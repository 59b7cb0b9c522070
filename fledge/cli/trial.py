"""`fledge try`: one's own trainer, or a bundle, in a federation on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import named_value


def try_(
    factory: Annotated[
        str, typer.Argument(help="Your training code, module:factory; default: as pyproject.toml says.")
    ] = "",
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Or: a MONAI bundle (or a Clara MMAR).")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Given once, the data to divide among the sites; given again, each site's own."),
    ] = None,
    per_site: Annotated[bool, typer.Option("--per-site", help="--data holds a file or folder for each site.")] = False,
    sites: Annotated[int | None, typer.Option(min=1, help="How many sites there are; default: 3.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Divide unevenly by class: Dirichlet's alpha, such as 0.5; default: alike.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the factory; may be given again.")] = None,
    versions: Annotated[int | None, typer.Option(min=1, help="How many versions; default: 20, of a bundle 5.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Such as fedbuff, which waits for nobody; default: fedavg.")
    ] = None,
    held_out: Annotated[float | None, typer.Option(help="The share of the data to measure on; default: 0.2.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the division and all dice; default: 0.")] = None,
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="Without each site alone and all data pooled.")
    ] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report: .md or .json.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the federation and its log in this new directory.")] = None,
) -> None:
    """Try your trainer in a federation on this machine, with the real aggregator and workers, in one process.

    The data of one trainer are divided among the sites, or each site brings its own; a fifth is held out and measures
    every version. At the end the federated model is compared with what each site would have had alone, and with all
    data in one place, each trained for as many steps. Ctrl-C ends it with what there is by then.

    A folder with a dataset.json (`fledge data prepare` makes one) is divided by patient. `--data sample:digits` are
    images of handwritten digits. In a project of `fledge new`, `fledge try` needs nothing more.
    """
    from fledge.trial.options import asked
    from fledge.trial.trial import run_trial

    given = {
        "factory": factory or None,
        "bundle": bundle,
        "data": tuple(data) if data else None,
        "per_site": per_site or None,
        "sites": sites,
        "alpha": alpha,
        "options": dict(named_value(text, "--option") for text in option or ()) or None,
        "versions": versions,
        "strategy": strategy,
        "held_out": held_out,
        "seed": seed,
        "compare": False if no_compare else None,
        "report": report,
        "out": out,
    }
    options = asked({name: value for name, value in given.items() if value is not None}, Path.cwd())
    if not run_trial(options):
        raise typer.Exit(130)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("try")(try_)
