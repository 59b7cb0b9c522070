"""The rules about operators' orders at a site: each counter counts once, every order that is taken is answered once.

A command is noted before it is carried out, so a crash in between drops it: the operator hears nothing and asks
again. The answer goes up like everything else, until the broker has it; only then a worker that was told to end ends.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.commands import COUNTER_AHEAD
from worker.domain.effects import Leave, Obey, Settle
from worker.domain.events import CommandSeen, Obeyed
from worker.domain.state import Leaving
from worker.domain.writes import NoteCounter
from worker.rules.decisions import Decisions


class CommandCounter:
    """Which orders were taken already, and which answer a worker waits for before it ends."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = dict(counters)
        self._last_words: dict[int, Leaving] = {}

    def on_command(self, event: CommandSeen, decided: Decisions) -> None:
        """Take a command, unless its counter was used before."""
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

    def on_published(self, row: int, decided: Decisions) -> None:
        """The broker has an answer."""
        leaving = self._last_words.pop(row, "")
        if leaving:
            decided.effects.append(Leave(leaving=leaving))
