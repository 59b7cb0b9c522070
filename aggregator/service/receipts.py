"""Receipts as bytes: sealed anew for every transaction, for one site alone."""

from __future__ import annotations

from aggregator.domain.writes import Send
from aggregator.intake import Intake
from protocol.envelope import seal
from protocol.keys import Identity


class ReceiptSealer:
    """Seals what the rules want sent, under the registry that intake reads by."""

    def __init__(self, federation: str, identity: Identity, intake: Intake) -> None:
        self._federation = federation
        self._identity = identity
        self._intake = intake

    def __call__(self, write: Send) -> bytes:
        """The signed bytes of a message.

        Raises:
            Untrusted: nobody ever had the recipient's name.
        """
        return seal(
            self._identity,
            write.kind,
            write.body,
            [self._intake.registry.former(write.recipient)],
            federation=self._federation,
            message_id=write.id,
            run=write.run,
            sequence=write.row,
            version=write.version,
        )
