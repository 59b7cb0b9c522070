"""The last version of a run that has ended is asked for once, and again in growing pauses if it did not come."""

from __future__ import annotations

import random

from protocol.messages import RunState
from worker.domain.effects import KeepLast
from worker.domain.state import RunRow
from worker.rules.decisions import Decisions
from worker.rules.fetching import LastVersions

OVER = RunRow(run="over", state=RunState.STOPPED, version=0, digest=b"last")


def asked(last: LastVersions, now: float, *rows: RunRow) -> list[str]:
    decided = Decisions()
    last.tick(rows or (OVER,), now, decided)
    return [effect.run for effect in decided.effects if isinstance(effect, KeepLast)]


def test_only_versions_of_runs_that_have_ended_are_asked_for_and_each_once() -> None:
    last = LastVersions(random.Random(1))
    going_on = RunRow(run="going-on", version=3, digest=b"x")
    empty = RunRow(run="empty", state=RunState.ABORTED)
    assert asked(last, 0.0, OVER, going_on, empty) == ["over"]
    assert asked(last, 1.0) == []
    assert asked(last, 2.0, RunRow(run="over", state=RunState.STOPPED, version=1, digest=b"later")) == ["over"]


def test_what_failed_is_asked_for_again_after_a_pause_that_grows() -> None:
    last = LastVersions(random.Random(1))
    assert asked(last, 0.0) == ["over"]
    pauses = []
    now = 0.0
    for _ in range(12):
        last.failed("over", now)
        pauses.append(last.at - now)
        assert asked(last, last.at - 0.001) == []
        now = last.at
        assert asked(last, now) == ["over"]
        assert last.at == float("inf")
    assert 1.0 <= pauses[0] <= 2.0
    assert 2.0 <= pauses[1] <= 4.0
    assert all(150.0 <= pause <= 300.0 for pause in pauses[9:])
