"""`fledge deploy`: the broker of a federation by its management interface, or everything as files for GitOps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.cli.options import AsJson, server_url
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from deploy.servers.members import BrokerMembers

app = typer.Typer(name="deploy", help="Bring a broker and a store to what a federation needs.", no_args_is_help=True)

MANAGEMENT = "FLEDGE_MANAGEMENT"
Kit = Annotated[Path | None, typer.Option(help="The hub's kit: a folder that holds aggregator.toml.")]
RegistryFile = Annotated[Path | None, typer.Option("--registry", help="The signed registry, without a kit.")]
Root = Annotated[str, typer.Option(help="With --registry: the federation root's key, in hex.")]
Federation = Annotated[str, typer.Option(help="With --registry: the federation's name.")]
Vhost = Annotated[str, typer.Option(help="The vhost; default: the one in the kit's broker URL.")]

ManagementUrl = Annotated[
    str,
    typer.Option(help=f"http(s)://user@host:port of the management interface; default: {MANAGEMENT}, password too."),
]
Authorities = Annotated[Path | None, typer.Option(help="Authorities to believe for https; default: the kit's.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow http to another machine.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a federation needs, and where."""

    members: BrokerMembers
    registry: Path
    version: int
    """Of the list of members."""
    vhost: str
    ca: str | None
    store: str
    port: int | None = None
    """Of the broker's address."""


@app.command()
def broker(
    kit: Kit = None,
    registry: RegistryFile = None,
    root: Root = "",
    federation: Federation = "",
    vhost: Vhost = "",
    management: ManagementUrl = "",
    ca: Authorities = None,
    insecure: Insecure = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make vhost, exchanges, queues, limits and users of all members; former members lose theirs. Idempotent."""
    from deploy.servers.apply import Management, apply_members

    wanted = _wanted(kit, registry, root, federation, vhost)
    trusted = str(ca) if ca is not None else wanted.ca
    with Management(_management(management), ca=trusted, insecure=insecure) as interface:
        done = apply_members(interface, wanted.vhost, wanted.members, dry_run=dry_run)
    changes = [str(change) for change in done.changes]
    if as_json:
        typer.echo(json.dumps({"vhost": wanted.vhost, "dry_run": dry_run, "changes": changes, "notes": done.notes}))
        return
    _tell(changes, "would " if dry_run else "")
    for note in done.notes:
        typer.secho(f"note: {note}", fg=typer.colors.YELLOW, err=True)
    typer.echo(f"vhost {wanted.vhost}: {_count(len(changes), dry_run)} for {len(wanted.members.logins)} members")


@app.command()
def members(
    provisioner: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The provisioner's registry.bin and store.json, or copies of them.")
    ],
    kit: Annotated[Path, typer.Option(help="The hub's kit: a folder that holds aggregator.toml.")],
    operator: Annotated[
        Path | None, typer.Option(help="An operator's kit, which puts the list of members in force.")
    ] = None,
    identities: Annotated[
        Path | None, typer.Option(metavar="FILE", help="SeaweedFS's identities.json, to be written anew.")
    ] = None,
    management: ManagementUrl = "",
    ca: Authorities = None,
    insecure: Insecure = False,
) -> None:
    """Let in who has joined and shut out who has left: broker, store, list of members, in this order.

    May be run again, until the last step: the aggregator refuses a list that is in force already (exit code 1).
    """
    from broker.net.urls import path_of
    from deploy.docker.seaweedfs import write_identities
    from deploy.keyfiles import replace_as_was

    new, own = provisioner / "registry.bin", _wanted(kit, None, "", "", "")
    wanted = _wanted(kit, new, "", "", "")
    if wanted.version < own.version:
        raise ConfigError(
            f"{new} is version {wanted.version} of the list of members, and {kit} has version {own.version} already;"
            " bring the provisioner's newest"
        )
    _bring(wanted, management, ca, insecure)
    if wanted.version > own.version:
        replace_as_was(own.registry, new.read_bytes())  # what a later `deploy broker --kit` begins from
    if identities is not None:
        count = write_identities(path_of(wanted.store).strip("/"), provisioner / "store.json", identities)
        typer.echo(f"{identities}: {count} identities; have SeaweedFS read it again: kill -HUP its process")
    if operator is None:
        typer.echo(f"to put it in force: fledge ctl --kit OPERATOR registry put {new}")
        return
    from fledge.ctl.commands.registry import put_in_force
    from fledge.ctl.session import Session

    with closing(Session(operator)) as session:
        if code := put_in_force(session, new):
            raise typer.Exit(code)


def _bring(wanted: _Wanted, management: str, ca: Path | None, insecure: bool) -> None:
    """Bring the broker to what the members need, and say what that took."""
    from deploy.servers.apply import Management, apply_members

    with Management(_management(management), ca=str(ca) if ca else wanted.ca, insecure=insecure) as interface:
        done = apply_members(interface, wanted.vhost, wanted.members)
    _tell(map(str, done.changes), "")
    for note in done.notes:
        typer.secho(f"note: {note}", fg=typer.colors.YELLOW, err=True)
    typer.echo(f"vhost {wanted.vhost}: {_count(len(done.changes), False)} for {len(wanted.members.logins)} members")


@app.command()
def files(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The directory; what is in it already is brought up to date.")
    ],
    kit: Kit = None,
    registry: RegistryFile = None,
    root: Root = "",
    federation: Federation = "",
    vhost: Vhost = "",
    bucket: Annotated[str, typer.Option(help="The bucket, or bucket/prefix; default: as in the kit's store URL.")] = "",
    tls: Annotated[str, typer.Option(help="Where ca.pem, server.pem and server.key lie on the broker.")] = "",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where RabbitMQ listens; default: the port in the kit's broker URL."),
    ] = None,
) -> None:
    """Write RabbitMQ's definitions and settings and the store's policies; the same members give the same bytes."""
    from broker.net.urls import path_of
    from deploy.servers.gitops import AMQPS_PORT, TLS_DIRECTORY, deployment_files, write_files

    wanted = _wanted(kit, registry, root, federation, vhost)
    bucket = bucket or path_of(wanted.store).strip("/")
    if not bucket:
        raise ConfigError("which bucket? give --bucket, or the hub's --kit")
    listens = port or wanted.port or AMQPS_PORT
    made = deployment_files(wanted.vhost, bucket, wanted.members, tls=tls or TLS_DIRECTORY, port=listens)
    changed = write_files(out, made)
    _tell(changed, "wrote " if changed else "")
    typer.echo(f"{out}: {_count(len(changed), False)}; RabbitMQ listens on port {listens}")


def _wanted(kit: Path | None, registry: Path | None, root: str, federation: str, vhost: str) -> _Wanted:
    """The members and where they go, from the hub's kit or from a registry and what it takes to believe it."""
    from deploy.keyfiles import read_bounded
    from deploy.servers.members import members_of
    from protocol.limits import STORED_RECORD
    from protocol.registry import open_registry

    ca, store, port = None, "", None
    if kit is not None:
        from broker.net.urls import split_url
        from fledge.connections import tls_of
        from fledge.doctor.place import read_kit

        place = read_kit(kit)
        found = tls_of(place.config, kit)
        ca, store = None if found is None else found.ca, place.store
        registry, root = registry or kit / place.config.registry, root or place.config.root
        port = split_url(place.config.broker, "broker URL").port if "://" in place.config.broker else None
        federation, vhost = federation or place.config.federation, vhost or place.vhost
    if registry is None or not (root and federation and vhost):
        raise ConfigError("whose broker? give the hub's --kit, or --registry, --root, --federation and --vhost")
    try:
        key = bytes.fromhex(root)
    except ValueError:
        raise ConfigError("--root has to be the root's key in hex, as in aggregator.toml") from None
    record = read_bounded(registry, STORED_RECORD, "the signed registry")
    listed = open_registry(record, key, federation)
    return _Wanted(
        members=members_of(listed),
        registry=registry,
        version=listed.version,
        vhost=vhost,
        ca=ca,
        store=store,
        port=port,
    )


def _management(given: str) -> str:
    """The management URL with its login: the environment's, or the one given and a password that is asked for."""
    from broker.net.urls import split_url, with_login

    if not given:
        url = os.environ.get(MANAGEMENT, "")
        if not url:
            raise ConfigError(
                f"where is the broker's management? put its URL, with an administrator's login, into {MANAGEMENT} "
                "(RabbitMQ on this machine: port 15672, http)"
            )
        return url
    parts = split_url(server_url(given, "--management", MANAGEMENT), "--management")
    if not parts.user or not parts.host or parts.password:
        raise ConfigError("--management has to look like https://user@host:15671")
    return with_login(given, parts.user, _asked(f"password of {parts.user} at {parts.host}"))


def _asked(what: str) -> str:
    return str(typer.prompt(what, hide_input=True, err=True))


def _tell(changes: Iterable[str], before: str) -> None:
    for change in changes:
        typer.echo(f"{before}{change}")


def _count(number: int, dry_run: bool) -> str:
    if not number:
        return "nothing to change"
    return f"{number} {'change' if number == 1 else 'changes'}{' to make' if dry_run else ' made'}"
