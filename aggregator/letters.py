"""What the aggregator writes back: receipts to sites, and dead letters about what it could not accept."""

from __future__ import annotations

from collections import Counter

from aggregator.events import Refused, Send, SendRaw, UpdateNotice, UpdateRow
from protocol import limits, topology
from protocol.codec import encode
from protocol.errors import Untrusted
from protocol.keys import Participant
from protocol.messages import Kind, Outcome, Receipt
from protocol.registry import Registry

_WRAPPER = 1024  # room for the fields around the original bytes
_PER_SITE = 256
_HOUR = 3600.0


class Budget:
    """How many dead letters a site may cause: 256 an hour; what exceeds them is only noted in the ledger."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._counts: Counter[str] = Counter()

    def allows(self, site: str, now: float) -> bool:
        """Count one more and say whether it may be published."""
        if now - self._since > _HOUR:
            self._counts.clear()
            self._since = now
        self._counts[site] += 1
        return self._counts[site] <= _PER_SITE


def receipt(
    update: UpdateRow | UpdateNotice, outcome: Outcome, reason: str, *, row: int, id: bytes, version: int, epoch: int
) -> Send:
    """The signed word on one update, for its site alone; `epoch` matters with `sequence_reused` only."""
    return Send(
        row=row,
        id=id,
        exchange=topology.DIRECT,
        key=update.site,
        kind=Kind.RECEIPT,
        body=Receipt(
            message=update.id,
            epoch=update.epoch,
            sequence=update.sequence,
            outcome=outcome,
            reason=reason,
            highest_epoch=epoch,
        ),
        recipient=update.site,
        run=update.run,
        version=version,
    )


def addressee(registry: Registry, site: str) -> Participant:
    """Whom a receipt is sealed for: the keys of this name, the newest ones also when they are revoked.

    Whoever was revoked is still told so; a receipt holds nothing that its site does not know.

    Raises:
        Untrusted: nobody ever had the name.
    """
    for entry in reversed(registry.entries):
        if entry.name == site:
            return entry.participant
    raise Untrusted(f"registry version {registry.version} knows no {site}")


def dead_letter(refused: Refused, *, row: int) -> SendRaw:
    """The original bytes with the reason; of an over-long message as many bytes as fit."""
    letter = {
        "reason": refused.reason,
        "queue": refused.queue,
        "size": len(refused.raw),
        "message": refused.raw[: limits.MESSAGE - _WRAPPER],
    }
    return SendRaw(row=row, exchange=topology.DEAD, key="", body=encode(letter))
