"""What the aggregator attests about one update for anybody to check: from the journal's rows to the signed record."""

from __future__ import annotations

import hashlib

import nacl.utils

from aggregator.domain.state import OUTCOME, UpdateState
from aggregator.operators.queries import as_member, update_row
from aggregator.operators.view import Arguments, QueryContext, Values, base64_lines
from protocol.envelope import seal
from protocol.keys import Identity
from protocol.messages import Attestation, Kind, Outcome


def attest(view: QueryContext, arguments: Arguments, identity: Identity, federation: str, now: float) -> Values:
    """The signed record about the update that an argument names, as lines of base64.

    Raises:
        ConfigError: there is none that may be told of, or several.
    """
    row = update_row(view, arguments)
    member, model = as_member(view, row)
    said = Attestation(
        update=row.id,
        site=row.site,
        base_version=row.base_version,
        outcome=OUTCOME.get(UpdateState(row.state), Outcome.JOURNALLED),
        reason=row.reason,
        digest=hashlib.sha256(row.envelope).digest() if row.envelope else None,
        examples=row.examples,
        weight=None if member is None else member.weight,
        model=model or None,
        arrived=_milliseconds(row.arrived),
        settled=_milliseconds(row.settled),
        issued=_milliseconds(now) or 0,
    )
    place = {"run": row.run, "epoch": row.epoch, "sequence": row.sequence, "version": row.version}
    record = seal(
        identity, Kind.ATTESTATION, said, (), federation=federation, message_id=nacl.utils.random(16), **place
    )
    return {"record": base64_lines(record)}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, round(seconds * 1000))
