"""The loop both programs share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from broker.runtime.actor import SOON, Actor, Step, Tick


class Noting:
    """Rules that write whatever happens, except the passing of time."""

    def step(self, event: Any, now: float) -> Step:
        """One write and one effect for each event."""
        return Step() if isinstance(event, Tick) else Step((event,), (f"done {event}",))

    def deadline(self) -> float | None:
        """Nothing is ever due."""
        return None


class Loop:
    """An actor with a clock that a test moves; it notes commits and effects in their order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened: list[Any] = []
        self.actor = Actor(
            Noting(),
            self._commit,
            self.happened.append,
            may_wait=lambda write: write == "later",
            clock=lambda: self.now,
        )

    def _commit(self, writes: Sequence[Any]) -> Sequence[Any]:
        self.happened.append(list(writes))
        return ()


def test_the_events_of_a_turn_share_a_commit_that_comes_before_their_effects() -> None:
    loop = Loop()
    loop.actor.turn(["a", "b"])
    assert loop.happened == [["a", "b"], "done a", "done b"]


def test_a_turn_without_writes_makes_no_commit() -> None:
    loop = Loop()
    loop.actor.turn([])
    assert loop.happened == []


def test_a_write_that_may_wait_shares_the_next_commit_and_comes_first_in_it() -> None:
    loop = Loop()
    loop.actor.turn(["later"])
    loop.actor.turn(["later"])
    loop.actor.turn(["a"])
    assert loop.happened == ["done later", "done later", ["later", "later", "a"], "done a"]


def test_a_write_that_may_wait_does_so_for_a_moment_only() -> None:
    loop = Loop()
    loop.actor.turn(["later"])
    loop.now = SOON
    loop.actor.turn([])
    assert loop.happened == ["done later", ["later"]]


def test_a_running_loop_commits_what_waits_by_itself() -> None:
    committed = threading.Event()

    def commit(writes: Sequence[Any]) -> Sequence[Any]:
        committed.set()
        return ()

    actor = Actor(Noting(), commit, lambda effect: None, may_wait=lambda write: True)
    thread = threading.Thread(target=actor.run)
    thread.start()
    actor.mailbox.put("later")
    assert committed.wait(10)
    actor.mailbox.close()
    thread.join(10)


def test_what_waits_is_committed_when_the_mailbox_is_closed() -> None:
    loop = Loop()
    loop.actor.mailbox.put("later")
    loop.actor.mailbox.close()
    loop.actor.run()
    assert loop.happened == ["done later", ["later"]]
