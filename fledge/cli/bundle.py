"""`fledge bundle`: MONAI bundles to begin with or made of Clara MMARs, and a look at one and its data beforehand."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.cli.options import AsJson, ConfigFiles, named_value

if TYPE_CHECKING:
    from worker.bundles.check import BundleReport

app = typer.Typer(
    name="bundle", help="MONAI bundles: begin with one, check one, make one of a Clara MMAR.", no_args_is_help=True
)

_SHOWN = 50


@app.command("list")
def list_points(as_json: AsJson = False) -> None:
    """List the starting points that `fledge bundle new` makes bundles of."""
    from fledge.runs.zoo import starting_points

    known = starting_points()
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in known]))
        return
    width = max(len(each.name) for each in known)
    for each in known:
        trained = f" [pretrained: {each.pretrained}]" if each.pretrained else ""
        typer.echo(f"{each.name:<{width}}  {each.description}{trained}")


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="A new folder; its last part is the bundle's name.")],
    start: Annotated[str, typer.Option("--from", help="The starting point; `fledge bundle list` shows all.")],
    weights: Annotated[
        str, typer.Option(help="random; or pretrained, for the starting points that come with trained weights.")
    ] = "random",
) -> None:
    """Make a MONAI bundle of a starting point: complete configurations to read and edit, and weights to begin with.

    Nothing is downloaded. docs/README.md in the new folder says how the data have to lie and what to look at first.
    """
    from fledge.runs.zoo import new_bundle
    from worker.monai.pretrained import CARD

    card = new_bundle(folder, start, weights=weights)
    typer.echo(f"{folder}: a bundle made of {start}; read {folder / 'docs' / 'README.md'}")
    if card is not None:
        typer.echo(f"trained weights: {card.told()}; {card.licence}; {folder / CARD} says what they are")
    typer.echo(f"then `fledge bundle check {folder} --data DIR`, and `fledge init-run --bundle {folder} -o run`")


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The site's data, which it calls dataset_dir: check them too.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=VALUE", help="As in the site's overrides, such as train#dataloader#batch_size=1."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the headers of images, not their values, and no first batch.")
    ] = False,
    config_file: ConfigFiles = None,
    as_json: AsJson = False,
) -> None:
    """Look whether a bundle can be trained, and with --data whether this site's data go with it.

    Looked at are the configurations, the metadata, the packages, the network; and of the data every file of the lists:
    that it is there and readable, shapes, channels, label values, duplicates between training and validation. At last
    the first batch goes through transforms, network and loss. Nothing leaves this machine: what is printed may name
    patients' files, so it is for people of this hospital.

    The bundle's code is run here, as it will be in training. Exit code 0: nothing to correct (there may be warnings);
    1: something is wrong; 2: the command is.
    """
    from fledge.process.terminal import clean
    from worker.bundles.check import check_bundle

    if data is not None and not quick:
        typer.echo("every image is read once, which takes its time with many (--quick: headers alone)", err=True)
    overrides = dict(named_value(text, "--override") for text in override or ())
    with warnings.catch_warnings(action="ignore"):  # what libraries say about themselves; what is wrong is a finding
        report = check_bundle(bundle, data, overrides=overrides, quick=quick, config_file=config_file)
    typer.echo(json.dumps(_document(report)) if as_json else "\n".join(map(clean, _lines(report))))
    if not report.good:
        raise typer.Exit(1)


@app.command()
def convert(
    mmar: Annotated[Path, typer.Argument(help="The folder of a Clara MMAR (3.1 or 4.x).")],
    bundle: Annotated[Path, typer.Argument(help="A new folder for the bundle.")],
    config: Annotated[str, typer.Option(help="The training configuration in its config folder.")] = "config_train.json",
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE before environment.json and the configuration; may be given again."),
    ] = None,
) -> None:
    """Translate a Clara MMAR to a MONAI bundle; nothing of the MMAR is run.

    Tells what was mapped, what was left out, and what each site has to set. The bundle is yours to work on; `fledge
    init-run --bundle BUNDLE` makes a run of it. What has no equal in MONAI is refused by name. A bundle holds no
    settings of a run: `fledge init-run --bundle MMAR` takes them from its config_fed_*.json.
    """
    from fledge.runs.from_mmar import lines
    from worker.mmar.convert import write
    from worker.trainers.mmar import convert_mmar

    converted = convert_mmar(mmar, config=config, given=dict(named_value(text, "--set") for text in given or ()))
    write(converted, bundle)
    for line in lines(converted.notes):
        typer.echo(line)
    typer.echo(f"{bundle}: then `fledge init-run --bundle {bundle} -o RUN`")
    if any((mmar / "config").glob("config_fed_*.json")):
        typer.echo(
            f"its config_fed_*.json stays behind; `fledge init-run --bundle {mmar} -o RUN` makes a run's settings of it"
        )


def _document(report: BundleReport) -> dict[str, object]:
    return {"good": report.good, **asdict(report)}


def _lines(report: BundleReport) -> list[str]:
    lines = []
    if (network := report.network) is not None:
        size = f"{network.parameters:,} parameters, {network.tensors} tensors, {network.bytes / 1e6:.4g} MB an update"
        lines.append(f"network: {network.kind}, {size}")
    counts = ((report.training, "to train on"), (report.validation, "to validate on"))
    if told := [f"{count} {what}" for count, what in counts if count is not None]:
        lines.append(f"data: {', '.join(told)}")
    if report.loss is not None:
        lines.append(f"first batch: loss {report.loss:.4g}")
    lines += [str(each) for each in report.findings[:_SHOWN]]
    if (more := len(report.findings) - _SHOWN) > 0:
        lines.append(f"and {more} more; --json writes all")
    lines.append("nothing to correct" if report.good else "not ready: correct the errors, and check again")
    return lines
