"""What an operator does with runs in several steps, for `fledge ctl run …` and for Clara's commands alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.ctl import render
from fledge.ctl.progress import moving
from fledge.ctl.session import Session
from protocol.errors import ConfigError, Tampered
from protocol.messages import GOING_ON

if TYPE_CHECKING:
    from fledge.operator.console import Answer
    from fledge.runs.upload import Packed


import json

from fledge.operator.members import folder_of

_HEX = 64


def create(session: Session, folder: Path, name: str = "") -> list[Answer]:
    """Pack a run's folder, send it, and have the aggregator take it over.

    Raises:
        ConfigError: the folder is no run, or the run's name is in use.
    """
    from fledge.runs.upload import pack

    packed = pack(folder, name)
    return take_over(session, packed, upload(session, packed))


def upload(session: Session, packed: Packed) -> str:
    """Encrypt a run for the aggregator, put it into the store, and return the SHA-256 of its record in hex.

    Raises:
        ConfigError: a run of this name is there.
    """
    from fledge.runs.upload import send

    (listed,) = session.ask("run.list")[:1]  # before gigabytes are sent in vain; a newer registry comes with it
    if listed.ok and packed.name in listed.column("run"):
        raise ConfigError(
            f"there is a run {packed.name!r} already; give this one another name (--name), nothing was sent"
        )
    console = session.console
    with console.store() as store, moving(f"sending {packed.name}", packed.size) as progress:
        return send(packed, console.identity, console.federation, console.registry, store, progress=progress)


def take_over(session: Session, packed: Packed, record: str) -> list[Answer]:
    """Have the aggregator make a run of what was sent, and note its code for `deploy`.

    Raises:
        Tampered: the aggregator took over something else.
    """
    answers = session.ask("run.create", {"run": packed.name, "record": record})
    (answer,) = answers
    if answer.ok or answer.reason == render.NO_ANSWER:
        if answer.ok and answer.values.get("code", "") != packed.digest:
            raise Tampered(
                f"the aggregator says that {packed.name} has the code {answer.values.get('code') or '(none)'}, but "
                f"{packed.digest or 'none'} was sent; do not deploy it, and delete the run"
            )
        remember(session.kit, packed.name, packed.digest)
    return answers


def clone(session: Session, run: str, new: str) -> list[Answer]:
    """Make a new run from another one's settings, code and version 0."""
    answers = session.ask("run.clone", {"run": run, "as": new})
    known = codes(session.kit).get(run)
    if answers[0].ok and known is not None and answers[0].values.get("code", "") == known:
        remember(session.kit, new, known)
    return answers


def deploy(session: Session, run: str, sites: Sequence[str], code: str = "") -> list[Answer]:
    """Have sites take over a run's code, once it is known to be the code that was meant.

    Args:
        sites: none means all of the federation.
        code: the SHA-256 it has to have, in hex; otherwise what this kit created counts, otherwise a person's word.

    Raises:
        ConfigError: it is other code, or it was not confirmed.
    """
    if code and not _is_digest(code):
        raise ConfigError(f"--code {code!r} is not a SHA-256 in hex; `fledge init-run` and `run create` print it")
    offered = session.ask("run.offer", {"run": run})
    if not offered[0].ok:
        return offered
    values = offered[0].values
    found = str(values.get("code") or "")
    if values.get("run", run) != run or (found and not _is_digest(found)):
        raise ConfigError(f"the aggregator answered about something other than run {run}; no site was told anything")
    targets = list(sites) or session.sites()
    known = code.lower() or codes(session.kit).get(run)
    if known is None:
        _confirm(session, run, found, targets)
    elif known != found:
        raise ConfigError(
            f"run {run} has the code {found or '(none)'} at the aggregator, but {known or 'none'} was meant; no site "
            "was told to run it: find out who changed what"
        )
    return session.ask("run.deploy", {"run": run, "code": found, "record": values.get("record", "")}, targets)


def delete(session: Session, run: str, *, sites: bool) -> list[Answer]:
    """Forget a run at the aggregator, and before that what all sites keep of it.

    Raises:
        ConfigError: it was not confirmed.
    """
    session.confirm("run.delete", {"run": run})
    said: list[Answer] = []
    if sites:
        said += session.ask("run.withdraw", {"run": run}, session.sites())
    said += session.ask("run.delete", {"run": run})
    if said[-1].ok:
        remember(session.kit, run, None)
    return said


def the_run(session: Session, run: str | None) -> str:
    """The run that is meant: the one named, or else the only one that goes on.

    Raises:
        ConfigError: none or several do.
    """
    if run:
        return run
    (listed,) = session.ask("run.list")[:1]
    if not listed.ok:
        raise ConfigError(f"the runs are not known: {listed.why}; name the run")
    rows = render.parts(listed.values).rows()
    going = [str(row["run"]) for row in rows if row.get("state") in GOING_ON] or [str(row["run"]) for row in rows]
    if len(going) != 1:
        raise ConfigError(f"which run? {', '.join(going) or 'there is none yet'}; name one")
    return going[0]


def _confirm(session: Session, run: str, code: str, targets: Sequence[str]) -> None:
    where = f"{len(targets)} sites" if len(targets) > 1 else targets[0]
    what = f"code {code}" if code else "no code of its own, so that sites train with theirs"
    text = f"run.deploy: this kit has not created {run}, which has {what}. It would run at {where}."
    session.confirm_word("run.deploy", text, run)


def _is_digest(text: str) -> bool:
    return len(text) == _HEX and all(letter in "0123456789abcdef" for letter in text.lower())


FILE = "runs.json"
_LIMIT = 1024 * 1024


def codes(kit: Path) -> dict[str, str]:
    """SHA-256 of the code (hex; empty: none) of every run that was created with this kit.

    Raises:
        ConfigError: the file is damaged, or others may read it.
    """
    from deploy.keyfiles import must_be_private, read_bounded

    path = folder_of(kit) / FILE
    if not path.exists():
        return {}
    must_be_private(path, path.stat().st_mode)
    try:
        found = json.loads(read_bounded(path, _LIMIT, "the list of runs created with this kit"))["codes"]
        return {str(run): str(code) for run, code in found.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is damaged; remove it, and compare digests by --code from then on") from None


def remember(kit: Path, run: str, code: str | None) -> None:
    """Note a run's code; None forgets the run.

    Raises:
        ConfigError: the file cannot be written.
    """
    from deploy.keyfiles import replace_private

    held = codes(kit)
    changed = {name: each for name, each in held.items() if name != run} | ({} if code is None else {run: code})
    if changed != held:
        replace_private(folder_of(kit) / FILE, json.dumps({"codes": changed}, indent=1).encode())
