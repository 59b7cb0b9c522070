"""`fledge provision`, `fledge enrol` and `fledge kit`: from a project file to what each participant starts from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from deploy.provision.kits import KitFacts
    from deploy.provision.provisioning import Provisioned

_SECRET_LIMIT = 1024

Directory = Annotated[Path | None, typer.Option("-o", "--out", help="The provisioner's own folder; keep it offline.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="A file that holds the kit's password; default: ask.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(provision)
    app.command()(enrol)
    app.command()(kit)


def provision(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[PROJECT | NAME...]", help="project.yml; with --renew: who, or all.")
    ] = None,
    out: Directory = None,
    renew: Annotated[bool, typer.Option("--renew", help="New certificates for the same keys.")] = False,
    accept: Annotated[
        Path | None, typer.Option(metavar="REQUEST", help="Answer a request that `fledge enrol` wrote.")
    ] = None,
    code_file: Annotated[
        Path | None, typer.Option(help="With --accept: a file that holds the one-time code; default: ask.")
    ] = None,
    revoke: Annotated[str, typer.Option(metavar="NAME", help="Sign that somebody's keys hold no longer.")] = "",
    reissue: Annotated[str, typer.Option(metavar="NAME", help="A kit with new keys, for one that was lost.")] = "",
    example: Annotated[bool, typer.Option("--example", help="Show a project.yml to start from.")] = False,
) -> None:
    """Make every member's startup kit from a project file; run again, only what is new.

    Send each kit one way and its password another; delete the password's file then, in `passwords` of the folder.
    """
    from datetime import UTC, datetime

    from deploy.provision import provisioning
    from deploy.provision.kit_files import example_project
    from deploy.provision.project import read_project

    if sum((renew, accept is not None, bool(revoke), bool(reissue), example)) > 1:
        raise ConfigError("--renew, --accept, --revoke, --reissue and --example exclude each other; run one by one")
    if example:
        typer.echo(example_project(), nl=False)
        return
    names, now = what or [], datetime.now(UTC)
    if out is None:
        raise ConfigError("say where the provisioner's own folder is, or shall be: -o DIR")
    if renew:
        _show(provisioning.renew(out, names, now))
    elif accept is None and not revoke and not reissue:
        if len(names) != 1:
            raise ConfigError("name one project file; `fledge provision --example` prints one to start from")
        _show(provisioning.provision(read_project(Path(names[0])), out, now))
    elif names:
        raise ConfigError(f"{names[0]!r} has no place here; the project is the one that {out} was made from")
    elif accept is not None:
        from deploy.keyfiles import read_bounded
        from deploy.provision.enrolment import REQUEST_LIMIT

        request = read_bounded(accept, REQUEST_LIMIT, "the request that `fledge enrol` wrote")
        _show(provisioning.accept(out, request, _secret(code_file, "One-time code", "--code-file", hidden=False), now))
    elif revoke:
        _show(provisioning.revoke(out, revoke, now))
    else:
        _show(provisioning.reissue(out, reissue, now))


def enrol(
    target: Annotated[str, typer.Argument(metavar="NAME | FOLDER", help="Your name; with --finish: your folder.")],
    federation: Annotated[str, typer.Option(help="The federation's name.")] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A new folder for the keys.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="For an operator, not a site.")] = False,
    finish: Annotated[Path | None, typer.Option(metavar="KIT.zip", help="Unpack the answer beside the keys.")] = None,
    password_file: PasswordFile = None,
) -> None:
    """Make keys that never leave this machine, and a request to be sent to the provisioner; later unpack the answer."""
    from datetime import UTC, datetime

    from deploy.provision import enrolment
    from protocol.keys import Role

    if finish is not None:
        if federation or out is not None or operator:
            raise ConfigError("--finish needs the kit and the folder that holds the keys, nothing else")
        folder, password = Path(target), _secret(password_file, "Password of the kit")
        _unpacked(enrolment.finish(finish, password, folder, datetime.now(UTC)), folder)
        return
    if not federation or out is None:
        raise ConfigError("say which federation and where to put the keys: --federation NAME -o FOLDER")
    done = enrolment.enrol(out, target, Role.OPERATOR if operator else Role.SITE, federation)
    typer.echo(f"{done.request}: send it to whoever runs {federation}, by any channel")
    typer.echo(f"one-time code, by telephone and shown only now: {done.code}")
    typer.echo(f"when the kit is back: fledge enrol --finish KIT.zip {out}")


def kit(
    archive: Annotated[Path, typer.Argument(metavar="KIT.zip", help="The kit as it was sent.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")],
    password_file: PasswordFile = None,
) -> None:
    """Check a startup kit and unpack it into a new folder that only you can read."""
    from datetime import UTC, datetime

    from deploy.provision.kits import open_kit

    _unpacked(open_kit(archive, _secret(password_file, "Password of the kit"), out, datetime.now(UTC)), out)


def _unpacked(facts: KitFacts, folder: Path) -> None:
    from deploy.provision.pki import expires
    from protocol.keys import titled

    typer.echo(
        f"{folder}: {titled(facts.role, facts.name)} of {facts.federation}, "
        f"certificate until {expires(facts.certificate):%Y-%m-%d}; read {folder / 'README.md'}"
    )


def _secret(path: Path | None, what: str, option: str = "--password-file", *, hidden: bool = True) -> str:
    """A password or code: out of a file, or typed; never an argument, which others can see."""
    if path is not None:
        from deploy.keyfiles import read_bounded

        return read_bounded(path, _SECRET_LIMIT, f"a file with the {what.lower()}").decode("utf-8", "replace").strip()
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}: there is no terminal to ask on; put it into a file and name that with {option}")
    return str(typer.prompt(what, hide_input=hidden, err=True)).strip()


def _show(outcome: Provisioned) -> None:
    from rich.console import Console
    from rich.table import Table

    if outcome.kits:
        table = Table("who", "role", "kit", "password, shown only now", "certificate until", box=None, pad_edge=False)
        for made in outcome.kits:
            table.add_row(made.name, made.role.value, str(made.path), made.password, f"{made.expires:%Y-%m-%d}")
        for column in table.columns:
            column.no_wrap = True
        # As wide as it needs to be: half a password, or one in two lines, is none.
        wide = Console(width=10_000, highlight=False, markup=False)
        wide.print(table, soft_wrap=True, crop=False)
        typer.echo(f"each password is in {outcome.kits[0].password_file.parent}, too; delete it there once it was sent")
    for renewed in outcome.renewed:
        until = f"{renewed.expires:%Y-%m-%d}"
        typer.echo(f"{renewed.name}: put what is in {renewed.folder} over the old files; good until {until}")
    new = " is new" if outcome.changed else " has not changed"
    typer.echo(f"{outcome.registry}: registry version {outcome.version}{new}")
    for note in outcome.notes:
        typer.echo(f"note: {note}")
