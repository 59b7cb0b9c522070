"""Two workers with one kit: each finds out by itself; a restored backup is not taken for a second worker."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.messages import Outcome, Receipt
from tests.support.worker_rules import SEALED, only, receipt, rules, sent, some, trained, turn, version
from worker.domain import effects, events
from worker.domain.state import Snapshot, UpdateRow
from worker.rules.duplicate_worker import CODE, QUIET, TIMES
from worker.rules.worker import WorkerRules


def stray(number: int, *, epoch: int = 0, sequence: int = 1000, outcome: Outcome = Outcome.MERGED) -> Any:
    said = Receipt(
        message=b"s" * 12 + number.to_bytes(4, "big"),
        epoch=epoch,
        sequence=sequence + number,
        outcome=outcome,
        reason="ok",
        highest_epoch=0,
    )
    return events.ReceiptSeen(delivery="stray", receipt=said, version=1, raw=b"signed receipt")


def codes(machine: WorkerRules, now: float) -> list[str]:
    return [report.code for report in some(effects.ReportStatus, turn(machine, now=now).effects) if report.publish]


def alarms(done: tuple[Any, ...]) -> list[str]:
    return [alarm.event for alarm in some(effects.Alarm, done)]


def settled(machine: WorkerRules, number: int, now: float) -> UpdateRow:
    update = trained(machine, version(number), now=now)
    sent(machine, update, now=now)
    turn(machine, receipt(update, Outcome.MERGED, merged=number + 1), now=now)
    return update


def test_receipts_for_what_nobody_here_made_give_a_second_worker_away() -> None:
    machine = rules()
    told = [alarms(turn(machine, stray(number)).effects) for number in range(TIMES + 2)]
    assert told == [[]] * (TIMES - 1) + [["kit.used_twice"], [], []]
    assert codes(machine, 100.0) == [CODE]


def test_it_is_said_until_the_worker_is_alone_again() -> None:
    machine = rules()
    turn(machine, *(stray(number) for number in range(TIMES)))
    for number in range(1, QUIET):
        settled(machine, number, 100.0 * number)
    assert codes(machine, 2000.0) == [CODE]
    settled(machine, QUIET, 2100.0)
    assert codes(machine, 2200.0) == ["-"]


def test_a_receipt_that_comes_again_is_nothing_strange() -> None:
    machine = rules()
    updates = [settled(machine, number, 100.0 * number) for number in range(1, TIMES + 3)]
    again = [receipt(update, Outcome.MERGED, merged=1) for update in updates]
    assert alarms(turn(machine, *again, *again, now=2000.0).effects) == []
    assert alarms(turn(machine, *[stray(1)] * 10, now=2000.0).effects) == []
    restarted = rules(Snapshot(epoch=0, sequence=updates[-1].sequence))
    assert alarms(turn(restarted, *again).effects) == []


@pytest.mark.parametrize(
    ("epoch", "sequence", "strange"),
    [(1, 9, False), (2, 1, False), (2, 3, False), (2, 4, True), (3, 1, True)],
)
def test_only_receipts_for_numbers_not_yet_given_when_this_process_began_give_a_second_worker_away(
    epoch: int, sequence: int, strange: bool
) -> None:
    machine = rules(Snapshot(epoch=2, sequence=3))
    # Several messages under one number, as after a backup that was restored more than once.
    said = [stray(number, epoch=epoch, sequence=sequence - number) for number in range(TIMES)]
    assert alarms(turn(machine, *said).effects) == ["kit.used_twice"] * strange
    assert codes(machine, 100.0) == [CODE if strange else "-"]


def test_a_restored_backup_is_not_taken_for_a_second_worker() -> None:
    machine = rules(Snapshot(epoch=0, sequence=3))
    turn(machine, stray(1, sequence=3), stray(2, sequence=3))
    update = trained(machine, version(1))
    sent(machine, update)
    step = turn(machine, receipt(update, Outcome.SEQUENCE_REUSED, highest=0))
    assert alarms(step.effects) == ["epoch.renewed"]
    resealed = only(effects.Reseal, step.effects)
    turn(machine, events.Resealed(row=update.row, epoch=resealed.epoch, sequence=1, sealed=SEALED))
    assert codes(machine, 100.0) == ["-"]


def test_why_training_failed_is_more_urgent() -> None:
    machine = rules()
    turn(machine, *(stray(number) for number in range(TIMES)))
    training = only(effects.Train, turn(machine, version(1)).effects)
    turn(machine, events.TrainingFailed(id=training.id, code="trainer", case="abcdefg"))
    assert codes(machine, 30.0) == ["trainer"]
