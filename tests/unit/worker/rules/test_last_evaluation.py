"""The last version of a run that has ended is measured once, with the same leave as a training."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from broker.runtime.actor import Step
from protocol.messages import RunState
from tests.support.worker_rules import head, only, rules, some, trained, turn, version
from worker.domain import effects, events, writes
from worker.domain.events import ClockSeen, Drain, RunAnswered, Undrain
from worker.domain.state import RunRow, Snapshot
from worker.policy import SitePolicy
from worker.rules.worker import WorkerRules

STOPPED = ("r", RunState.STOPPED, 1)
LAST = RunRow(run="r", state=RunState.STOPPED, listed=True, version=1, digest=(1).to_bytes(32, "big"), evaluate=True)


def ended(state: RunState = RunState.STOPPED) -> tuple[WorkerRules, Step]:
    """A site that trained from version 0 and hears that version 1 was the last."""
    machine = rules()
    trained(machine, version(0, evaluate=True))
    return machine, turn(machine, version(1, evaluate=True), head(3, ("r", state, 1)))


def measuring(step: Step) -> effects.Train:
    found = only(effects.Train, step.effects)
    assert found.measure_only
    assert found.evaluation
    return found


def test_the_last_version_is_measured_once_and_told() -> None:
    machine, step = ended()
    wanted = measuring(step)
    assert (wanted.version, only(writes.Reserve, step.writes).sequence) == (1, wanted.sequence)
    step = turn(machine, events.Evaluated(id=wanted.id, envelope=b"evaluation"))
    assert only(writes.AddMessage, step.writes).body == b"evaluation"
    noted = only(writes.NoteRun, step.writes).row
    assert noted.evaluated
    for later in (turn(machine, head(4, STOPPED)), turn(rules(Snapshot(runs=(noted,))), head(4, STOPPED))):
        assert not some(effects.Train, later.effects)


def test_a_site_that_took_no_part_says_nothing_and_is_not_asked_again() -> None:
    machine, step = ended()
    step = turn(machine, events.Evaluated(id=measuring(step).id, envelope=b""))
    assert not some(writes.AddMessage, step.writes)
    assert only(writes.NoteRun, step.writes).row.evaluated


def test_what_was_not_measured_before_a_restart_is_measured_after_it() -> None:
    machine = rules(Snapshot(runs=(LAST,)))
    assert not some(effects.Train, turn(machine).effects)  # it may have been resumed meanwhile
    assert measuring(turn(machine, head(3, STOPPED))).version == 1


@pytest.mark.parametrize(
    "known",
    [
        replace(LAST, evaluated=True),
        replace(LAST, evaluate=False),
    ],
)
def test_what_was_measured_before_or_is_not_to_be_is_left_alone(known: RunRow) -> None:
    assert not some(effects.Train, turn(rules(Snapshot(runs=(known,))), head(3, STOPPED)).effects)


def test_nothing_is_measured_before_the_end_is_noted() -> None:
    """A head that was noted by the process before may not have been noted of this run."""
    known = replace(LAST, state=RunState.RUNNING, sent=1)
    machine = rules(Snapshot(head=3, runs=(known,)))
    assert not some(effects.Train, turn(machine, head(3, STOPPED)).effects)


def test_nothing_is_measured_of_an_aborted_run() -> None:
    assert not some(effects.Train, ended(RunState.ABORTED)[1].effects)


def test_an_abort_ends_a_measurement_and_a_stop_does_not() -> None:
    machine, step = ended()
    wanted = measuring(step)
    assert not some(effects.AbortTraining, turn(machine, head(4, STOPPED)).effects)
    only(effects.AbortTraining, turn(machine, head(5, ("r", RunState.ABORTED, 1))).effects)
    step = turn(machine, events.Evaluated(id=wanted.id, envelope=b"evaluation"))
    assert not some(writes.AddMessage, step.writes)


def test_a_last_version_that_was_missed_is_fetched_first() -> None:
    machine = rules()
    trained(machine, version(0, evaluate=True))
    step = turn(machine, head(3, ("r", RunState.STOPPED, 2)))
    assert only(effects.FetchVersion, step.effects).version == 2
    assert not some(effects.Train, step.effects)
    assert measuring(turn(machine, version(2, evaluate=True))).version == 2


def test_a_run_that_the_site_never_heard_of_is_not_fetched_after_its_end() -> None:
    assert not some(effects.FetchVersion, turn(rules(), head(3, STOPPED)).effects)


def test_a_drained_site_measures_when_it_is_undrained() -> None:
    machine = rules(Snapshot(runs=(LAST,), drained=True))
    assert not some(effects.Train, turn(machine, head(3, STOPPED)).effects)
    measuring(turn(machine, Undrain()))
    assert not some(effects.Train, turn(rules(Snapshot(runs=(LAST,))), Drain(), head(3, STOPPED)).effects)


def test_a_site_with_hours_measures_within_them() -> None:
    machine = rules(Snapshot(runs=(LAST,)), policy=SitePolicy(hours="20:00-06:00"))
    only(effects.LookAtClock, turn(machine, head(3, STOPPED)).effects)
    assert not some(effects.Train, turn(machine, ClockSeen(local=datetime(2026, 5, 4, 12))).effects)
    later = machine.deadline()
    assert later is not None
    only(effects.LookAtClock, turn(machine, now=8 * 3600.0).effects)
    measuring(turn(machine, ClockSeen(local=datetime(2026, 5, 4, 20)), now=8 * 3600.0))


def test_a_run_that_a_person_refused_is_not_measured() -> None:
    machine, step = ended()
    wanted = measuring(step)
    only(effects.AbortTraining, turn(machine, RunAnswered(run="r", approved=False)).effects)
    assert not some(effects.Train, turn(machine, events.TrainingFailed(id=wanted.id, code="aborted"), now=9.0).effects)


@pytest.mark.parametrize(("code", "again"), [("trainer", False), ("data", False), ("store", True), ("disk_full", True)])
def test_a_measurement_that_failed_is_tried_again_only_if_that_may_help(code: str, again: bool) -> None:
    machine, step = ended()
    turn(machine, events.TrainingFailed(id=measuring(step).id, code=code))
    assert bool(some(effects.Train, turn(machine, now=1e5).effects)) is again
