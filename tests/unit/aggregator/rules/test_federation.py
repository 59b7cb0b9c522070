"""The aggregator's rules, transition by transition, on a real journal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aggregator.domain import effects, events, writes
from aggregator.domain.state import RunPlace, UpdateState
from aggregator.rules.head import HEAD_EVERY
from aggregator.strategy.stopping import Stopping
from aggregator.strategy.strategies import FedBuff, strategy
from protocol import limits, topology
from protocol.messages import Evaluation, Outcome, RunState
from tests.support.aggregator_rules import GENESIS, RUN, Desk, registry

# ---- arriving


def test_an_update_is_journalled_before_it_is_acked_and_then_admitted() -> None:
    desk = Desk()
    notice = desk.notice()
    done = desk.arrive(notice)
    assert done == [effects.Settle(delivery=notice.id), effects.Admit(run=RUN, id=notice.id)]
    assert desk.state(notice) == (UpdateState.JOURNALLED, "ok")


def test_an_admitted_update_waits_with_its_norm_and_says_nothing_to_its_site() -> None:
    desk = Desk()
    notice = desk.validate(norm=2.5)
    assert desk.state(notice) == (UpdateState.VALIDATED, "ok")
    assert desk.journal.update_rows([notice.id])[0].norm == 2.5
    assert desk.receipts == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": "another"}, "wrong_run"),
        ({"spec": b"t" * 32}, "wrong_spec"),
        ({"length": 65}, "wrong_length"),
        ({"encoding": "int8"}, "unknown_encoding"),
        ({"absent": ("weight", "unheard-of")}, "unknown_tensor"),
        ({"base_version": 1}, "future_base"),
    ],
)
def test_an_update_that_does_not_fit_is_journalled_and_refused_with_the_reason(
    changes: dict[str, Any], reason: str
) -> None:
    desk = Desk()
    notice = desk.notice(**changes)
    done = desk.arrive(notice)
    assert desk.state(notice) == (UpdateState.REJECTED, reason)
    assert desk.told() == [(notice.id, Outcome.REJECTED, reason)]
    assert effects.Settle(delivery=notice.id) in done
    assert desk.some(effects.Admit) == []


def test_an_update_that_is_too_old_at_its_arrival_is_refused() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1, stale_limit=1))
    desk.advance(2)
    notice = desk.notice(base_version=0)
    desk.arrive(notice)
    assert desk.told() == [(notice.id, Outcome.REJECTED, "too_stale")]


def test_tensors_that_a_site_keeps_to_itself_are_no_reason_to_refuse() -> None:
    desk = Desk()
    notice = desk.validate(absent=("bias",))
    assert desk.journal.update_rows([notice.id])[0].absent == ("bias",)


def test_the_same_bytes_again_are_acked_and_change_nothing() -> None:
    desk = Desk()
    notice = desk.validate()
    assert desk.arrive(notice) == [effects.Settle(delivery=notice.id)]
    assert desk.receipts == []
    assert desk.state(notice) == (UpdateState.VALIDATED, "ok")


def test_the_same_bytes_again_after_the_end_get_the_receipt_again() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    notice = desk.validate()
    desk.merge()
    desk.arrive(notice)
    assert desk.told() == [(notice.id, Outcome.MERGED, "ok")]
    assert [write.version for write in desk.writes if isinstance(write, writes.Send)] == [1]


def test_an_update_twice_in_one_batch_is_admitted_once() -> None:
    desk = Desk()
    notice = desk.notice()
    arrival = events.UpdateArrived(delivery="first", notice=notice)
    desk.turn(arrival, replace(arrival, delivery="second"))
    assert {settle.delivery for settle in desk.some(effects.Settle)} == {"first", "second"}
    assert len(desk.some(effects.Admit)) == 1


def test_an_update_that_comes_again_while_it_is_looked_at_is_admitted_once() -> None:
    desk = Desk()
    notice = desk.notice()
    desk.arrive(notice)
    assert desk.only(effects.Admit).id == notice.id
    desk.arrive(notice)
    assert desk.some(effects.Admit) == []
    desk.turn(events.NotAdmitted(id=notice.id, reason="store_away", retry=True))
    desk.arrive(notice)  # parked: tried again at once
    assert desk.only(effects.Admit).id == notice.id
    desk.arrive(notice)
    assert desk.some(effects.Admit) == []


def test_a_duplicate_of_a_parked_update_is_a_reason_to_try_again_at_once() -> None:
    desk = Desk()
    notice = desk.notice()
    desk.arrive(notice)
    desk.turn(events.NotAdmitted(id=notice.id, reason="chunk_missing", retry=True, missing=True))
    desk.arrive(notice)
    assert desk.only(effects.Admit).id == notice.id


def test_another_update_under_a_used_sequence_is_told_the_highest_epoch() -> None:
    desk = Desk()
    desk.validate(epoch=3)
    used = desk.validate(sequence=5)
    other = desk.notice(sequence=5)
    done = desk.arrive(other)
    [receipt] = desk.receipts
    assert (receipt.message, receipt.outcome, receipt.highest_epoch) == (other.id, Outcome.SEQUENCE_REUSED, 3)
    assert (receipt.epoch, receipt.sequence) == (0, 5)
    assert effects.Settle(delivery=other.id) in done
    assert desk.state(used) == (UpdateState.VALIDATED, "ok")


def test_the_receipt_for_a_used_sequence_is_committed_before_the_message_is_acked() -> None:
    desk = Desk()
    desk.validate(sequence=5)
    other = desk.notice(sequence=5)
    acked_with: list[bool] = []
    desk.actor._perform = lambda effect: acked_with.append(bool(desk.receipts))
    desk.arrive(other)
    assert all(acked_with)


def test_an_update_that_its_site_sealed_again_under_a_new_epoch_is_the_same_update() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    notice = desk.validate()
    desk.merge()
    desk.arrive(replace(notice, epoch=1, sequence=1, envelope=b"sealed again"))
    assert desk.told() == [(notice.id, Outcome.MERGED, "ok")]


def test_other_bytes_under_the_same_id_and_sequence_are_refused() -> None:
    desk = Desk()
    notice = desk.validate()
    desk.arrive(replace(notice, envelope=b"something else"))
    assert desk.told() == [(notice.id, Outcome.SEQUENCE_REUSED, "sequence_reused")]


def test_no_site_can_speak_about_an_update_of_another_by_its_id() -> None:
    desk = Desk()
    notice = desk.validate("alpha")
    thief = desk.notice("beta", id=notice.id)
    desk.arrive(thief)
    assert desk.told() == [(notice.id, Outcome.SEQUENCE_REUSED, "sequence_reused")]
    assert desk.journal.update_rows([notice.id])[0].site == "alpha"


def test_sequences_are_accepted_in_any_order_within_the_window() -> None:
    desk = Desk()
    for sequence in (9, 2, 4096, 1):
        desk.arrive(desk.notice(sequence=sequence))
        assert desk.receipts == []


def test_a_sequence_beyond_the_window_asks_for_a_new_epoch_and_leaves_the_window_where_it_is() -> None:
    desk = Desk()
    desk.validate(sequence=1)
    far = desk.notice(sequence=2 + limits.SEQUENCE_WINDOW)
    assert effects.Settle(delivery=far.id) in desk.arrive(far)
    assert desk.told() == [(far.id, Outcome.SEQUENCE_REUSED, "sequence_gap")]
    desk.arrive(replace(far, epoch=1, sequence=1, envelope=b"sealed again"))
    assert desk.some(effects.Admit) == [effects.Admit(run=RUN, id=far.id)]
    near = desk.notice(sequence=1 + limits.SEQUENCE_WINDOW)
    desk.arrive(near)
    assert desk.some(effects.Admit) == [effects.Admit(run=RUN, id=near.id)]


def test_a_sequence_below_the_window_is_too_old_unless_it_is_known() -> None:
    desk = Desk()
    known = desk.validate(sequence=1)
    desk.validate(sequence=limits.SEQUENCE_WINDOW + 1)
    desk.validate(sequence=2 * limits.SEQUENCE_WINDOW)
    old = desk.notice(sequence=2)
    desk.arrive(old)
    assert desk.told() == [(old.id, Outcome.REJECTED, "too_old")]
    desk.arrive(known)
    assert desk.receipts == []


# ---- admission


def test_an_update_that_fails_admission_for_good_is_rejected_with_the_reason() -> None:
    desk = Desk()
    notice = desk.notice()
    desk.arrive(notice)
    desk.turn(events.NotAdmitted(id=notice.id, reason="not_finite", retry=False))
    assert desk.told() == [(notice.id, Outcome.REJECTED, "not_finite")]
    assert desk.state(notice) == (UpdateState.REJECTED, "not_finite")


def test_a_missing_chunk_parks_the_update_and_asks_for_it() -> None:
    desk = Desk()
    notice = desk.notice()
    desk.arrive(notice)
    desk.turn(events.NotAdmitted(id=notice.id, reason="chunk_missing", retry=True, missing=True))
    assert desk.told() == [(notice.id, Outcome.REUPLOAD, "chunk_missing")]
    assert desk.state(notice) == (UpdateState.PARKED, "chunk_missing")


def test_a_site_is_asked_for_a_chunk_once_and_again_only_when_it_has_sent_the_update_again() -> None:
    desk = Desk()
    notice = desk.notice()
    missing = events.NotAdmitted(id=notice.id, reason="chunk_missing", retry=True, missing=True)
    desk.arrive(notice)
    desk.turn(missing)
    assert desk.rules.deadline() == HEAD_EVERY
    assert [type(effect) for effect in desk.turn(seconds=HEAD_EVERY)] == [effects.PutHead]
    desk.arrive(notice)
    desk.turn(missing)
    assert desk.told() == [(notice.id, Outcome.REUPLOAD, "chunk_missing")]


@pytest.mark.parametrize(("epoch", "sequence"), [(2, 1), (1, 2), (2, 2)])
def test_an_update_without_its_chunks_ends_when_its_site_has_only_another_form_of_it(epoch: int, sequence: int) -> None:
    desk = Desk()
    notice = desk.notice()
    assert (notice.epoch, notice.sequence) != (epoch, sequence)
    desk.arrive(notice)
    desk.turn(events.NotAdmitted(id=notice.id, reason="chunk_missing", retry=True, missing=True))
    desk.arrive(replace(notice, epoch=epoch, sequence=sequence))
    assert desk.state(notice) == (UpdateState.REJECTED, "sealed_otherwise")
    assert desk.told()[-1] == (notice.id, Outcome.REJECTED, "sealed_otherwise")


def test_a_store_that_is_away_parks_the_update_in_silence_until_it_is_tried_again() -> None:
    desk = Desk()
    notice = desk.notice()
    desk.arrive(notice)
    desk.turn(events.NotAdmitted(id=notice.id, reason="store_away", retry=True))
    assert desk.receipts == []
    assert desk.rules.deadline() == desk.now + 30.0
    assert desk.turn(seconds=29.99) == []
    assert desk.turn(seconds=0.02) == [effects.Admit(run=RUN, id=notice.id)]
    desk.turn(events.Admitted(id=notice.id, norm=1.0))
    assert desk.state(notice)[0] == UpdateState.VALIDATED


def test_what_is_parked_or_only_journalled_is_admitted_again_at_the_next_start() -> None:
    desk = Desk()
    parked, fresh, done = desk.notice(), desk.notice(), desk.validate("beta")
    desk.arrive(parked)
    desk.turn(events.NotAdmitted(id=parked.id, reason="store_away", retry=True))
    desk.arrive(fresh)
    desk.start()
    assert [admit.id for admit in desk.some(effects.Admit)] == [parked.id, fresh.id]
    assert desk.state(done)[0] == UpdateState.VALIDATED


def test_what_had_to_be_refused_is_refused_at_the_next_start_if_the_answer_was_lost() -> None:
    desk = Desk()
    notice = desk.notice(run="another")
    desk.journal.commit([writes.JournalUpdate(delivery=None, notice=notice, objection="wrong_run")])
    desk.start()
    assert desk.some(effects.Admit) == []
    assert desk.told() == [(notice.id, Outcome.REJECTED, "wrong_run")]


def test_what_was_journalled_after_the_end_of_the_run_is_ended_at_the_next_start() -> None:
    desk = Desk()
    desk.command("run.stop", 1)
    notice = desk.notice()
    desk.journal.commit([writes.JournalUpdate(delivery=None, notice=notice, objection="ok")])
    desk.start()
    assert desk.told() == [(notice.id, Outcome.RUN_ENDED, "stop-by-olga")]


# ---- versions


def test_a_full_buffer_becomes_a_version_with_its_members_in_the_order_of_their_arrival() -> None:
    desk = Desk()
    first, second = desk.validate("beta"), desk.validate("alpha")
    plan = desk.only(effects.Merge).plan
    assert (plan.version, plan.parent, plan.divisor) == (1, GENESIS, 2.0)
    assert [member.id for member in plan.members] == [first.id, second.id]
    assert desk.state_of_run.version == 0


def test_a_commit_marks_members_tells_their_sites_announces_the_record_and_puts_a_head() -> None:
    desk = Desk()
    notices = [desk.validate("alpha"), desk.validate("beta")]
    plan = desk.merge()
    assert desk.state_of_run.version == 1
    assert [desk.state(notice)[0] for notice in notices] == [UpdateState.MERGED, UpdateState.MERGED]
    assert {(message, outcome) for message, outcome, _ in desk.told()} == {(n.id, Outcome.MERGED) for n in notices}
    [announcement] = [write for write in desk.writes if isinstance(write, writes.SendRaw)]
    assert (announcement.exchange, announcement.body) == (topology.GLOBAL, desk.product(plan).record)
    head = desk.only(effects.PutHead)
    assert head.runs == (RunPlace(run=RUN, state=RunState.RUNNING, reason="ok", version=1),)
    assert {publish.row for publish in desk.some(effects.Publish)} == set(desk.journal.fresh)


def test_a_record_too_large_for_a_message_is_announced_by_the_head_alone() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate()
    plan = desk.only(effects.Merge).plan
    product = replace(desk.product(plan), record=bytes(limits.MESSAGE + 1))
    desk.turn(events.Merged(plan=plan, product=product))
    assert [write for write in desk.writes if isinstance(write, writes.SendRaw)] == []
    assert desk.some(effects.AnnounceHead) == [effects.AnnounceHead(number=desk.only(effects.PutHead).number)]


def test_a_half_filled_buffer_is_merged_after_max_wait_and_divided_by_what_a_full_one_holds() -> None:
    desk = Desk(max_wait=50.0)
    notice = desk.validate()
    assert desk.rules.deadline() == pytest.approx(desk.now + 50.0)
    assert desk.turn(seconds=49.0) == []
    desk.turn(seconds=1.0)
    plan = desk.only(effects.Merge).plan
    assert ([member.id for member in plan.members], plan.divisor) == ([notice.id], 2.0)


def test_at_most_updates_per_base_updates_of_a_site_enter_one_version_and_later_ones_supersede() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=3, updates_per_base=1))
    first, second = desk.validate("alpha"), desk.validate("alpha")
    third = desk.validate("alpha")
    assert desk.told() == [(first.id, Outcome.SUPERSEDED, "newer_updates_wait")]
    other = desk.validate("beta")
    plan = desk.only(effects.Merge).plan
    assert [member.id for member in plan.members] == [second.id, other.id]
    assert desk.state(third)[0] == UpdateState.VALIDATED


def test_what_waits_while_versions_pass_is_weighed_by_its_age_at_the_merge() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    old = desk.notice("beta")
    desk.arrive(old)
    desk.validate("alpha")
    desk.merge()
    desk.turn(events.Admitted(id=old.id, norm=1.0))
    [member] = desk.only(effects.Merge).plan.members
    assert (member.id, member.base_version, member.staleness) == (old.id, 0, 1)
    assert member.staleness_weight == pytest.approx(2**-0.5)


@pytest.mark.parametrize("state", [UpdateState.VALIDATED, UpdateState.JOURNALLED, UpdateState.PARKED])
def test_what_became_too_old_while_it_waited_is_refused_wherever_it_stood(state: UpdateState) -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1, stale_limit=0))
    first = desk.validate("alpha")
    plan = desk.only(effects.Merge).plan
    old = desk.notice("beta")
    desk.arrive(old)
    if state == UpdateState.VALIDATED:
        desk.turn(events.Admitted(id=old.id, norm=1.0))
    elif state == UpdateState.PARKED:
        desk.turn(events.NotAdmitted(id=old.id, reason="chunk_missing", retry=True, missing=True))
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.told() == [(first.id, Outcome.MERGED, "ok"), (old.id, Outcome.REJECTED, "too_stale")]
    assert desk.turn(events.Admitted(id=old.id, norm=1.0)) == []


def test_no_second_merge_begins_while_one_is_under_way() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate("alpha")
    assert desk.some(effects.Merge)
    desk.validate("beta")
    assert desk.some(effects.Merge) == []


def test_a_merge_that_failed_is_tried_again_soon() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate()
    plan = desk.only(effects.Merge).plan
    desk.turn(events.MergeFailed(plan=plan, reason="merge_failed", bad=None))
    assert desk.some(effects.Merge) == []
    due = desk.rules.deadline()
    assert due is not None
    assert desk.now < due <= desk.now + 60.0
    desk.turn(seconds=due - desk.now)
    assert desk.only(effects.Merge).plan.members == plan.members


def test_a_strategy_that_failed_pauses_its_run_until_an_operator_lets_it_try_again() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate()
    plan = desk.only(effects.Merge).plan
    desk.turn(events.MergeFailed(plan=plan, reason="strategy_failed", bad=None, pause=True))
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (RunState.PAUSED, "strategy_failed")
    desk.turn(seconds=3600.0)
    assert desk.some(effects.Merge) == []
    desk.start()
    assert desk.state_of_run.state == RunState.PAUSED
    desk.command("run.resume", 1)
    assert desk.only(effects.Merge).plan.members == plan.members


class _Forgetful:
    """A staleness rule that passes the trial and fails in use."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def weight(self, staleness: int) -> Any:
        return self.answer() if callable(self.answer) else self.answer


def _fails() -> float:
    raise SystemExit(0)


@pytest.mark.parametrize("answer", [_fails, 2.0, float("nan"), -1, "1", None, True])
def test_a_staleness_rule_that_gives_no_weight_pauses_its_run_and_nothing_else(answer: Any) -> None:
    desk = Desk(chosen=replace(FedBuff(buffer=1), staleness=_Forgetful(answer)))
    desk.validate()
    assert desk.some(effects.Merge) == []
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (RunState.PAUSED, "strategy_failed")
    desk.start()
    desk.validate("beta")
    assert desk.state_of_run.state == RunState.PAUSED


def test_a_member_that_no_longer_reads_is_admitted_again_and_the_merge_goes_on_without_it() -> None:
    desk = Desk()
    bad, good, late = desk.validate("alpha"), desk.validate("beta"), desk.notice("alpha")
    plan = desk.only(effects.Merge).plan
    desk.turn(events.MergeFailed(plan=plan, reason="blob_missing", bad=bad.id))
    assert desk.state(bad) == (UpdateState.PARKED, "blob_missing")
    assert desk.only(effects.Admit).id == bad.id
    desk.arrive(late)
    desk.turn(events.Admitted(id=late.id, norm=1.0), seconds=60.0)
    again = desk.only(effects.Merge).plan
    assert {member.id for member in again.members} == {good.id, late.id}
    desk.turn(events.NotAdmitted(id=bad.id, reason="tampered", retry=False))
    assert desk.told() == [(bad.id, Outcome.REJECTED, "tampered")]


def test_a_product_whose_member_was_refused_meanwhile_is_thrown_away() -> None:
    desk = Desk("alpha", "beta", "gamma")
    desk.validate("alpha")
    kept = desk.validate("beta")
    plan = desk.only(effects.Merge).plan
    desk.registry = desk.registry.revoke("alpha")
    desk.turn(events.RegistryChanged(registry=desk.registry, record=b"registry"))
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.state_of_run.version == 0
    assert desk.state(kept)[0] == UpdateState.VALIDATED


def test_after_a_restart_the_next_version_has_the_same_members_and_weights() -> None:
    desk = Desk()
    desk.advance(3)
    desk.validate("alpha", base_version=3, norm=2.0)
    desk.validate("beta", base_version=1, norm=7.0)
    plan = desk.only(effects.Merge).plan
    desk.start()
    again = desk.only(effects.Merge).plan
    assert (again.version, again.parent, again.members, again.divisor) == (
        plan.version,
        plan.parent,
        plan.members,
        plan.divisor,
    )


def test_a_synchronous_version_waits_for_every_live_site_then_for_grace() -> None:
    desk = Desk("alpha", "beta", "gamma", chosen=strategy("fedavg"), min_sites=2)
    desk.validate("alpha")
    desk.validate("beta")
    assert desk.some(effects.Merge) == []
    desk.turn(seconds=30.0)
    plan = desk.only(effects.Merge).plan
    assert ([member.site for member in plan.members], plan.divisor) == (["alpha", "beta"], 2.0)


def test_a_site_that_fell_silent_no_longer_counts_for_the_buffer() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=4, updates_per_base=2), heartbeat=10.0)
    desk.validate("alpha")
    desk.validate("alpha")
    assert desk.some(effects.Merge) == []
    due = desk.rules.deadline()
    assert due is not None
    desk.turn(events.SiteSeen(delivery="event", site="alpha"), seconds=due - desk.now)
    assert len(desk.only(effects.Merge).plan.members) == 2


def test_a_doctor_at_a_site_is_no_sign_of_its_workers_life() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=4, updates_per_base=2), heartbeat=10.0)
    desk.validate("alpha")
    desk.validate("alpha")
    due = desk.rules.deadline()
    assert due is not None
    doctors = events.SiteSeen(delivery="event", site="beta", alive=False)
    assert effects.Settle(delivery="event") in desk.turn(doctors, seconds=due - desk.now)
    assert len(desk.only(effects.Merge).plan.members) == 2


@pytest.mark.parametrize("sign", ["event", "evaluation", "update"])
def test_an_event_an_evaluation_or_an_update_is_a_sign_of_life(sign: str) -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=4, updates_per_base=2), heartbeat=10.0)
    desk.validate("alpha")
    desk.validate("alpha")
    due = desk.rules.deadline()
    assert due is not None
    desk.now = due - 1.0
    if sign == "event":
        assert desk.turn(events.SiteSeen(delivery="event", site="beta")) == [effects.Settle(delivery="event")]
    elif sign == "evaluation":
        desk.evaluate("beta", 0, 0.5)
    else:
        desk.arrive(desk.notice("beta", run="another"))
    desk.turn(seconds=1.0)
    assert desk.some(effects.Merge) == []


def test_a_member_that_makes_the_result_overflow_is_refused_and_the_others_are_merged() -> None:
    desk = Desk(max_wait=10.0)
    huge, good = desk.validate("alpha"), desk.validate("beta")
    plan = desk.only(effects.Merge).plan
    desk.turn(events.MergeFailed(plan=plan, reason="does_not_fit", bad=huge.id, reject=True))
    assert desk.told() == [(huge.id, Outcome.REJECTED, "does_not_fit")]
    desk.turn(seconds=10.0)
    assert [member.id for member in desk.only(effects.Merge).plan.members] == [good.id]


def test_weights_take_into_account_what_earlier_versions_merged() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate("alpha", examples=30)
    desk.merge()
    desk.validate("beta", examples=10, base_version=1)
    [member] = desk.only(effects.Merge).plan.members
    assert member.example_weight == pytest.approx(0.5)


def test_an_ended_update_is_not_tried_again() -> None:
    desk = Desk()
    notice = desk.notice()
    desk.arrive(notice)
    desk.turn(events.NotAdmitted(id=notice.id, reason="store_away", retry=True))
    desk.command("run.abort", 1)
    assert desk.rules.deadline() == desk.now + HEAD_EVERY


def test_the_ledger_tells_the_end_of_every_update_every_version_and_every_turn_of_the_run() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    bad = desk.notice(run="another")
    desk.arrive(bad)
    entries = [(write.kind, write.entry) for write in desk.writes if isinstance(write, writes.Audit)]
    told = {"id": bad.id, "run": "another", "site": "alpha", "state": "rejected", "reason": "wrong_run"}
    assert entries == [("update", told)]
    good = desk.validate()
    plan = desk.merge()
    [(kind, entry)] = [(write.kind, write.entry) for write in desk.writes if isinstance(write, writes.Audit)]
    digest = desk.product(plan).digest
    told = {"run": RUN, "version": 1, "digest": digest, "parent": GENESIS, "members": [good.id]}
    assert (kind, entry) == ("version", told)
    desk.command("run.pause", 1)
    kinds = [write.kind for write in desk.writes if isinstance(write, writes.Audit)]
    assert kinds == ["command", "run"]
    assert desk.journal.broken_link() is None


# ---- the run


def test_pause_keeps_admitting_and_resume_merges_what_waited() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.command("run.pause", 1)
    assert desk.only(effects.PutHead).runs[0].state == RunState.PAUSED
    notice = desk.validate()
    assert desk.some(effects.Merge) == []
    assert desk.state(notice)[0] == UpdateState.VALIDATED
    desk.command("run.resume", 2)
    assert [member.id for member in desk.only(effects.Merge).plan.members] == [notice.id]


def test_a_merge_that_ends_during_a_pause_is_not_committed() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    notice = desk.validate()
    plan = desk.only(effects.Merge).plan
    desk.command("run.pause", 1)
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.state_of_run.version == 0
    assert desk.state(notice)[0] == UpdateState.VALIDATED


@pytest.mark.parametrize(
    ("command", "state", "outcome"),
    [("run.stop", RunState.STOPPED, Outcome.RUN_ENDED), ("run.abort", RunState.ABORTED, Outcome.RUN_ABORTED)],
)
def test_the_end_of_a_run_ends_what_waits_and_what_still_comes(command: str, state: RunState, outcome: Outcome) -> None:
    desk = Desk()
    waiting, parked = desk.validate(), desk.notice("beta")
    desk.arrive(parked)
    desk.turn(events.NotAdmitted(id=parked.id, reason="store_away", retry=True))
    desk.command(command, 1)
    reason = f"{command.removeprefix('run.')}-by-olga"
    assert desk.told() == [(waiting.id, outcome, reason), (parked.id, outcome, reason)]
    assert desk.only(effects.PutHead).runs[0].state == state
    assert desk.only(effects.Ended).reason == reason
    late = desk.notice()
    desk.arrive(late)
    assert desk.told() == [(late.id, outcome, reason)]
    desk.turn(events.Admitted(id=parked.id, norm=1.0), seconds=3600.0)
    assert desk.state(parked)[0].final


@pytest.mark.parametrize("ending", ["run.abort", "run.stop"])
@pytest.mark.parametrize("order", ["run.resume", "run.start"])
def test_an_ended_run_goes_on_from_its_newest_version_by_order_and_not_by_a_restart(ending: str, order: str) -> None:
    desk = Desk()
    desk.advance()
    desk.command(ending, 1)
    ended = desk.state_of_run.state
    desk.start()
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (ended, f"{ending.removeprefix('run.')}-by-olga")
    desk.command(order, 2)
    assert desk.only(effects.PutHead).runs[0].state == RunState.RUNNING
    assert desk.state_of_run.version == 1
    desk.advance()
    assert desk.state_of_run.version == 2


def test_a_merge_that_was_under_way_when_its_run_ended_does_not_count_once_it_goes_on() -> None:
    desk = Desk()
    desk.validate("alpha")
    desk.validate("beta")
    plan = desk.only(effects.Merge).plan
    desk.command("run.abort", 1)
    desk.command("run.start", 2)
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.state_of_run.version == 0


def test_a_run_that_has_reached_an_end_of_its_settings_is_not_started_again() -> None:
    desk = Desk(stopping=Stopping(max_versions=1))
    desk.advance()
    desk.command("run.start", 1)
    assert desk.only(effects.AnswerCommand).reason == "run_complete"
    assert desk.state_of_run.state == RunState.STOPPED


def test_a_command_that_comes_again_or_late_is_acked_and_not_taken() -> None:
    desk = Desk()
    desk.command("run.pause", 5)
    desk.command("run.resume", 6)
    for counter in (5, 6):
        settled, told = desk.command("run.pause", counter)
        assert (settled, told.reason, told.counter) == (effects.Settle(delivery="command"), "replayed", 6)
        assert desk.state_of_run.state == RunState.RUNNING
    desk.start()
    desk.command("run.pause", 6)
    assert desk.state_of_run.state == RunState.RUNNING
    desk.command("run.pause", 1, operator="otto")
    assert desk.state_of_run.state == RunState.PAUSED


def test_an_unknown_command_is_kept_in_the_ledger_and_changes_nothing() -> None:
    desk = Desk()
    desk.command("fly", 1)
    assert desk.state_of_run.state == RunState.RUNNING
    [audit] = [write for write in desk.writes if isinstance(write, writes.Audit)]
    assert audit.entry == {"operator": "olga", "command": "fly", "taken": False, "reason": "unknown_command"}


def test_a_run_stops_after_its_last_version() -> None:
    desk = Desk(stopping=Stopping(max_versions=2))
    desk.advance(2)
    assert (desk.state_of_run.version, desk.state_of_run.state, desk.state_of_run.reason) == (
        2,
        RunState.STOPPED,
        "max_versions",
    )


def test_a_run_stops_when_the_sites_find_the_target_reached() -> None:
    desk = Desk(stopping=Stopping(metric="accuracy", target=0.9))
    desk.advance()
    desk.evaluate("alpha", 1, 0.95)
    desk.evaluate("beta", 1, 0.93)
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (RunState.STOPPED, "target_metric")


def test_one_site_alone_does_not_reach_the_target_for_two() -> None:
    desk = Desk(stopping=Stopping(metric="accuracy", target=0.9))
    desk.evaluate("alpha", 0, 0.99)
    assert desk.state_of_run.state == RunState.RUNNING
    desk.evaluate("beta", 0, 0.5)
    assert desk.state_of_run.state == RunState.RUNNING


def test_a_site_that_measures_something_else_is_not_waited_for() -> None:
    desk = Desk(stopping=Stopping(metric="accuracy", target=0.9))
    desk.evaluate("alpha", 0, 0.99)
    beside = Evaluation(examples=10, metrics={"loss": 0.1})
    desk.turn(events.EvaluationArrived(delivery="e", site="beta", run=RUN, version=0, evaluation=beside))
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (RunState.STOPPED, "target_metric")


def test_a_run_stops_when_patience_ends() -> None:
    desk = Desk(stopping=Stopping(metric="accuracy", patience=2))
    for version, accuracy in ((1, 0.8), (2, 0.7), (3, 0.75)):
        desk.advance()
        desk.evaluate("alpha", version, accuracy)
        if version == 1:
            desk.evaluate("beta", version, 0.7)
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (RunState.STOPPED, "patience")


def test_the_time_of_a_run_counts_over_restarts_and_not_while_it_pauses() -> None:
    desk = Desk(stopping=Stopping(max_wall_time=100.0))
    desk.turn(seconds=30.0)
    desk.command("run.pause", 1)
    desk.turn(seconds=500.0)
    desk.command("run.resume", 2)
    desk.turn(seconds=30.0)
    desk.command("run.pause", 3)
    desk.start()
    desk.command("run.resume", 4)
    assert desk.rules.deadline() == pytest.approx(desk.now + 40.0)
    desk.turn(seconds=41.0)
    assert (desk.state_of_run.state, desk.state_of_run.reason) == (RunState.STOPPED, "max_wall_time")


def test_an_evaluation_of_a_version_that_does_not_exist_is_acked_and_forgotten() -> None:
    desk = Desk(stopping=Stopping(metric="accuracy", target=0.5))
    assert desk.evaluate("alpha", 7, 1.0) == [effects.Settle(delivery="evaluation")]
    assert desk.writes == []
    assert desk.state_of_run.state == RunState.RUNNING


# ---- members and strangers


def test_a_revoked_site_loses_what_waits_and_is_told() -> None:
    desk = Desk()
    waiting, other = desk.validate("alpha"), desk.notice("beta")
    desk.arrive(other)
    desk.registry = desk.registry.revoke("alpha")
    desk.turn(events.RegistryChanged(registry=desk.registry, record=b"registry"))
    assert desk.told() == [(waiting.id, Outcome.REJECTED, "revoked")]
    assert desk.only(effects.Reissue) == effects.Reissue(run=RUN, version=0, registry=desk.registry)


def test_an_update_that_was_on_the_way_when_its_site_was_revoked_is_refused() -> None:
    desk = Desk()
    notice = desk.notice("alpha")
    desk.registry = desk.registry.revoke("alpha")
    desk.turn(
        events.UpdateArrived(delivery="delivery", notice=notice),
        events.RegistryChanged(registry=desk.registry, record=b"registry"),
    )
    assert desk.told() == [(notice.id, Outcome.REJECTED, "revoked")]


def test_what_a_site_left_waiting_is_refused_at_a_start_under_a_registry_without_it() -> None:
    desk = Desk()
    waiting = desk.validate("alpha")
    desk.registry = desk.registry.revoke("alpha")
    desk.start()
    assert desk.told() == [(waiting.id, Outcome.REJECTED, "revoked")]


def test_an_older_registry_changes_nothing() -> None:
    desk = Desk()
    assert desk.turn(events.RegistryChanged(registry=registry("alpha"), record=b"older")) == []
    assert desk.rules.registry == desk.registry


def joined(desk: Desk, site: str) -> effects.Reissue:
    """One more site is in the registry; returns what has to be issued again."""
    desk.registry = desk.registry.with_entry(registry(site).entries[0].participant)
    desk.turn(events.RegistryChanged(registry=desk.registry, record=b"registry"))
    return desk.only(effects.Reissue)


def reissued(version: int, number: int) -> events.Reissued:
    return events.Reissued(
        run=RUN,
        version=version,
        registry=number,
        record=b"%d for %d" % (version, number),
        spec_record=b"spec %d" % number,
    )


def test_a_new_site_gets_the_current_version_by_a_record_for_the_new_registry() -> None:
    desk = Desk()
    asked = joined(desk, "gamma")
    assert (asked.version, asked.registry.version) == (0, 3)
    desk.turn(reissued(0, 3))
    assert desk.journal.run(RUN).version_record(0) == b"0 for 3"
    assert desk.journal.run(RUN).spec_record() == b"spec 3"
    assert [write.body for write in desk.writes if isinstance(write, writes.SendRaw)] == [b"0 for 3"]
    desk.start()
    assert desk.some(effects.Reissue) == []


def test_records_that_are_still_for_an_older_registry_are_issued_again_at_the_next_start() -> None:
    desk = Desk()
    joined(desk, "gamma")
    desk.start()
    assert desk.only(effects.Reissue).registry == desk.registry


def test_a_record_issued_for_a_registry_that_is_no_longer_in_force_is_issued_again() -> None:
    desk = Desk()
    joined(desk, "gamma")
    joined(desk, "delta")
    desk.turn(reissued(0, 4))
    desk.turn(reissued(0, 3))
    assert desk.journal.run(RUN).version_record(0) == b"0 for 4"
    assert desk.only(effects.Reissue).registry == desk.registry


def test_records_that_could_not_be_issued_are_issued_after_a_while() -> None:
    desk = Desk()
    joined(desk, "gamma")
    assert desk.turn(events.ReissueFailed(run=RUN)) == []
    due = desk.rules.deadline()
    assert due is not None
    assert desk.turn(seconds=due - desk.now) == [effects.Reissue(run=RUN, version=0, registry=desk.registry)]
    assert desk.rules.deadline() == HEAD_EVERY


def test_a_version_made_under_an_older_registry_is_issued_again() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate()
    plan = desk.only(effects.Merge).plan
    joined(desk, "gamma")
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.only(effects.Reissue) == effects.Reissue(run=RUN, version=1, registry=desk.registry)
    desk.turn(reissued(0, 3))
    assert desk.only(effects.Reissue) == effects.Reissue(run=RUN, version=1, registry=desk.registry)


def test_a_version_planned_before_the_specification_was_issued_again_is_issued_again_itself() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    joined(desk, "gamma")
    desk.validate()
    plan = desk.only(effects.Merge).plan
    desk.turn(reissued(0, 3))
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.only(effects.Reissue) == effects.Reissue(run=RUN, version=1, registry=desk.registry)


def refused(site: str = "alpha", raw: bytes = b"not an envelope") -> events.DeliveryRefused:
    return events.DeliveryRefused(delivery="letter", site=site, queue=f"in.{site}", reason="bad_frame", raw=raw)


def test_what_is_not_a_message_of_the_federation_becomes_a_dead_letter() -> None:
    desk = Desk()
    done = desk.turn(refused())
    [letter] = [write for write in desk.writes if isinstance(write, writes.SendRaw)]
    assert letter.exchange == topology.DEAD
    assert b"not an envelope" in letter.body
    assert done == [effects.Settle(delivery="letter"), effects.Publish(row=letter.row)]


def test_a_site_has_a_budget_of_dead_letters_and_another_site_its_own() -> None:
    desk = Desk()
    letters = 0
    for _ in range(400):
        desk.turn(refused())
        letters += len(desk.some(effects.Publish))
        assert [write.kind for write in desk.writes if isinstance(write, writes.Audit)] == ["refused"]
    assert letters == 256
    desk.turn(refused("beta"))
    assert desk.some(effects.Publish)
    desk.turn(refused(), seconds=3601.0)
    assert desk.some(effects.Publish)


def test_a_dead_letter_fits_into_a_message_however_long_the_original_was() -> None:
    desk = Desk()
    desk.turn(refused(raw=bytes(2 * limits.MESSAGE)))
    [letter] = [write for write in desk.writes if isinstance(write, writes.SendRaw)]
    assert len(letter.body) <= limits.MESSAGE


# ---- the outbox and the head


def test_a_confirmed_row_leaves_the_outbox_and_the_others_are_published_again_at_the_next_start() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate()
    desk.merge()
    rows = [publish.row for publish in desk.some(effects.Publish)]
    desk.turn(events.Published(row=rows[0]))
    desk.turn(events.Published(row=rows[0]))
    desk.start()
    assert [publish.row for publish in desk.some(effects.Publish)] == rows[1:]


def test_the_head_is_signed_again_every_six_hours_with_a_higher_number() -> None:
    desk = Desk()
    first = desk.rules.deadline()
    assert first == HEAD_EVERY
    assert desk.turn(seconds=HEAD_EVERY - 1) == []
    desk.turn(seconds=1)
    number = desk.only(effects.PutHead).number
    desk.turn(seconds=HEAD_EVERY)
    assert desk.only(effects.PutHead).number == number + 1
    desk.start()
    assert desk.only(effects.PutHead).number == number + 2


def test_the_head_at_the_start_is_announced_so_that_sites_need_not_wait() -> None:
    desk = Desk()
    desk.start()
    assert desk.some(effects.AnnounceHead) == [effects.AnnounceHead(number=desk.only(effects.PutHead).number)]
