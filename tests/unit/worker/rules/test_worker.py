from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from protocol.messages import Outcome, RunState
from protocol.registry import Registry
from tests.support.worker_rules import (
    SEALED,
    head,
    only,
    receipt,
    rules,
    sent,
    some,
    trained,
    turn,
    version,
)
from worker.domain import effects, events, writes
from worker.domain.state import RunRow, Sealed, Snapshot, UpdateRow
from worker.rules.fetching import HEAD_EVERY
from worker.rules.worker import HOLD

# ---- announcements


def test_a_version_is_noted_before_it_is_acked_and_trained_from() -> None:
    machine = rules()
    step = turn(machine, version(0))
    assert only(writes.NoteVersion, step.writes).record == b"record 0"
    assert only(effects.Settle, step.effects).delivery == "delivery 0"
    training = only(effects.Train, step.effects)
    assert (training.run, training.version, training.evaluation) == ("r", 0, b"")


def test_the_sequence_is_reserved_in_the_commit_that_precedes_the_training() -> None:
    step = turn(rules(Snapshot(epoch=2, sequence=7)), version(0))
    assert only(writes.Reserve, step.writes) == writes.Reserve(epoch=2, sequence=8)
    assert only(effects.Train, step.effects).sequence == 8


def test_of_several_versions_that_wait_only_the_newest_is_trained_from() -> None:
    step = turn(rules(), version(3), version(5), version(4))
    assert only(effects.Train, step.effects).version == 5
    assert len(some(effects.Settle, step.effects)) == 3


def test_an_older_version_changes_nothing() -> None:
    machine = rules()
    turn(machine, version(5))
    step = turn(machine, version(4))
    assert step.writes == ()
    assert [type(effect) for effect in step.effects] == [effects.Settle]


def test_a_version_that_arrives_in_mid_training_does_not_interrupt_it() -> None:
    machine = rules()
    first = only(effects.Train, turn(machine, version(0)).effects)
    step = turn(machine, version(1))
    assert not some(effects.Train, step.effects)
    assert not some(effects.AbortTraining, step.effects)
    step = turn(machine, events.Trained(id=first.id, sealed=SEALED))
    assert only(writes.AddUpdate, step.writes).row.base_version == 0
    assert only(effects.Train, step.effects).version == 1


def test_a_worker_makes_as_many_updates_from_a_version_as_its_quota_allows() -> None:
    machine = rules()
    seen = version(0, quota=3)
    made = 0
    step = turn(machine, seen)
    while trainings := some(effects.Train, step.effects):
        made += 1
        step = turn(machine, events.Trained(id=trainings[0].id, sealed=SEALED))
    assert made == 3


@pytest.mark.parametrize(("quota", "most"), [(1, 2), (2, 2), (3, 3)])
def test_a_worker_whose_updates_have_no_receipts_trains_no_further_whatever_is_announced(quota: int, most: int) -> None:
    machine, made = rules(), 0
    for number in range(6):
        step = turn(machine, version(number, quota=quota))
        while trainings := some(effects.Train, step.effects):
            made += 1
            step = turn(machine, events.Trained(id=trainings[0].id, sealed=SEALED))
    assert made == most


def test_a_receipt_lets_a_worker_train_on_from_the_newest_version() -> None:
    machine = rules()
    first = trained(machine, version(0))
    trained(machine, version(1))
    assert not some(effects.Train, turn(machine, version(2), version(3)).effects)
    step = turn(machine, receipt(first, Outcome.SUPERSEDED))
    assert only(effects.Train, step.effects).version == 3


def test_updates_of_one_run_on_their_way_hold_no_other_run_up() -> None:
    machine = rules()
    trained(machine, version(0))
    trained(machine, version(1))
    assert only(effects.Train, turn(machine, version(0, run="other")).effects).run == "other"


def test_a_reissued_record_of_the_same_version_replaces_the_record_and_starts_no_training() -> None:
    machine = rules()
    trained(machine, version(0))
    turn(machine, version(0, digest=b"n" * 32))
    step = turn(machine, now=HOLD)
    assert only(writes.NoteVersion, step.writes).row.sent == 1
    assert not some(effects.Train, step.effects)


def test_a_version_that_starts_nothing_waits_for_a_commit_to_share_but_not_for_long() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0)).effects)
    held = turn(machine, version(1))
    assert held.writes == ()
    assert not some(effects.Settle, held.effects)
    assert machine.deadline() == HOLD
    step = turn(machine, now=HOLD)
    assert only(writes.NoteVersion, step.writes).row.version == 1
    assert only(effects.Settle, step.effects).delivery == "delivery 1"
    turn(machine, version(2), now=1.0)
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED), now=1.1)
    assert isinstance(step.writes[0], writes.NoteVersion)
    assert only(effects.Settle, step.effects).delivery == "delivery 2"


def test_nothing_that_is_decided_later_overtakes_what_is_held() -> None:
    machine = rules()
    trained(machine, version(0))
    turn(machine, head(1, ("r", RunState.STOPPED, 1)))  # the end of the run comes before its last version
    step = turn(machine, version(1), now=0.1)
    assert only(effects.KeepLast, step.effects).run == "r"
    assert only(writes.NoteVersion, step.writes).record == b"record 1"


def test_signs_of_life_and_what_is_sent_overtake_versions_of_which_the_newest_is_noted() -> None:
    machine = rules()
    first = trained(machine, version(0))
    trained(machine, version(1))  # as many updates are on their way as may be: the site waits for their receipts
    steps = [turn(machine, version(number), now=0.1) for number in (2, 3, 4)]
    steps.append(turn(machine, events.Uploaded(row=first.row), now=0.1))
    assert not [write for step in steps for write in step.writes]
    assert [effect.version for step in steps for effect in some(effects.ReportStatus, step.effects)] == [2, 3, 4]
    assert only(effects.Publish, steps[-1].effects).row == first.row
    step = turn(machine, version(0, run="other", quota=0), now=0.1 + HOLD)
    noted = some(writes.NoteVersion, step.writes)
    assert [(write.row.run, write.row.version) for write in noted] == [("r", 4), ("other", 0)]
    assert noted[0].record == b"record 4"
    assert len(some(effects.Settle, step.effects)) == 4


# ---- heads


def test_the_head_is_pulled_at_once_and_every_quarter_of_an_hour() -> None:
    machine = rules()
    assert some(effects.PullHead, turn(machine).effects)
    assert not some(effects.PullHead, turn(machine, now=HEAD_EVERY - 1).effects)
    assert some(effects.PullHead, turn(machine, now=HEAD_EVERY).effects)


def test_the_head_is_pulled_when_the_connection_is_new() -> None:
    machine = rules()
    turn(machine)
    assert some(effects.PullHead, turn(machine, events.HeadWanted(connected=True), now=1.0).effects)


def test_doubtful_messages_cannot_make_the_worker_pull_the_head_more_often_than_every_ten_seconds() -> None:
    machine = rules()
    turn(machine)
    pulls = [turn(machine, events.HeadWanted(connected=False), now=float(at)).effects for at in range(1, 31)]
    assert sum(bool(some(effects.PullHead, done)) for done in pulls) == 3


def test_a_failed_fetch_is_tried_again_within_a_minute() -> None:
    machine = rules()
    turn(machine)
    for attempt in range(10):
        turn(machine, events.FetchFailed(), now=float(attempt * 100))
        deadline = machine.deadline()
        assert deadline is not None
        assert deadline <= attempt * 100 + 60
        assert some(effects.PullHead, turn(machine, now=attempt * 100 + 60.0).effects)


def test_a_version_the_head_names_is_fetched_if_it_was_never_announced() -> None:
    machine = rules()
    turn(machine, version(2))
    step = turn(machine, head(1, ("r", RunState.RUNNING, 3)))
    assert only(effects.FetchVersion, step.effects) == effects.FetchVersion(
        run="r", version=3, digest=(3).to_bytes(32, "big")
    )
    assert not some(effects.FetchVersion, turn(machine, head(2, ("r", RunState.RUNNING, 2))).effects)


def test_a_record_that_cannot_be_fetched_is_asked_for_ever_more_rarely() -> None:
    machine = rules()
    turn(machine)
    now, waits = 0.0, []
    for number in range(1, 12):
        step = turn(machine, head(number, ("r", RunState.RUNNING, 3)), now=now)
        assert some(effects.FetchVersion, step.effects)
        turn(machine, events.FetchFailed(), now=now)
        waits.append(machine._pulls.at - now)
        now = machine._pulls.at
        assert some(effects.PullHead, turn(machine, now=now).effects)
    assert waits[0] <= 2.0
    assert waits[-1] >= 30.0


def test_a_record_that_was_issued_again_is_fetched_when_its_announcement_was_lost() -> None:
    machine = rules()
    turn(machine, version(3, digest=b"o" * 32))
    step = turn(machine, head(1, ("r", RunState.RUNNING, 3)))
    assert only(effects.FetchVersion, step.effects).digest == (3).to_bytes(32, "big")


def test_a_head_that_goes_back_is_refused_with_an_alarm() -> None:
    machine = rules()
    turn(machine, head(5, ("r", RunState.RUNNING, 3)))
    pull = only(effects.PullHead, turn(machine, events.HeadWanted(connected=True)).effects)
    step = turn(machine, replace(head(4, ("r", RunState.STOPPED, 9)), known=pull.known))
    assert only(effects.Alarm, step.effects).event == "head.went_back"
    assert step.writes == ()
    assert not some(effects.FetchVersion, step.effects)


def test_a_head_that_was_overtaken_is_ignored_without_an_alarm() -> None:
    machine = rules()
    pull = only(effects.PullHead, turn(machine, events.HeadWanted(connected=True)).effects)
    turn(machine, head(5, ("r", RunState.RUNNING, 3)))
    step = turn(machine, replace(head(4, ("r", RunState.STOPPED, 9)), known=pull.known))
    assert step.writes == ()
    assert not some(effects.Alarm, step.effects)


def test_a_head_that_nobody_signs_any_more_raises_an_alarm_and_training_goes_on() -> None:
    machine = rules()
    step = turn(machine, version(0), head(1, ("r", RunState.RUNNING, 0), not_after=1_000, wall=1_601.0))
    assert only(effects.Alarm, step.effects).event == "head.stale"
    assert some(effects.Train, step.effects)
    assert not some(effects.Alarm, turn(machine, head(1, not_after=1_000, wall=1_599.0)).effects)


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.ABORTED])
def test_the_end_of_its_run_aborts_a_training_and_leaves_the_worker_idle(state: RunState) -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0)).effects)
    assert some(effects.AbortTraining, turn(machine, head(1, ("r", state, 0))).effects)
    step = turn(machine, events.TrainingFailed(id=training.id, code="aborted"))
    assert not some(effects.Train, step.effects)
    assert only(effects.ReportStatus, step.effects).state == "idle"


def test_what_a_training_finished_after_the_end_of_its_run_is_thrown_away() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0)).effects)
    turn(machine, head(1, ("r", RunState.ABORTED, 0)))
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED))
    assert only(effects.DropSpool, step.effects).chunks == SEALED.chunks
    assert not some(writes.AddUpdate, step.writes)


def test_a_paused_run_lets_the_training_finish_and_starts_none() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0, quota=2)).effects)
    assert not some(effects.AbortTraining, turn(machine, head(1, ("r", RunState.PAUSED, 0))).effects)
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED))
    assert some(writes.AddUpdate, step.writes)
    assert not some(effects.Train, step.effects)
    assert some(effects.Train, turn(machine, head(2, ("r", RunState.RUNNING, 0))).effects)


def test_a_run_that_later_heads_no_longer_name_has_stopped() -> None:
    machine = rules()
    turn(machine, version(0, quota=2), head(1, ("r", RunState.RUNNING, 0)))
    assert some(effects.AbortTraining, turn(machine, head(2)).effects)


def test_a_run_that_was_announced_before_any_head_named_it_goes_on() -> None:
    machine = rules()
    turn(machine, version(0))
    assert not some(effects.AbortTraining, turn(machine, head(1)).effects)


def test_another_registry_is_fetched_used_and_never_goes_back() -> None:
    machine = rules()
    step = turn(machine, head(1, registry=b"n" * 32))
    assert only(effects.FetchRegistry, step.effects).digest == b"n" * 32
    newer = events.RegistrySeen(registry=Registry(version=3, entries=()), digest=b"n" * 32, record=b"raw")
    step = turn(machine, newer)
    assert only(writes.NoteRegistry, step.writes).version == 3
    assert only(effects.UseRegistry, step.effects).registry.version == 3
    older = events.RegistrySeen(registry=Registry(version=2, entries=()), digest=b"o" * 32, record=b"raw")
    step = turn(machine, older)
    assert step.writes == ()
    assert only(effects.Alarm, step.effects).event == "registry.went_back"


# ---- evaluation


def test_a_version_is_evaluated_once_before_it_is_trained_from() -> None:
    machine = rules()
    step = turn(machine, version(0, quota=2, evaluate=True))
    training = only(effects.Train, step.effects)
    assert training.evaluation
    assert (training.sequence, only(writes.Reserve, step.writes).sequence) == (2, 2)
    step = turn(machine, events.Evaluated(id=training.id, envelope=b"evaluation"))
    message = only(writes.AddMessage, step.writes)
    assert (message.exchange, message.body) == ("up.alpha", b"evaluation")
    assert only(effects.Publish, step.effects).row == message.row
    step = turn(machine, events.Published(row=message.row), events.Trained(id=training.id, sealed=SEALED))
    assert only(writes.RemoveMessage, step.writes).row == message.row
    assert only(effects.Train, step.effects).evaluation == b""


# ---- sending


def test_an_update_is_journalled_then_uploaded_then_published() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0)).effects)
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED))
    update = only(writes.AddUpdate, step.writes).row
    assert only(effects.Upload, step.effects).row == update
    assert not some(effects.Publish, step.effects)
    step = turn(machine, events.Uploaded(row=update.row))
    assert only(effects.Publish, step.effects).row == update.row
    assert not some(effects.Upload, turn(machine, events.Published(row=update.row)).effects)


def test_a_failed_upload_is_tried_again_within_a_minute_and_at_once_when_the_connection_is_new() -> None:
    machine = rules()
    update = trained(machine, version(0))
    for attempt in range(12):
        now = 100.0 * attempt
        turn(machine, events.SendingFailed(row=update.row, lost=False), now=now)
        assert not some(effects.Upload, turn(machine, now=now).effects)
        assert some(effects.Upload, turn(machine, now=now + 60).effects)
    turn(machine, events.SendingFailed(row=update.row, lost=False), now=2000.0)
    assert some(effects.Upload, turn(machine, events.HeadWanted(connected=True), now=2000.1).effects)


@pytest.mark.parametrize(
    "outcome", [Outcome.MERGED, Outcome.REJECTED, Outcome.SUPERSEDED, Outcome.RUN_ABORTED, Outcome.RUN_ENDED]
)
def test_a_final_receipt_is_kept_then_acked_then_the_spool_is_emptied(outcome: Outcome) -> None:
    machine = rules()
    update = trained(machine, version(0))
    sent(machine, update)
    turn(machine, receipt(update, outcome, merged=4))
    step = turn(machine, now=HOLD)
    kept = only(writes.SettleUpdate, step.writes)
    assert (kept.row, kept.outcome, kept.receipt) == (update, outcome.value, b"signed receipt")
    assert kept.version == (4 if outcome == Outcome.MERGED else 0)
    order = [type(effect) for effect in step.effects]
    assert order.index(effects.Settle) < order.index(effects.DropSpool)
    assert only(effects.DropSpool, step.effects).chunks == update.chunks
    assert turn(machine, receipt(update, outcome)).writes == ()


def test_a_receipt_that_comes_again_before_the_first_is_kept_is_acked_with_it() -> None:
    machine = rules()
    update = trained(machine, version(0))
    sent(machine, update)
    turn(machine, receipt(update, Outcome.MERGED, merged=4))
    again = turn(machine, receipt(update, Outcome.MERGED, merged=4))
    assert not some(effects.Settle, again.effects)
    step = turn(machine, now=HOLD)
    assert some(writes.SettleUpdate, step.writes)
    assert len(some(effects.Settle, step.effects)) == 2
    assert some(effects.Settle, turn(machine, receipt(update, Outcome.MERGED, merged=4), now=1.0).effects)


def test_a_receipt_that_is_not_final_leaves_the_update_where_it_is() -> None:
    machine = rules()
    update = trained(machine, version(0))
    sent(machine, update)
    step = turn(machine, receipt(update, Outcome.JOURNALLED))
    assert step.writes == ()
    assert [type(effect) for effect in step.effects] == [effects.Settle]


def test_a_reupload_puts_every_chunk_again_and_publishes_the_same_row_again() -> None:
    machine = rules()
    update = trained(machine, version(0))
    sent(machine, update)
    step = turn(machine, receipt(update, Outcome.REUPLOAD))
    assert only(effects.Upload, step.effects) == effects.Upload(row=update, anew=True)
    step = turn(machine, events.Uploaded(row=update.row))
    assert only(effects.Publish, step.effects).row == update.row


def test_a_reupload_asked_for_while_the_update_is_being_published_is_not_forgotten() -> None:
    machine = rules()
    update = trained(machine, version(0))
    turn(machine, events.Uploaded(row=update.row))
    assert not some(effects.Upload, turn(machine, receipt(update, Outcome.REUPLOAD)).effects)
    step = turn(machine, events.Published(row=update.row))
    assert only(effects.Upload, step.effects).anew


def test_how_many_updates_a_version_has_had_is_written_with_each_of_them() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0, quota=2)).effects)
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED))
    assert some(writes.AddUpdate, step.writes)
    assert some(writes.NoteRun, step.writes)[-1].row.sent == 1


def test_a_head_that_tells_of_nothing_new_writes_nothing_about_its_runs() -> None:
    machine = rules()
    turn(machine, version(1))
    assert some(writes.NoteRun, turn(machine, head(1, ("r", RunState.RUNNING, 1))).writes)
    assert not some(writes.NoteRun, turn(machine, head(2, ("r", RunState.RUNNING, 1))).writes)
    assert some(writes.NoteRun, turn(machine, head(3, ("r", RunState.PAUSED, 1))).writes)


def test_what_the_broker_has_is_not_sent_again_because_the_network_comes_back() -> None:
    machine = rules()
    update = trained(machine, version(0))
    turn(machine, events.SendingFailed(row=update.row, lost=False), now=1.0)
    assert some(effects.Upload, turn(machine, events.HeadWanted(connected=True), now=1.1).effects)
    sent(machine, update, now=2.0)
    assert not some(effects.Upload, turn(machine, events.HeadWanted(connected=True), now=3.0).effects)


def test_an_update_without_a_receipt_for_five_minutes_is_sent_again() -> None:
    machine = rules()
    update = trained(machine, version(0))
    sent(machine, update, now=10.0)
    assert not some(effects.Upload, turn(machine, now=309.0).effects)
    assert only(effects.Upload, turn(machine, now=310.0).effects).row == update


def test_a_reused_sequence_begins_a_key_epoch_above_all_others() -> None:
    machine = rules(Snapshot(epoch=1, sequence=4))
    update = trained(machine, version(0))
    sent(machine, update)
    step = turn(machine, receipt(update, Outcome.SEQUENCE_REUSED, highest=6))
    assert some(writes.Reserve, step.writes)[-1] == writes.Reserve(epoch=7, sequence=1)
    assert only(effects.Reseal, step.effects) == effects.Reseal(row=update, epoch=7, sequence=1)
    fresh = Sealed(envelope=b"new", chunks=(b"d" * 32,), key=b"k")
    step = turn(machine, events.Resealed(row=update.row, epoch=7, sequence=1, sealed=fresh))
    replaced = only(writes.ReplaceUpdate, step.writes).row
    assert (replaced.id, replaced.epoch, replaced.sequence) == (update.id, 7, 1)
    assert only(effects.DropSpool, step.effects).chunks == update.chunks
    assert only(effects.Upload, step.effects).row == replaced


def test_a_second_receipt_about_replaced_bytes_changes_nothing() -> None:
    machine = rules()
    update = trained(machine, version(0))
    sent(machine, update)
    turn(machine, receipt(update, Outcome.SEQUENCE_REUSED))
    turn(machine, events.Resealed(row=update.row, epoch=1, sequence=1, sealed=SEALED))
    step = turn(machine, receipt(update, Outcome.SEQUENCE_REUSED))
    assert step.writes == ()
    assert [type(effect) for effect in step.effects] == [effects.Settle]


def test_two_reused_sequences_begin_one_key_epoch() -> None:
    machine = rules()
    seen = version(0, quota=2)
    first = trained(machine, seen)
    second_training = machine._training  # the second training began with the commit of the first
    assert second_training is not None
    step = turn(machine, events.Trained(id=second_training.id, sealed=SEALED))
    second = only(writes.AddUpdate, step.writes).row
    sent(machine, first)
    sent(machine, second)
    step = turn(
        machine,
        receipt(first, Outcome.SEQUENCE_REUSED),
        receipt(second, Outcome.SEQUENCE_REUSED),
    )
    assert [(reseal.epoch, reseal.sequence) for reseal in some(effects.Reseal, step.effects)] == [(1, 1), (1, 2)]


def test_what_has_not_left_the_site_is_sealed_again_with_the_first_reused_sequence() -> None:
    machine = rules()
    seen = version(0, quota=2)
    first = trained(machine, seen)
    sent(machine, first)
    training = machine._training
    assert training is not None
    turn(machine, receipt(first, Outcome.SEQUENCE_REUSED))
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED))
    assert only(writes.AddUpdate, step.writes).row.epoch == 0
    assert only(effects.Reseal, step.effects).epoch == 1
    assert not some(effects.Upload, step.effects)


def test_what_the_aggregator_may_have_journalled_keeps_its_number() -> None:
    machine = rules()
    first = trained(machine, version(0))
    second = trained(machine, version(1))
    sent(machine, first)
    sent(machine, second)
    step = turn(machine, receipt(first, Outcome.SEQUENCE_REUSED))
    assert only(effects.Reseal, step.effects).row == first


def test_an_update_whose_chunks_are_lost_is_settled_here_and_trained_again() -> None:
    machine = rules()
    update = trained(machine, version(0))
    step = turn(machine, events.SendingFailed(row=update.row, lost=True))
    kept = only(writes.SettleUpdate, step.writes)
    assert (kept.outcome, kept.reason, kept.receipt) == ("rejected", "spool_lost", b"")
    assert only(effects.Train, step.effects).version == 0


# ---- failures


def test_a_full_disk_blocks_training_until_the_next_heartbeat() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0)).effects)
    step = turn(machine, events.TrainingFailed(id=training.id, code="disk_full"))
    assert only(effects.ReportStatus, step.effects).state == "blocked"
    assert not some(effects.Train, turn(machine, now=19.0).effects)
    assert some(effects.Train, turn(machine, now=20.0).effects)


def test_a_trainer_that_keeps_failing_is_tried_again_ever_more_rarely() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(0)).effects)
    now, waits = 0.0, []
    for _ in range(12):
        turn(machine, events.TrainingFailed(id=training.id, code="trainer"), now=now)
        due = machine._train_at
        waits.append(due - now)
        now = due
        training = only(effects.Train, turn(machine, now=now).effects)
    assert waits[0] <= 2.0
    assert waits[5] > waits[0]
    assert 150.0 <= max(waits) <= 300.0


def test_the_answer_of_another_training_is_ignored() -> None:
    machine = rules()
    turn(machine, version(0))
    step = turn(machine, events.Trained(id=b"?" * 16, sealed=SEALED))
    assert step.writes == ()
    assert only(effects.DropSpool, step.effects).chunks == SEALED.chunks


@pytest.mark.parametrize("outcome", [Outcome.RUN_ENDED, Outcome.RUN_ABORTED])
def test_a_run_that_goes_on_from_the_same_version_is_trained_again(outcome: Outcome) -> None:
    machine = rules()
    turn(machine, head(1, ("r", RunState.RUNNING, 0)))
    update = trained(machine, version(0))
    sent(machine, update)
    step = turn(machine, receipt(update, outcome), now=30.0)
    # Nothing says yet whether the run goes on: the head is asked.
    assert not some(effects.Train, step.effects)
    assert some(effects.PullHead, turn(machine, now=30.0).effects) or some(effects.PullHead, step.effects)
    ended = RunState.ABORTED if outcome == Outcome.RUN_ABORTED else RunState.STOPPED
    assert not some(effects.Train, turn(machine, head(2, ("r", ended, 0)), now=31.0).effects)
    step = turn(machine, head(3, ("r", RunState.RUNNING, 0)), now=32.0)
    assert only(effects.Train, step.effects).version == 0


def test_a_receipt_about_an_end_that_is_over_leads_to_one_look_at_the_head() -> None:
    machine = rules()
    turn(machine, head(1, ("r", RunState.RUNNING, 0)))
    update = trained(machine, version(0))
    turn(machine, receipt(update, Outcome.RUN_ENDED), now=30.0)
    same = head(1, ("r", RunState.RUNNING, 0))
    assert only(effects.Train, turn(machine, same, now=31.0).effects).version == 0


# ---- restart and signs of life


def test_after_a_restart_everything_pending_is_taken_up_again() -> None:
    update = UpdateRow(row=4, id=b"u" * 16, run="r", base_version=0, epoch=0, sequence=1, chunks=(b"c" * 32,))
    run = RunRow(run="r", version=1, digest=b"1" * 32, updates_per_base=1)
    step = turn(rules(Snapshot(sequence=3, runs=(run,), updates=(update,), messages=(7,))))
    assert only(effects.PullHead, step.effects)
    assert only(effects.Upload, step.effects).row == update
    assert only(effects.Publish, step.effects).row == 7
    training = only(effects.Train, step.effects)
    assert (training.version, training.sequence) == (1, 4)


def test_rows_given_after_a_restart_are_new() -> None:
    update = UpdateRow(row=4, id=b"u" * 16, run="r", base_version=0, epoch=0, sequence=1, chunks=())
    machine = rules(Snapshot(updates=(update,), messages=(7,)))
    assert trained(machine, version(1)).row == 8


def test_a_worker_that_finds_its_quota_used_up_waits_for_the_next_version() -> None:
    run = RunRow(run="r", version=1, digest=b"1" * 32, updates_per_base=2, sent=2)
    machine = rules(Snapshot(runs=(run,)))
    assert not some(effects.Train, turn(machine).effects)
    assert only(effects.Train, turn(machine, version(2)).effects).version == 2


def test_signs_of_life_come_with_every_heartbeat_and_changes_at_most_once_a_second() -> None:
    machine = rules()
    assert only(effects.ReportStatus, turn(machine).effects).publish
    reports = some(effects.ReportStatus, turn(machine, version(0), now=0.5).effects)
    assert [(report.state, report.publish) for report in reports] == [("training", False)]
    assert machine.deadline() == 1.0
    assert only(effects.ReportStatus, turn(machine, now=1.0).effects).publish
    assert not some(effects.ReportStatus, turn(machine, now=20.5).effects)
    assert only(effects.ReportStatus, turn(machine, now=21.0).effects).publish


def test_an_unknown_event_is_a_defect_and_says_so() -> None:
    with pytest.raises(AssertionError, match="what\\?"):
        rules().step(cast(Any, "what?"), 0.0)
