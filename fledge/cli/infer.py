"""`fledge infer`: a hospital uses what its run has learned, on its own images and without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import ConfigFiles
from fledge.cli.site import WORKER_TOML, Config, Kit, at


def infer(
    run: Annotated[str, typer.Argument(help="The run's name; `fledge site models` lists what is here.")],
    images: Annotated[Path, typer.Option("--in", help="A folder of images, or laid out as the bundle expects.")],
    output: Annotated[Path, typer.Option("--out", help="A new folder for the results.")],
    model: Annotated[
        str,
        typer.Option(
            help="best: did best on this site's own data; global: the newest one here; or a version's number."
        ),
    ] = "best",
    bundle: Annotated[
        Path | None, typer.Option(help="A MONAI bundle to infer with; by default the one that trains the run.")
    ] = None,
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:1; default: the site's, or the bundle's.")] = "",
    config_file: ConfigFiles = None,
    config: Config = WORKER_TOML,
    kit: Kit = None,
) -> None:
    """Use a run's model on images of this hospital: offline, beside its worker, with the bundle's own inference."""
    from rich.console import Console
    from rich.progress import Progress

    from fledge import inference

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("inferring", total=None)
        done = inference.infer(
            at(config, kit),
            inference.InferenceRequest(run, model, images, output, bundle, device, tuple(config_file or ())),
            progress=lambda count, total: bars.update(task, completed=count, total=total or None),
        )
    where = "the bundle's own list" if done.own_list else f"all images in {images}"
    did = "".join(f", {name} {value:.4g}" for name, value in done.metrics.items())
    typer.echo(f"{done.run} version {done.version}{did}")
    typer.echo(f"{done.images} images ({where}); results in {output}")
