"""The loop both programs share: events in, rules stepped, one commit for the whole batch, then the effects.

The rules are a class without I/O. What they want written is committed first; only then are their effects (acks,
publishes, training, merges) carried out. All steps that were waiting share one commit, and the thread that runs the
loop is the only one that touches the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Generic, Literal, Protocol, TypeVar

Event = TypeVar("Event")
Write = TypeVar("Write")
Effect = TypeVar("Effect")
_Heard = TypeVar("_Heard", contravariant=True)
_Written = TypeVar("_Written", covariant=True)
_Done = TypeVar("_Done", covariant=True)
SOON = 0.05
"""Seconds for which a write that may wait does so at most."""
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Step(Generic[_Written, _Done]):
    """What the rules decided: `writes` go into one transaction, `effects` happen after its commit, in order."""

    writes: tuple[_Written, ...] = ()
    effects: tuple[_Done, ...] = ()


class Rules(Protocol[_Heard, _Written, _Done]):
    """A state machine: time is an argument, nothing is done, everything is decided."""

    def step(self, event: _Heard | Tick, now: float) -> Step[_Written, _Done]:
        """What `event` leads to at `now` (seconds, monotonic within a process)."""

    def deadline(self) -> float | None:
        """When `Tick` should come at the latest, or None."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


class _Closed(Enum):
    """What stands behind the last event."""

    CLOSED = "closed"


class Mailbox(Generic[Event]):
    """Events from any thread to one; taking waits on a queue, never polls."""

    def __init__(self) -> None:
        # Made in C: an event passes it in a fifth of the time that a condition of `threading` takes.
        self._events: SimpleQueue[Event | Literal[_Closed.CLOSED]] = SimpleQueue()
        self._closed = False

    def put(self, event: Event) -> None:
        """Add an event; after `close` it is dropped."""
        if not self._closed:
            self._events.put(event)

    def take(self, timeout: float | None) -> list[Event] | None:
        """Everything that waits, at most 256 events; [] when `timeout` seconds passed; None once closed and empty."""
        taken: list[Event] = []
        try:
            event = self._events.get(timeout=timeout)
            while event is not _Closed.CLOSED:
                taken.append(event)
                if len(taken) == _BATCH:
                    return taken
                event = self._events.get_nowait()
        except Empty:
            return taken
        self._events.put(_Closed.CLOSED)  # for the next time
        return taken or None

    def close(self) -> None:
        """Wake the taker; what waits is still delivered."""
        self._closed = True
        self._events.put(_Closed.CLOSED)


class Actor(Generic[Event, Write, Effect]):
    """Runs rules against a journal until its mailbox is closed."""

    def __init__(
        self,
        rules: Rules[Event, Write, Effect],
        commit: Callable[[Sequence[Write]], Sequence[Event]],
        perform: Callable[[Effect], None],
        *,
        mailbox: Mailbox[Event] | None = None,
        may_wait: Callable[[Write], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mailbox`: one that others write to already.

        `may_wait` tells the writes whose loss only means to do something again: alone they make no commit, but
        share the next one, which comes soon.
        """
        self.mailbox: Mailbox[Event] = Mailbox() if mailbox is None else mailbox
        self._rules = rules
        self._commit = commit
        self._perform = perform
        self._may_wait = may_wait
        self._held: list[Write] = []
        self._held_until = 0.0
        self._clock = clock

    def run(self) -> None:
        """Loop on the calling thread; an error from the journal or an effect ends it and is raised."""
        self.turn([])
        while True:
            deadline = self.deadline()
            timeout = None if deadline is None else max(0.0, deadline - self._clock())
            events = self.mailbox.take(timeout)
            if events is None:
                if self._held:
                    self._commit(self._held)
                return
            self.turn(events)

    def deadline(self) -> float | None:
        """When the next turn is due though nothing has happened."""
        times = [self._rules.deadline(), self._held_until if self._held else None]
        return min((at for at in times if at is not None), default=None)

    def turn(self, events: Sequence[Event]) -> None:
        """Step the rules through `events` and a tick, commit once, then carry out the effects.

        What the journal answers (a row was new, or was there already) are events of the next turn, taken at once.
        """
        while True:
            heard: list[Event | Tick] = [*events, Tick()]
            steps = [self._rules.step(event, self._clock()) for event in heard]
            writes = [write for step in steps for write in step.writes]
            events = self._write(writes)
            for step in steps:
                for effect in step.effects:
                    self._perform(effect)
            if not events:
                return

    def _write(self, writes: list[Write]) -> Sequence[Event]:
        if not self._held:
            self._held_until = self._clock() + SOON
        writes = self._held + writes
        if self._may_wait is not None and self._clock() < self._held_until and all(map(self._may_wait, writes)):
            self._held = writes
            return ()
        self._held = []
        return self._commit(writes) if writes else ()
