"""Refused messages that are handed to intake once more, and what became of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from sqlalchemy import func, select

from aggregator.domain import events
from aggregator.domain.state import LettersReplayed, UpdateState
from aggregator.journal.history import History
from aggregator.journal.tables import letters, updates
from broker.transport.base import Unacked
from protocol.codec import Value
from protocol.errors import ConfigError, FledgeError

Again = Callable[[str, Unacked, bytes], events.FromSite | events.SiteSeen]
"""Hands what once came from this queue to the rules, and returns what it was read as."""
MOST = 200
"""Messages of one command; each may have 256 KiB."""
_STAYS = "refused"


@dataclass(frozen=True, slots=True)
class Became:
    """What became of one message: a word, and a second one that says why or in which state it is."""

    word: str
    reason: str


@dataclass(slots=True)
class _Letter:
    """One message on its way: the delivery that the rules settle once its fate is in the journal."""

    number: int
    queue: str
    settled: Callable[[_Letter], None]
    read: events.FromSite | events.SiteSeen | None = None
    known: bool = False
    """Whether its update was in the journal before."""
    became: Became | None = None

    def ack(self) -> None:
        """The rules are done with it."""
        self.settled(self)


@dataclass(slots=True)
class LetterReplay:
    """One command's messages; everything happens on the thread that owns the journal."""

    history: History
    command: events.CommandArrived
    done: Callable[[events.Prepared], None]
    """Is told once what became of every message."""
    _letters: list[_Letter] = field(default_factory=list)

    def start(self, again: Again) -> None:
        """Hand the messages in, the oldest first.

        Raises:
            ConfigError: an argument is wrong, or there are no such messages.
        """
        numbers = self._chosen()
        self._letters = [_Letter(number, "", self._settled) for number in numbers]
        before = set[bytes]()
        for letter in self._letters:
            row = self._row(letter.number)
            letter.queue = row[0]
            try:
                letter.read = again(row[0], letter, row[1])
                if isinstance(letter.read, events.UpdateArrived):
                    letter.known = self._update(letter.read) is not None or letter.read.notice.id in before
                    before.add(letter.read.notice.id)
            except FledgeError as error:
                letter.became = Became(_STAYS, str(error)[:64])
        self._finish()

    def _chosen(self) -> list[int]:
        wanted = self.command.arguments.get("id")
        named = wanted if isinstance(wanted, tuple) else () if wanted is None else (wanted,)
        numbers = [each for each in named if isinstance(each, int) and not isinstance(each, bool)]
        if len(numbers) != len(named) or len(numbers) > MOST:
            raise ConfigError(f"id: at most {MOST} numbers of `dead list`")
        with self.history.engine.connect() as db:
            every = select(letters.c.number).order_by(letters.c.number)
            found = list(db.scalars(every.where(letters.c.number.in_(numbers)) if numbers else every.limit(MOST)))
        if missing := sorted(set(numbers) - set(found)):
            raise ConfigError(f"there is no refused message {missing[0]}; `dead list` shows which there are")
        return found

    def _row(self, number: int) -> tuple[str, bytes]:
        with self.history.engine.connect() as db:
            row = db.execute(select(letters.c.queue, letters.c.message).where(letters.c.number == number)).one()
        return row.queue, row.message

    def _settled(self, letter: _Letter) -> None:
        letter.became = self._fate(letter)
        self._finish()

    def _fate(self, letter: _Letter) -> Became:
        match letter.read:
            case events.DeliveryRefused(reason=reason):
                return Became(_STAYS, reason)
            case events.UpdateArrived(notice=notice):
                if (found := self._update(letter.read)) is None:
                    used = self._is_used(notice.site, notice.epoch, notice.sequence)
                    return Became("rejected", "sequence_reused" if used else "sequence_gap")
                state, reason = found
                if letter.known:
                    return Became("duplicate", state)
                return Became(state, reason) if state == UpdateState.REJECTED else Became("accepted", state)
            case events.EvaluationArrived() | events.ReplyArrived() | events.RequestArrived() | events.SiteSeen():
                return Became("accepted", "ok")
            case None:
                return Became(_STAYS, "not_read")
            case _:
                assert_never(letter.read)

    def _update(self, read: events.FromSite | events.SiteSeen) -> tuple[str, str] | None:
        """State and reason of the update that was read, if the journal has it."""
        if not isinstance(read, events.UpdateArrived):
            return None
        of_site = select(updates.c.state, updates.c.reason).where(updates.c.site == read.notice.site)
        with self.history.engine.connect() as db:
            row = db.execute(of_site.where(updates.c.id == read.notice.id)).one_or_none()
        return None if row is None else (row.state, row.reason)

    def _is_used(self, site: str, epoch: int, sequence: int) -> bool:
        of_site = select(func.count()).where(updates.c.site == site, updates.c.epoch == epoch)
        with self.history.engine.connect() as db:
            return bool(db.scalar(of_site.where(updates.c.sequence == sequence)))

    def _finish(self) -> None:
        """Tell of all once there is none without an end."""
        told = [(letter, letter.became) for letter in self._letters if letter.became is not None]
        if len(told) < len(self._letters):
            return
        gone = tuple(letter.number for letter, became in told if became.word != _STAYS)
        with self.history.engine.connect() as db:
            left = int(db.scalar(select(func.count()).select_from(letters)) or 0) - len(gone)
        values: dict[str, Value] = {
            "left": left,
            "id": tuple(letter.number for letter, _ in told),
            "queue": tuple(letter.queue for letter, _ in told),
            "became": tuple(became.word for _, became in told),
            "reason": tuple(became.reason for _, became in told),
        }
        counted = Counter(became.word for _, became in told)
        text = ", ".join(f"{count} {word}" for word, count in sorted(counted.items())) or "there was none"
        text = f"{text}; {left} {'is' if left == 1 else 'are'} left"
        self.done(events.Prepared(command=self.command, text=text, values=values, made=LettersReplayed(numbers=gone)))
