"""A receipt as an operator gets it: asked for at the hub, checked here, written to a file."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.ctl.session import Session
from protocol.errors import ConfigError, Malformed, WrongContext

if TYPE_CHECKING:
    from fledge.operator.console import Answer


def receipt(session: Session, update: str, out: Path | None) -> list[Answer]:
    """The signed word on an update, in words, and as a file if one is named.

    Raises:
        ConfigError: the file exists already or cannot be written.
        WireError: what came was not signed by this federation's aggregator.
        WrongContext: it is about another update.
    """
    from deploy.keyfiles import write_private
    from fledge.receipts import SignedReceipt

    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already; choose another name or remove it")
    (answer,) = session.ask("update.receipt", {"update": update})
    if not answer.ok:
        return [answer]
    console = session.console
    try:
        record = base64.b64decode("".join(map(str, answer.column("record"))), validate=True)
    except ValueError as error:
        raise Malformed("the aggregator's receipt is not base64; upgrade whichever of the two is older") from error
    signed = SignedReceipt(record)
    facts = signed.facts(console.registry, console.federation)
    if not str(facts["update"]).startswith(update.lower()):
        raise WrongContext(f"the aggregator signed about update {facts['update']}, which was not asked for")
    if out is not None:
        write_private(out, signed.to_text(console.registry, console.federation).encode())
    return [replace(answer, text="" if out is None else f"written to {out}", values=facts)]
