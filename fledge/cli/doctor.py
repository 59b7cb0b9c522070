"""`fledge doctor`: names what is in the way, or tries what must not work."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.cli.options import AsJson
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from fledge.doctor.place import Place
    from fledge.doctor.report import DoctorReport


def doctor(
    kit: Annotated[Path | None, typer.Option(help="A kit's folder: a site's, an operator's or the hub's.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Instead of a kit: a configuration file.")] = None,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="Try on the real servers what must be refused; fail if one works.")
    ] = False,
    no_send: Annotated[
        bool, typer.Option("--no-send", help="At a site: do not tell the hub how the checks went.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find out what is in the way of taking part, hop by hop. Exit code 1: something is.

    A site tells the hub how each check went, in fixed words and numbers (`fledge ctl site show`), unless --no-send.
    """
    import structlog

    from fledge.doctor.adversarial import attack
    from fledge.doctor.examine import examine
    from fledge.doctor.submit import tell_hub

    # What the connections log on the way is in the report, in better words.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    place = _place(kit, config)
    report = attack(place) if adversarial else examine(place)
    sent, told = (False, "") if adversarial or no_send else tell_hub(place, report)
    if as_json:
        typer.echo(json.dumps({**report.document(), "sent": sent, "sending": told}))
    else:
        _show(report, adversarial=adversarial)
        if told:
            typer.echo(told)
    if not report.ok:
        raise typer.Exit(1)


def _place(kit: Path | None, config: Path | None) -> Place:
    from deploy.provision.kit_files import CONFIGURATION
    from fledge.doctor.place import read_kit, read_place

    if kit is not None and config is not None:
        raise ConfigError("give --kit or --config, not both")
    if config is not None:
        return read_place(config)
    if kit is None and not any(Path(name).exists() for name in CONFIGURATION.values()):
        raise ConfigError("whose connections? give --kit FOLDER or --config FILE")
    return read_kit(kit or Path())


def _show(report: DoctorReport, *, adversarial: bool) -> None:
    for line in report.lines():
        typer.echo(line)
    if report.letter:
        typer.echo(f"\nFor the firewall team:\n\n{report.letter}\n")
    summary = report.summary
    if adversarial and report.ok:
        summary = f"{report.participant}: everything that is forbidden was refused"
    typer.secho(summary, fg=typer.colors.GREEN if report.ok else typer.colors.RED)
