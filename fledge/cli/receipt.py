"""What became of updates, without the hub: `fledge receipt verify`, `fledge site receipts`, `fledge site receipt`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.cli.options import WORKER_TOML, AsJson, SiteConfig, SiteKit
from fledge.cli.site import at, state_of
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from fledge.receipts import Facts
    from protocol.codec import Plain
    from protocol.registry import Registry
    from worker.domain.state import SentUpdate

app = typer.Typer(name="receipt", help="Receipts that the aggregator signed.", no_args_is_help=True)

AnyKit = Annotated[
    Path, typer.Option("--kit", envvar="FLEDGE_KIT", help="Any kit of the federation: an unpacked folder.")
]
_SHORT = 16


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `site receipt` or of `ctl update receipt`.")],
    kit: AnyKit = Path(),
    as_json: AsJson = False,
) -> None:
    """Check a receipt against the kit's root and list of members, without any server; exit code 1: it does not hold."""
    from deploy.keyfiles import read_bounded
    from fledge.receipts import LIMIT, check

    registry, federation = members_of(kit)
    facts = check(read_bounded(file, LIMIT, "a receipt"), registry, federation)
    ours = _is_ours(facts, kit)
    _show(facts, as_json)
    if not as_json:
        typer.echo(f"it holds: the aggregator of {federation} signed this, and nothing was altered")
        if ours:
            typer.echo("update_sha256 is that of the update which this site sealed and sent")


def receipts(
    config: SiteConfig = WORKER_TOML,
    kit: SiteKit = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the updates that this site sent and what became of each, the newest first; the hub is not asked."""
    found = _sent(at(config, kit))[:limit]
    if as_json:
        typer.echo(json.dumps([_row(each) for each in found]))
        return
    for each in found:
        row = _row(each)
        said = each.outcome + (f" into version {each.version}" if each.outcome == "merged" else f" ({each.reason})")
        typer.echo(f"{each.id.hex()[:_SHORT]}  {row['at']}  {each.run} from version {each.base_version}: {said}")
    if not found:
        typer.echo("this site has not sent an update yet")


def receipt(
    update: Annotated[str, typer.Argument(help="The update, as `fledge site receipts` names it.")],
    config: SiteConfig = WORKER_TOML,
    kit: SiteKit = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new file for it, which `fledge receipt verify` checks.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the receipt of one update as the aggregator signed it; with -o also as a file for others."""
    from deploy.keyfiles import read_identity, write_private
    from fledge.doctor.members import newest_registry
    from fledge.doctor.place import read_place
    from fledge.receipts import SignedReceipt
    from worker.config import read_config

    path = at(config, kit)
    found = [each for each in _sent(path) if len(update) >= 4 and each.id.hex().startswith(update.lower())]
    if len(found) != 1:
        raise ConfigError(
            f"{update}: {'several updates begin' if found else 'no update begins'} with these digits (four at least); "
            "`fledge site receipts` lists them"
        )
    (sent,) = found
    if not sent.receipt:
        raise ConfigError(f"there is no receipt of {sent.id.hex()[:_SHORT]}: {sent.outcome} ({sent.reason})")
    settings = read_config(path)
    identity = read_identity(path.parent / settings.keys)
    registry = newest_registry(read_place(path))
    signed = SignedReceipt.opened(sent.receipt, identity, registry, settings.federation)
    if out is not None:
        write_private(out, signed.to_text(registry, settings.federation).encode())
    _show(signed.facts(registry, settings.federation), as_json)
    if out is not None and not as_json:
        typer.echo(f"written to {out}")


def _row(sent: SentUpdate) -> dict[str, Plain]:
    at = datetime.fromtimestamp(sent.at, UTC).isoformat(timespec="seconds")
    told: dict[str, Plain] = {"update": sent.id.hex(), "at": at, "run": sent.run, "base_version": sent.base_version}
    told |= {"epoch": sent.epoch, "sequence": sent.sequence, "outcome": sent.outcome, "reason": sent.reason}
    return told | {"version": sent.version if sent.outcome == "merged" else None}


def _show(facts: Facts, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<14} {'-' if value is None else value}")


def members_of(kit: Path) -> tuple[Registry, str]:
    """The newest list of members in any kit's folder, and the federation's name.

    Raises:
        ConfigError: it is no kit.
        WireError: its list of members is not signed by the root.
    """
    from fledge.doctor.members import newest_registry
    from fledge.doctor.place import read_kit

    place = read_kit(kit if kit.is_dir() else kit.parent)
    return newest_registry(place), place.config.federation


def _is_ours(facts: Facts, kit: Path) -> bool:
    """Whether this site knows the update by its digest; nothing is said of other sites' and of those from before.

    Raises:
        Tampered: this site sealed the update, but not those bytes.
    """
    from protocol.errors import Tampered
    from worker.config import read_config
    from worker.journal.journal import Journal

    folder, digest = kit if kit.is_dir() else kit.parent, facts.get("update_sha256")
    config = folder / WORKER_TOML
    if digest is None or not config.exists():
        return False
    database = folder / read_config(config).state / "worker.db"
    sealed = Journal.digests_beside(database, bytes.fromhex(str(facts["update"]))) if database.exists() else ()
    if sealed and bytes.fromhex(str(digest)) not in sealed:
        raise Tampered(
            f"the aggregator signed this, but for other bytes (SHA-256 {digest}) than those that this site sealed as "
            f"update {str(facts['update'])[:_SHORT]}; tell the hub's administrators"
        )
    return bool(sealed)


def _sent(config: Path) -> list[SentUpdate]:
    from worker.journal.journal import Journal

    return Journal.sent_beside(state_of(config) / "worker.db")
