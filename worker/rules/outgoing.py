"""The rules for what is on its way: sequence numbers, uploads, publishes, receipts, a renewed key epoch.

Part of the worker's rules: nothing here does I/O, everything goes into the step under way.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from protocol.messages import Outcome, Receipt
from protocol.topology import up_exchange
from worker.domain.effects import Alarm, DropSpool, Publish, Reseal, Settled, Upload
from worker.domain.events import Published, ReceiptSeen, Resealed, SendingFailed, Uploaded
from worker.domain.state import Sealed, Snapshot, UpdateRow
from worker.domain.writes import AddMessage, AddUpdate, RemoveMessage, ReplaceUpdate, Reserve, SettleUpdate
from worker.rules.decisions import Decisions, pause
from worker.rules.duplicate_worker import DuplicateWorker

RECEIPT_WITHIN = 300.0
"""Seconds after which an update without a receipt is sent again, since without it the site trains no further. It is a
small message, and an update that merely waits for its version is answered with nothing."""


@dataclass(slots=True)
class _Waiting:
    """An update on its way; `at` says when its next step is due, unless the shell is at it (`busy`)."""

    update: UpdateRow
    at: float
    offered: bool
    """Whether its bytes may have left the site."""
    busy: bool = False
    attempts: int = 0
    anew: bool = False
    """Whether every chunk has to be put again."""
    spent: bool = False
    """Whether its sequence number is used up, so that it has to be sealed again."""


class Outgoing:
    """Updates without a final receipt and messages without a confirm."""

    def __init__(self, snapshot: Snapshot, site: str, dice: random.Random) -> None:
        self._site = site
        self._dice = dice
        self.epoch = snapshot.epoch
        self._sequence = snapshot.sequence
        self._outgoing = {u.row: _Waiting(u, at=float("-inf"), offered=True) for u in snapshot.updates}
        self._rows = {update.id: update.row for update in snapshot.updates}
        self._messages = set(snapshot.messages)
        self._unpublished = list(snapshot.messages)
        self.duplicate = DuplicateWorker(snapshot.epoch, snapshot.sequence)
        self._next_row = 1 + max([0, *self._outgoing, *self._messages])

    @property
    def busy(self) -> bool:
        """Whether something is being uploaded or published."""
        return any(out.busy for out in self._outgoing.values())

    def on_their_way(self, run: str) -> int:
        """How many of a run's updates have no final receipt yet."""
        return sum(out.update.run == run for out in self._outgoing.values())

    def deadline(self) -> float:
        """When the next step of any update is due."""
        return min((out.at for out in self._outgoing.values() if not out.busy), default=float("inf"))

    def reserve(self, count: int, decided: Decisions) -> int:
        """Take `count` sequence numbers and return the last."""
        self._sequence += count
        decided.writes.append(Reserve(epoch=self.epoch, sequence=self._sequence))
        return self._sequence

    def add_update(self, update: UpdateRow, sealed: Sealed, now: float, decided: Decisions) -> None:
        """Take charge of a new update; its row number is given here."""
        update = replace(update, row=self._take_row())
        spent = update.epoch != self.epoch
        self._outgoing[update.row] = _Waiting(update, at=now, offered=False, spent=spent)
        self._rows[update.id] = update.row
        decided.writes.append(AddUpdate(row=update, sealed=sealed))

    def add_message(self, body: bytes, decided: Decisions) -> int:
        """Take charge of a signed message for the aggregator until the broker has it; returns its outbox row."""
        row = self._take_row()
        self._messages.add(row)
        decided.writes.append(AddMessage(row=row, exchange=up_exchange(self._site), body=body))
        decided.effects.append(Publish(row=row))
        return row

    def _take_row(self) -> int:
        self._next_row += 1
        return self._next_row - 1

    def connected(self, now: float) -> None:
        """Try again at once what failed while the network was away."""
        for out in self._outgoing.values():
            if out.attempts and not out.busy:
                out.at = now

    # ---- receipts

    def on_receipt(self, event: ReceiptSeen, now: float, decided: Decisions) -> UpdateRow | None:
        """Act on the aggregator's word and return the update that it settles; receipts may come twice."""
        row = self._rows.get(event.receipt.message)
        if row is None:
            self._tell_of_duplicate(decided, self.duplicate.unknown(event.receipt))
            return None
        out = self._outgoing[row]
        match event.receipt.outcome:
            case Outcome.JOURNALLED:
                pass
            case Outcome.REUPLOAD:
                out.anew = True
                out.at = now
            case Outcome.SEQUENCE_REUSED:
                self._on_reused(out, event.receipt, now, decided)
            case outcome:
                self._forget(out, outcome, event, decided)
                return out.update
        return None

    def _on_reused(self, out: _Waiting, receipt: Receipt, now: float, decided: Decisions) -> None:
        """Have the update sealed again, unless the receipt is about bytes that have been replaced already.

        What the aggregator may have journalled under its old number keeps it until a receipt says otherwise: sealed
        again, it would be refused as other bytes under a known id.
        """
        update = out.update
        if (receipt.epoch, receipt.sequence) != (update.epoch, update.sequence):
            return
        out.spent, out.at = True, now
        if update.epoch != self.epoch:
            return
        self.epoch = max(self.epoch, receipt.highest_epoch) + 1
        self._sequence = 0
        self.reserve(0, decided)
        for other in self._outgoing.values():
            if not other.offered:
                other.spent, other.at = True, now
        todo = "this folder is older than the site's newest, or a second worker uses its keys: run one alone"
        decided.effects.append(Alarm(event="epoch.renewed", details={"epoch": self.epoch, "todo": todo}))
        self._tell_of_duplicate(decided, self.duplicate.foreign(update.id))

    def _tell_of_duplicate(self, decided: Decisions, news: bool) -> None:
        if news:
            todo = "stop the other worker that uses this site's keys, and restart this one; a kit is for one worker"
            decided.effects.append(Alarm(event="kit.used_twice", details={"epoch": self.epoch, "todo": todo}))

    def _forget(self, out: _Waiting, outcome: Outcome, event: ReceiptSeen | None, decided: Decisions) -> None:
        update = out.update
        reason = event.receipt.reason if event else "spool_lost"
        version = event.version if event and outcome == Outcome.MERGED else 0
        del self._outgoing[update.row], self._rows[update.id]
        self.duplicate.settled(update.id)
        receipt = event.raw if event else b""
        decided.writes.append(
            SettleUpdate(row=update, outcome=outcome.value, reason=reason, version=version, receipt=receipt)
        )
        decided.effects += [
            Settled(row=update, outcome=outcome, reason=reason, version=version),
            DropSpool(chunks=update.chunks),
        ]

    # ---- progress

    def on_progress(
        self, event: Uploaded | SendingFailed | Resealed | Published, now: float, decided: Decisions
    ) -> UpdateRow | None:
        """Take the shell's answer; returns an update that was given up because its chunks are lost."""
        if isinstance(event, Published) and event.row in self._messages:
            self._messages.discard(event.row)
            decided.writes.append(RemoveMessage(row=event.row))
            return None
        out = self._outgoing.get(event.row)
        if out is None:
            if isinstance(event, Resealed):
                decided.effects.append(DropSpool(chunks=event.sealed.chunks))
            return None
        out.busy = False
        out.at = now
        match event:
            case Uploaded() if not out.spent:
                out.busy, out.offered = True, True
                decided.effects.append(Publish(row=event.row, update=out.update.id))
            case Published():
                out.attempts = 0
                if not out.anew and not out.spent:
                    out.at = now + RECEIPT_WITHIN
            case SendingFailed(lost=True):
                self._forget(out, Outcome.REJECTED, None, decided)
                return out.update
            case SendingFailed():
                out.attempts += 1
                out.at = now + pause(self._dice, out.attempts, longest=60.0)
            case Resealed():
                self._replace(out, event, decided)
        return None

    def _replace(self, out: _Waiting, event: Resealed, decided: Decisions) -> None:
        old = out.update
        out.update = replace(old, epoch=event.epoch, sequence=event.sequence, chunks=event.sealed.chunks)
        out.offered, out.attempts, out.spent = False, 0, event.epoch != self.epoch
        decided.writes.append(ReplaceUpdate(row=out.update, sealed=event.sealed))
        decided.effects.append(DropSpool(chunks=old.chunks))

    def tick(self, now: float, decided: Decisions) -> None:
        """Begin every step that is due."""
        decided.effects += [Publish(row=row) for row in self._unpublished]
        self._unpublished = []
        for out in self._outgoing.values():
            if out.busy or out.at > now:
                continue
            out.busy = True
            if out.spent:
                sequence = self.reserve(1, decided)
                decided.effects.append(Reseal(row=out.update, epoch=self.epoch, sequence=sequence))
            else:
                decided.effects.append(Upload(row=out.update, anew=out.anew))
                out.anew = False
