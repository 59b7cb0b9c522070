"""The hospital's own say: people's answers, hours of the day, drains."""

from __future__ import annotations

from datetime import datetime

from broker.runtime.actor import Step
from tests.support.worker_rules import SEALED, head, only, rules, some, trained, turn, version
from worker.domain import effects, events, writes
from worker.domain.effects import ForgetAnswer, LookAtClock
from worker.domain.events import ClockSeen, Drain, RunAnswered, Undrain
from worker.domain.state import RunRow, Snapshot
from worker.domain.writes import NoteAnswer, NoteDrained
from worker.policy import SitePolicy
from worker.rules.worker import WorkerRules

ASKS = SitePolicy(ask_first=True)
NIGHTS = SitePolicy(hours="20:00-06:00")
KNOWN = RunRow(run="r", version=1, digest=b"1" * 32)


def at(hour: int, minute: int = 0) -> ClockSeen:
    return ClockSeen(local=datetime(2026, 5, 4, hour, minute))


def shown(step: Step) -> tuple[str, str]:
    report = some(effects.ReportStatus, step.effects)[-1]
    return report.state, report.run


def training(machine: WorkerRules) -> effects.Train:
    return only(effects.Train, turn(machine, version(0)).effects)


# ---- a person's yes


def test_a_run_waits_for_a_persons_yes_which_is_kept_before_the_training_begins() -> None:
    machine = rules(policy=ASKS)
    step = turn(machine, version(0))
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("waiting", "r")
    step = turn(machine, RunAnswered(run="r", approved=True), now=5.0)
    assert NoteAnswer(run="r", approved=True) in step.writes
    assert ForgetAnswer(run="r") in step.effects
    assert only(effects.Train, step.effects).run == "r"


def test_a_yes_holds_for_every_version_of_the_run_and_after_a_restart() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), answers={"r": True}), ASKS)
    assert some(effects.Train, turn(machine).effects)
    trained(rules(Snapshot(answers={"r": True}), ASKS), version(2))


def test_a_yes_to_one_run_is_none_to_another() -> None:
    machine = rules(Snapshot(answers={"s": True}), ASKS)
    assert not some(effects.Train, turn(machine, version(0, run="r")).effects)
    assert only(effects.Train, turn(machine, version(0, run="s")).effects).run == "s"


def test_an_answer_that_comes_again_is_forgotten_without_being_kept_twice() -> None:
    machine = rules(policy=ASKS)
    turn(machine, RunAnswered(run="r", approved=True))
    step = turn(machine, RunAnswered(run="r", approved=True))
    assert step.writes == ()
    assert ForgetAnswer(run="r") in step.effects


def test_a_no_ends_the_training_under_way_and_what_it_still_made_is_thrown_away() -> None:
    machine = rules()
    begun = training(machine)
    step = turn(machine, RunAnswered(run="r", approved=False))
    assert some(effects.AbortTraining, step.effects)
    step = turn(machine, events.Trained(id=begun.id, sealed=SEALED))
    assert only(effects.DropSpool, step.effects).chunks == SEALED.chunks
    assert not some(writes.AddUpdate, step.writes)
    assert not some(effects.Train, turn(machine, version(1), now=100.0).effects)


def test_a_no_leaves_other_runs_alone_and_can_be_taken_back() -> None:
    machine = rules(Snapshot(answers={"r": False}))
    assert not some(effects.Train, turn(machine, version(0, run="r")).effects)
    begun = only(effects.Train, turn(machine, version(0, run="s")).effects)
    step = turn(machine, RunAnswered(run="r", approved=False))
    assert not some(effects.AbortTraining, step.effects)
    turn(machine, events.Trained(id=begun.id, sealed=SEALED))
    step = turn(machine, RunAnswered(run="r", approved=True))
    assert only(effects.Train, step.effects).run == "r"


def test_a_run_that_is_paused_waits_for_nobody() -> None:
    from protocol.messages import RunState

    machine = rules(policy=ASKS)
    turn(machine, version(0))
    assert shown(turn(machine, head(1, ("r", RunState.PAUSED, 0)), now=5.0)) == ("idle", "r")


# ---- hours


def test_the_time_of_day_is_asked_for_before_a_training_begins() -> None:
    machine = rules(policy=NIGHTS)
    step = turn(machine, version(0))
    assert only(LookAtClock, step.effects)
    assert not some(effects.Train, step.effects)
    assert not some(LookAtClock, turn(machine, version(1)).effects)
    assert only(effects.Train, turn(machine, at(23)).effects).version == 1


def test_outside_its_hours_a_site_waits_and_looks_again_when_they_begin() -> None:
    machine = rules(policy=NIGHTS)
    turn(machine, version(0), now=100.0)
    step = turn(machine, at(19, 30), now=101.0)
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("waiting", "r")
    assert not some(LookAtClock, turn(machine, now=1900.0).effects)
    step = turn(machine, now=101.0 + 1800.0)
    assert only(LookAtClock, step.effects)
    assert some(effects.Train, turn(machine, at(20), now=1901.0).effects)


def test_long_before_its_hours_a_site_looks_once_an_hour_because_clocks_are_set() -> None:
    machine = rules(policy=NIGHTS)
    turn(machine, version(0))
    turn(machine, at(8))
    looks = 0
    for minute in range(1, 180):
        if some(LookAtClock, turn(machine, now=60.0 * minute).effects):
            looks += 1
            turn(machine, at(8), now=60.0 * minute)
    assert looks == 2


def test_the_machine_is_not_kept_busy_while_it_waits_for_its_hours() -> None:
    machine = rules(policy=NIGHTS)
    turn(machine, version(0))
    turn(machine, at(12), now=1.0)
    now = 1.0
    for _ in range(20):
        deadline = machine.deadline()
        assert deadline is not None
        assert deadline > now
        now = deadline
        turn(machine, now=now)
    assert now > 100.0


def test_what_the_clock_said_counts_for_one_turn_only() -> None:
    machine = rules(policy=NIGHTS)
    turn(machine, version(0))
    begun = only(effects.Train, turn(machine, at(23)).effects)
    turn(machine, events.Trained(id=begun.id, sealed=SEALED))
    step = turn(machine, version(1), now=50_000.0)
    assert not some(effects.Train, step.effects)
    assert only(LookAtClock, step.effects)


def test_a_training_that_began_in_time_may_end_out_of_hours() -> None:
    machine = rules(policy=NIGHTS)
    turn(machine, version(0))
    begun = only(effects.Train, turn(machine, at(5, 59)).effects)
    step = turn(machine, events.Trained(id=begun.id, sealed=SEALED), now=7200.0)
    assert some(writes.AddUpdate, step.writes)


def test_without_hours_nobody_asks_what_time_it_is() -> None:
    assert not some(LookAtClock, turn(rules(policy=ASKS), version(0)).effects)


# ---- drains


def test_a_drained_site_finishes_and_sends_what_it_trains_and_begins_nothing() -> None:
    machine = rules()
    begun = training(machine)
    step = turn(machine, Drain())
    assert NoteDrained(drained=True) in step.writes
    assert not some(effects.AbortTraining, step.effects)
    step = turn(machine, events.Trained(id=begun.id, sealed=SEALED), now=5.0)
    update = only(writes.AddUpdate, step.writes).row
    assert some(effects.Upload, step.effects)
    turn(machine, events.Uploaded(row=update.row), now=5.0)
    step = turn(machine, version(1), events.Published(row=update.row), now=10.0)
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("drained", "r")


def test_a_drain_survives_a_restart_until_it_is_taken_back() -> None:
    machine = rules(Snapshot(drained=True))
    assert not some(effects.Train, turn(machine, version(0)).effects)
    step = turn(machine, Undrain())
    assert NoteDrained(drained=False) in step.writes
    assert some(effects.Train, step.effects)


def test_a_second_drain_writes_nothing() -> None:
    machine = rules(Snapshot(drained=True))
    assert not some(NoteDrained, turn(machine, Drain()).writes)


# ---- what is told of a failure


def test_a_failure_is_told_by_its_code_and_case_until_a_training_succeeds() -> None:
    machine = rules()
    begun = training(machine)
    step = turn(machine, events.TrainingFailed(id=begun.id, code="trainer", case="bcdfghj"), now=5.0)
    report = only(effects.ReportStatus, step.effects)
    assert (report.state, report.code, report.case, report.publish) == ("blocked", "trainer", "bcdfghj", True)
    step = turn(machine, now=400.0)
    report = only(effects.ReportStatus, step.effects)
    assert (report.state, report.code, report.case) == ("training", "trainer", "bcdfghj")
    again = only(effects.Train, step.effects)
    step = turn(machine, events.Trained(id=again.id, sealed=SEALED), now=405.0)
    report = only(effects.ReportStatus, step.effects)
    assert (report.code, report.case) == ("-", "-")


def test_a_training_that_was_told_to_stop_has_not_failed() -> None:
    machine = rules()
    begun = training(machine)
    turn(machine, Drain())
    step = turn(machine, events.TrainingFailed(id=begun.id, code="aborted"), now=5.0)
    assert only(effects.ReportStatus, step.effects).code == "-"
