"""`fledge infer`: a hospital uses what its run has learned, on its own images and without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import WORKER_TOML, Also, ConfigFiles, DropDuplicates, SiteConfig, SiteKit, SkipRefused, taken
from fledge.cli.progress import progress_bars
from fledge.cli.site import at


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
    drop_duplicates: DropDuplicates = False,
    also: Also = None,
    skip_refused: SkipRefused = False,
    config: SiteConfig = WORKER_TOML,
    kit: SiteKit = None,
) -> None:
    """Use a run's model on images of this hospital: offline, beside its worker, with the bundle's own inference."""
    from fledge import inference
    from worker.data.sources import counted, few, told_lines

    with progress_bars(lines=True) as progress:
        done = inference.infer(
            at(config, kit),
            inference.InferenceRequest(
                run,
                model,
                images,
                output,
                bundle,
                device,
                tuple(config_file or ()),
                drop_duplicates=drop_duplicates,
                also=taken(also),
                skip_refused=skip_refused,
            ),
            progress=progress,
        )
    where = "the bundle's own list" if done.own_list else f"all images in {images}"
    did = "".join(f", {name} {value:.4g}" for name, value in done.metrics.items())
    for line in counted(done.left_out):
        typer.echo(f"left out, {line}")
    for line in told_lines(done.refused):
        typer.echo(line)
    if done.dropped:
        typer.echo(f"left out as duplicates: {few(done.dropped)}")
    if done.elsewhere:
        typer.echo(f"the bundle saves these on another grid than their images': {few(done.elsewhere)}")
    typer.echo(f"{done.run} version {done.version}{did}")
    drawn = f", {done.pictures} of them drawn on their images (*_overlay.png)" if done.pictures else ""
    typer.echo(f"{done.images} images ({where}); results in {output}{drawn}")
