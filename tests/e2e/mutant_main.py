"""fledge with one promise broken, as FLEDGE_MUTANT names it: the checks have to find each of them out.

ack-before-journal: a delivery is acked when it arrives, not once it is journalled.
no-unique-key: the journal and the members' table forget their unique keys.
announce-before-commit: receipts and announcements go out before the transaction that they tell of.
no-fence: who was taken over writes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import UniqueConstraint

import aggregator.journal.journal as journal
import aggregator.journal.tables as tables
from aggregator.domain import writes
from aggregator.service.service import AggregatorService
from broker.transport.base import Delivery, Verb
from fledge.cli.app import main

_SENT_S = 0.3  # seconds in which an ack or a publish has surely left this process


def ack_before_journal() -> None:
    """Ack first, take then."""
    take = AggregatorService._take_update

    def early(self: AggregatorService, site: str, delivery: Delivery) -> None:
        delivery.ack()
        time.sleep(_SENT_S)
        take(self, site, replace(delivery, settle=_nothing))

    AggregatorService._take_update = early


def _nothing(verb: Verb) -> None:
    """A settlement that has happened already."""


def no_unique_key() -> None:
    """Tables without unique keys."""
    for table in (tables.updates, tables.members):
        table.constraints -= {each for each in table.constraints if isinstance(each, UniqueConstraint)}
    tables.members.c.id.unique = None


def announce_before_commit() -> None:
    """Publish what is about to be committed."""
    commit = AggregatorService._commit

    def early(self: AggregatorService, written: Any) -> list[Any]:
        told = [write for write in written if isinstance(write, writes.SendRaw)]
        for write in told:
            self._transport.publish(write.exchange, write.key, write.body)
        if told:
            time.sleep(_SENT_S)
        return commit(self, written)

    AggregatorService._commit = early


def no_fence() -> None:
    """Whatever epoch the database has is ours."""

    journal.Journal._transaction = lambda self: self.engine.begin()


MUTANTS: dict[str, Callable[[], None]] = {
    "ack-before-journal": ack_before_journal,
    "no-unique-key": no_unique_key,
    "announce-before-commit": announce_before_commit,
    "no-fence": no_fence,
}

if __name__ == "__main__":
    if wanted := os.environ.get("FLEDGE_MUTANT"):
        MUTANTS[wanted]()
    main()
