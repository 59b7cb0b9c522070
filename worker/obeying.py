"""The rules about operators' orders at a site: each counter counts once, every order that is taken is answered once.

An order is noted before it is carried out, so a crash in between drops it: whoever gave it hears nothing and asks
again. The answer goes up like everything else, until the broker has it; only then a worker that was told to end ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.commands import COUNTER_AHEAD
from worker.events import Settle
from worker.sending import Decided

Leaving = Literal["", "restart", "shutdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSeen:
    """An operator's genuine order for this site; `objection` says why it is refused all the same."""

    delivery: Any
    operator: str
    signer: bytes
    """Id of the key it is signed with; counters are the key's, so that a stolen one cannot lock its successor out."""
    counter: int
    id: bytes
    command: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    objection: str = "ok"
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obeyed:
    """An order was carried out or refused; `envelope` is the signed answer."""

    envelope: bytes
    leaving: Leaving = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteCounter:
    """Lower counters under this operator's key are refused from now on."""

    key: str
    counter: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Obey:
    """Carry out an order, or answer why not."""

    command: CommandSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """End the worker in order."""

    leaving: Leaving


class Obeying:
    """Which orders were taken already, and which answer a worker waits for before it ends."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = dict(counters)
        self._last_words: dict[int, Leaving] = {}

    def on_command(self, event: CommandSeen, decided: Decided) -> None:
        """Take an order, unless its counter was used before."""
        decided.effects.append(Settle(delivery=event.delivery, what="command"))
        key = event.signer.hex()
        if event.counter <= self._counters.get(key, 0):
            return
        if event.objection != COUNTER_AHEAD:
            self._counters[key] = event.counter
            decided.writes.append(NoteCounter(key=key, counter=event.counter))
        decided.effects.append(Obey(command=event))

    def on_obeyed(self, event: Obeyed, row: int) -> None:
        """Note which outbox row holds the answer."""
        if event.leaving:
            self._last_words[row] = event.leaving

    def on_published(self, row: int, decided: Decided) -> None:
        """The broker has an answer."""
        leaving = self._last_words.pop(row, "")
        if leaving:
            decided.effects.append(Leave(leaving=leaving))
