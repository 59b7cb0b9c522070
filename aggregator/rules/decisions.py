"""What one step of the rules has come to so far: writes, effects, and the messages that go out with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from aggregator.domain import effects, events, writes
from aggregator.domain.state import OUTCOME, UpdateNotice, UpdateRow, UpdateState
from broker.runtime.actor import Step
from broker.transport.base import Unacked
from protocol import limits, topology
from protocol.codec import Value, encode
from protocol.messages import Kind, Outcome, Receipt

_AWAITED = 4096
"""Replies that are waited for at most; the oldest give way."""


class Decisions:
    """Collects a step; outbox rows are numbered here, one after the other for as long as the journal lasts."""

    def __init__(
        self, last_row: int, new_id: Callable[[], bytes], now: float, awaited: Iterable[tuple[bytes, str]]
    ) -> None:
        """`awaited`: commands and sites whose replies are still to come."""
        self._row = last_row
        self.new_id = new_id
        self._budget = LetterBudget(now)
        self._awaited: dict[tuple[bytes, str], None] = dict.fromkeys(awaited)
        self._writes: list[writes.Write] = []
        self._effects: list[effects.Effect] = []

    def step(self) -> Step[writes.Write, effects.Effect]:
        """Everything decided since the last call."""
        done = Step(tuple(self._writes), tuple(self._effects))
        self._writes, self._effects = [], []
        return done

    def write(self, *decided: writes.Write) -> None:
        """Into the step's transaction."""
        self._writes += decided

    def do(self, *decided: effects.Effect) -> None:
        """After the commit."""
        self._effects += decided

    def settle(self, delivery: Unacked) -> None:
        """Ack a delivery after the commit."""
        self._effects.append(effects.Settle(delivery=delivery))

    def audit(self, kind: str, entry: Mapping[str, object]) -> None:
        """Note something in the ledger."""
        self._writes.append(writes.Audit(kind=kind, entry=entry))

    def send(self, exchange: str, key: str, body: bytes) -> None:
        """Finished bytes, published until the broker has them."""
        row = self._next()
        self._writes.append(writes.SendRaw(row=row, exchange=exchange, key=key, body=body))
        self._effects.append(effects.Publish(row=row))

    def pass_on(self, name: str, raw: bytes) -> None:
        """Signed bytes for one participant."""
        self.send(topology.DIRECT, name, raw)

    def tell(
        self,
        event: events.CommandArrived,
        why: str,
        seen: Mapping[str, float],
        *,
        text: str = "",
        counter: int = 0,
        values: Mapping[str, Value] | None = None,
    ) -> None:
        """Answer an operator in a word, and in a sentence where there is one."""
        told = effects.AnswerCommand(
            operator=event.operator,
            command=event.id,
            reason=why,
            text=(event.text if why == event.objection else "") or text,
            counter=counter,
            values=values or {},
            seen={site: seen[site] for site in event.targets if site in seen} if why == "ok" else {},
            cut_off=why == "ok" and event.command == "site.revoke",
        )
        self.do(told)

    def await_reply(self, command: bytes, site: str) -> None:
        """Note that a site has been given a command: its first reply is handed on, and no other."""
        self._awaited[command, site] = None
        while len(self._awaited) > _AWAITED:
            del self._awaited[next(iter(self._awaited))]

    def hand_on(self, event: events.ReplyArrived, now: float) -> None:
        """A site's answer, for the operators it is sealed for; what no operator waits for is noted at most."""
        self.settle(event.delivery)
        entry = {"site": event.site, "command": event.command, "ok": event.ok, "reason": event.reason}
        if self._awaited.pop((event.command, event.site), self) is self:
            if self._budget.allows(event.site, now):
                self.audit("reply_unasked", {**entry, "operators": event.operators})
            return
        self.audit("reply", {**entry, "operators": event.operators})
        for operator in event.operators:
            self.pass_on(operator, event.raw)

    def receipt(
        self, update: UpdateRow | UpdateNotice, outcome: Outcome, reason: str, *, version: int = 0, epoch: int = 0
    ) -> None:
        """The signed word on an update, for its site alone; `epoch` matters with `sequence_reused` only."""
        row = self._next()
        body = Receipt(
            message=update.id,
            epoch=update.epoch,
            sequence=update.sequence,
            outcome=outcome,
            reason=reason,
            highest_epoch=epoch,
        )
        self._writes.append(
            writes.Send(
                row=row,
                id=self.new_id(),
                exchange=topology.DIRECT,
                key=update.site,
                kind=Kind.RECEIPT,
                body=body,
                recipient=update.site,
                run=update.run,
                version=version,
            )
        )
        self._effects.append(effects.Publish(row=row))

    def finish(self, row: UpdateRow, state: UpdateState, reason: str, version: int = 0) -> None:
        """An update has come to its end; its site is told."""
        self.write(writes.SetState(id=row.id, state=state, reason=reason, norm=row.norm, version=version))
        if state != UpdateState.MERGED:
            entry = {"id": row.id, "run": row.run, "site": row.site, "state": state.value, "reason": reason}
            self.audit("update", entry)
        self.receipt(row, OUTCOME[state], reason, version=version)

    def refuse(self, event: events.DeliveryRefused, now: float) -> None:
        """Ack what is no message of this federation; keep it for operators, and publish it within the site's budget."""
        self.settle(event.delivery)
        self.audit("refused", {"queue": event.queue, "reason": event.reason, "bytes": len(event.raw)})
        if event.kept:
            return
        self.write(writes.KeepLetter(queue=event.queue, reason=event.reason, raw=event.raw))
        if self._budget.allows(event.site, now):
            row = self._next()
            self._writes.append(dead_letter(event, row=row))
            self._effects.append(effects.Publish(row=row))

    def _next(self) -> int:
        self._row += 1
        return self._row


_WRAPPER = 1024  # room for the fields around the original bytes
_PER_SITE = 256
_HOUR = 3600.0


class LetterBudget:
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


def dead_letter(refused: events.DeliveryRefused, *, row: int) -> writes.SendRaw:
    """The original bytes with the reason; of an over-long message as many bytes as fit."""
    letter = {
        "reason": refused.reason,
        "queue": refused.queue,
        "size": len(refused.raw),
        "message": refused.raw[: limits.MESSAGE - _WRAPPER],
    }
    return writes.SendRaw(row=row, exchange=topology.DEAD, key="", body=encode(letter))
