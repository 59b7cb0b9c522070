"""`fledge ctl model …`: versions of the global model, and the catalogue of published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fledge.ctl.options import OldRun, OneRun, Yes, command, group, session_of, the_run

app = group("Versions of the global model, and the models that were published.")

Version = Annotated[
    str | None,
    typer.Argument(
        metavar="VERSION",
        help="A number, `best` or `newest`; default: the best, and the newest as long as no site has measured one.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="A new file; its card goes beside it as FILE.json.")]
Raw = Annotated[bool, typer.Option("--raw", help="The raw version, not the released average.")]
Channel = Annotated[str, typer.Argument(metavar="CHANNEL", help="A channel, such as production.")]
Published = Annotated[str, typer.Argument(metavar="NAME", help="A published model, or a channel.")]


@command(app, "list")
def list_models(context: typer.Context, run: OneRun = None) -> int:
    """Every version: members, staleness, digest."""
    return session_of(context).send("model.list", {"run": run})


@command(app, "show")
def show(
    context: typer.Context,
    run: OneRun = None,
    version: Annotated[int | None, typer.Argument(min=0, help="The version; default: the newest.")] = None,
    old: OldRun = None,
) -> int:
    """One version: who is in it, with which weight."""
    if old is not None and run is not None and run.isdigit() and version is None:
        version = int(run)  # as it was written once: `model show 12 --run chest`
        run = None
    session = session_of(context)
    answers = session.ask("model.show", {"version": version, "run": the_run(run, old)})
    if run is not None and run.isdigit() and version is None and not answers[0].ok:
        hint = f"{answers[0].why} (a version is named after its run: `model show RUN {run}`)"
        answers = [replace(answers[0], text=hint), *answers[1:]]
    return session.told(answers)


@command(app, "export")
def export(context: typer.Context, out: Out, run: OneRun = None, version: Version = None, raw: Raw = False) -> int:
    """Write one version as a file that the safetensors library opens; the aggregator encrypts it for you alone."""
    from fledge.ctl import model_actions

    session = session_of(context)
    return session.told(model_actions.export(session, out, run, model_actions.version_of(version), raw=raw))


@command(app, "publish")
def publish(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="The name it is found under; names are not used twice.")],
    run: OneRun = None,
    version: Version = None,
    raw: Raw = False,
    application: Annotated[str, typer.Option(help="What it is for, such as 'lung segmentation in CT'.")] = "",
    description: Annotated[str, typer.Option(help="What somebody who uses it has to know.")] = "",
    framework: Annotated[str, typer.Option(help="What runs it, such as 'PyTorch 2.9, MONAI 1.5'.")] = "",
    precision: Annotated[str, typer.Option(help="Of its numbers.")] = "float32",
    licence: Annotated[str, typer.Option(help="Under which terms it may be used.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given again.")] = None,
) -> int:
    """Put a version into the catalogue, with a signed card."""
    from fledge.ctl.model_actions import version_of

    said = {"application": application, "description": description, "framework": framework, "licence": licence}
    arguments = {"run": run, "version": version_of(version), "raw": raw, "name": name, "precision": precision, **said}
    return session_of(context).send("model.publish", {**arguments, "labels": tuple(label or ())})


@command(app, "promote")
def promote(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")], channel: Channel) -> int:
    """Let a channel, such as production, name a published model."""
    return session_of(context).send("model.promote", {"name": name, "channel": channel})


@command(app, "rollback")
def rollback(context: typer.Context, channel: Channel, yes: Yes = False) -> int:
    """Let a channel name the model again that it named before."""
    return session_of(context, yes).send("model.rollback", {"channel": channel})


@command(app, "search")
def search(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="In name, application or description.")] = None,
    label: Annotated[str | None, typer.Option(help="With this label only.")] = None,
    channel: Annotated[str | None, typer.Option(help="What this channel names.")] = None,
) -> int:
    """Published models: name, run, version, labels, channels."""
    return session_of(context).send("model.search", {"text": text, "label": label, "channel": channel})


@command(app, "pull")
def pull(context: typer.Context, name: Published, out: Out) -> int:
    """Write a published model as a file, once its signature and its digest were found to be right."""
    from fledge.ctl import model_actions

    session = session_of(context)
    return session.told(model_actions.pull(session, out, name))


@command(app, "card")
def card(context: typer.Context, name: Published) -> int:
    """The signed card of a published model: what it is for, whose updates are in it, what sites measured."""
    from fledge.ctl import model_actions

    session = session_of(context)
    return session.told(model_actions.card(session, name))
