"""Several runs under one set of rules: each with its own updates and versions, all with the same members and head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from aggregator.domain import effects, events, writes
from aggregator.domain.state import RunPlace, RunRules, UpdateNotice, UpdateState
from aggregator.journal.tables import updates
from aggregator.strategy.stopping import Stopping
from aggregator.strategy.strategies import strategy
from protocol.messages import Evaluation, Outcome, RunState
from tests.support.aggregator_rules import RULES_OF_RUN, RUN, Desk, new_run

OTHER = "other"


def rules_of(name: str, **changes: Any) -> RunRules:
    return replace(RULES_OF_RUN, run=name, strategy=strategy("fedbuff", buffer=1), **changes)


def brought(desk: Desk, name: str = OTHER, counter: int = 1, **changes: Any) -> None:
    """An operator's run is taken over and started."""
    new = new_run(rules_of(name, **changes), desk.registry.version, RunState.CREATED)
    order = events.CommandArrived(
        delivery="d", operator="olga", counter=counter, command="run.create", arguments={"run": name}, id=b"c" * 16
    )
    desk.turn(order)
    desk.turn(events.Prepared(command=order, made=new))
    desk.turn(named("run.start", name, counter + 1))


def named(command: str, run: str, counter: int) -> events.CommandArrived:
    return events.CommandArrived(
        delivery="d", operator="olga", counter=counter, command=command, arguments={"run": run}, id=b"c" * 16
    )


def admitted(desk: Desk, run: str, site: str = "alpha") -> UpdateNotice:
    notice = desk.notice(site, run=run)
    desk.arrive(notice)
    desk.turn(events.Admitted(id=notice.id, norm=1.0))
    return notice


def test_runs_merge_their_own_updates_and_one_head_tells_all_of_them() -> None:
    desk = Desk()
    brought(desk)
    first = admitted(desk, OTHER)
    plan = desk.only(effects.Merge).plan
    assert (plan.run, [member.id for member in plan.members]) == (OTHER, [first.id])
    second = desk.notice()
    desk.arrive(second)
    assert desk.only(effects.Admit) == effects.Admit(run=RUN, id=second.id)
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.only(effects.PutHead).runs == (
        RunPlace(run=RUN, state=RunState.RUNNING, reason="ok", version=0),
        RunPlace(run=OTHER, state=RunState.RUNNING, reason="start-by-olga", version=1),
    )
    assert [write.plan.run for write in desk.writes if isinstance(write, writes.CommitVersion)] == [OTHER]


def test_the_end_of_one_run_is_not_the_end_of_the_other() -> None:
    desk = Desk()
    brought(desk)
    kept = desk.validate("alpha")
    lost = desk.notice("beta", run=OTHER)
    desk.arrive(lost)
    desk.turn(named("run.abort", OTHER, 9))
    assert desk.told() == [(lost.id, Outcome.RUN_ABORTED, "abort-by-olga")]
    assert desk.state(kept)[0] == UpdateState.VALIDATED
    assert desk.only(effects.Ended).run == OTHER


def test_everything_comes_back_after_a_restart() -> None:
    desk = Desk()
    brought(desk)
    waiting = desk.validate("alpha")
    there = desk.notice("beta", run=OTHER)
    desk.arrive(there)
    desk.run_rules[OTHER] = rules_of(OTHER)
    desk.start()
    assert {name: run.state for name, run in desk.rules.runs.items()} == {
        RUN: RunState.RUNNING,
        OTHER: RunState.RUNNING,
    }
    assert [(admit.run, admit.id) for admit in desk.some(effects.Admit)] == [(OTHER, there.id)]
    assert desk.rules.runs[RUN].holds(waiting.id)


def test_a_site_that_is_revoked_is_out_of_all_runs() -> None:
    desk = Desk()
    brought(desk)
    ours, theirs = desk.validate("alpha"), desk.notice("alpha", run=OTHER)
    desk.arrive(theirs)
    order = events.CommandArrived(
        delivery="d", operator="olga", counter=9, command="site.revoke", arguments={"site": "alpha"}
    )
    desk.turn(order)
    assert sorted(desk.told()) == sorted(
        [(ours.id, Outcome.REJECTED, "revoked"), (theirs.id, Outcome.REJECTED, "revoked")]
    )
    assert {reissue.run for reissue in desk.some(effects.Reissue)} == {RUN, OTHER}


def test_a_run_that_was_deleted_while_its_merge_was_under_way_stays_gone() -> None:
    desk = Desk()
    brought(desk)
    admitted(desk, OTHER)
    plan = desk.only(effects.Merge).plan
    desk.turn(named("run.stop", OTHER, 8))
    desk.turn(named("run.delete", OTHER, 9))
    assert desk.turn(events.Merged(plan=plan, product=desk.product(plan))) == []
    assert desk.turn(events.Reissued(run=OTHER, version=0, registry=2, record=b"", spec_record=b"")) == []
    assert desk.turn(events.ReissueFailed(run=OTHER)) == []
    assert desk.journal.names() == (RUN,)
    assert desk.journal.broken_link() is None


def test_two_who_bring_a_run_of_one_name_at_once_get_one() -> None:
    desk = Desk()
    orders = [
        replace(named("run.create", OTHER, 1), operator=operator, signer=operator.encode())
        for operator in ("olga", "otto")
    ]
    desk.turn(*orders)
    assert len(desk.some(effects.Prepare)) == 2
    new = new_run(rules_of(OTHER), desk.registry.version, RunState.CREATED)
    desk.turn(*(events.Prepared(command=order, made=new) for order in orders))
    assert [told.reason for told in desk.some(effects.AnswerCommand)] == ["ok", "run_exists"]
    assert [type(write) for write in desk.writes].count(writes.CreateRun) == 1


def test_a_run_that_was_made_for_an_older_registry_is_wrapped_again() -> None:
    desk = Desk()
    new = new_run(rules_of(OTHER), desk.registry.version - 1, RunState.CREATED)
    order = named("run.create", OTHER, 1)
    desk.turn(order)
    desk.turn(events.Prepared(command=order, made=new))
    assert desk.only(effects.Reissue).run == OTHER


def test_a_head_tells_those_that_go_on_and_the_newest_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.rules.head._MOST", 3)
    desk = Desk()
    for index in range(4):
        brought(desk, f"run-{index}", 10 * index + 1)
        desk.turn(named("run.stop", f"run-{index}", 10 * index + 5))
    told = [place.run for place in desk.only(effects.PutHead).runs]
    assert told == [RUN, "run-2", "run-3"]


def test_an_operator_has_one_order_at_a_time_that_takes_time() -> None:
    desk = Desk()
    first = named("run.create", OTHER, 1)
    desk.turn(first)
    desk.turn(named("run.create", "third", 2))
    assert desk.only(effects.AnswerCommand).reason == "busy"
    desk.turn(events.Prepared(command=first, reason="not_possible"))
    desk.turn(named("run.create", "third", 3))
    assert desk.some(effects.Prepare)


def test_no_more_runs_go_on_than_a_head_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.rules.commands.MOST_GOING_ON", 2)
    desk = Desk()
    brought(desk)
    brought(desk, "third", 11)
    assert desk.only(effects.AnswerCommand).reason == "too_many_runs"
    assert desk.rules.runs["third"].state == RunState.CREATED


def test_no_operator_brings_runs_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.rules.commands.MOST_OF_ONE", 2)
    desk = Desk()
    for index in range(3):
        order = named("run.create", f"run-{index}", 2 * index + 1)
        desk.turn(order)
        if desk.some(effects.Prepare):
            new = replace(new_run(rules_of(f"run-{index}"), 2, RunState.CREATED), operator="olga")
            desk.turn(events.Prepared(command=order, made=new))
    assert desk.only(effects.AnswerCommand).reason == "too_many_runs"
    assert list(desk.rules.runs) == [RUN, "run-0", "run-1"]


def test_a_run_that_nobody_started_cannot_be_measured_to_its_end() -> None:
    desk = Desk()
    stopping = Stopping(metric="accuracy", target=0.5)
    new = new_run(rules_of(OTHER, stopping=stopping), desk.registry.version, RunState.CREATED)
    order = named("run.create", OTHER, 1)
    desk.turn(order)
    desk.turn(events.Prepared(command=order, made=new))
    for site in ("alpha", "beta"):
        said = Evaluation(examples=10, metrics={"accuracy": 1.0})
        desk.turn(events.EvaluationArrived(delivery="e", site=site, run=OTHER, version=0, evaluation=said))
    desk.turn(named("run.start", OTHER, 2))
    assert desk.only(effects.AnswerCommand).reason == "ok"


def test_measures_beyond_all_reason_break_no_sum() -> None:
    desk = Desk(stopping=Stopping(metric="loss", direction="min", target=0.1))
    for site, value in (("alpha", 1.7e308), ("beta", -1.7e308)):
        said = Evaluation(examples=2**40, metrics={"loss": value})
        desk.turn(events.EvaluationArrived(delivery="e", site=site, run=RUN, version=0, evaluation=said))
    desk.start()
    assert desk.state_of_run.state == RunState.RUNNING


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("model.rollback", {}),
        ("model.promote", {"channel": "production"}),
        ("model.promote", {"name": "m"}),
        ("model.card", {}),
        ("run.create", {}),
        ("run.create", {"run": "-"}),
        ("run.create", {"run": ".."}),
        ("run.clone", {}),
        ("model.publish", {"name": 5}),
    ],
)
def test_an_order_without_what_it_needs_is_refused(command: str, arguments: dict[str, Any]) -> None:
    desk = Desk()
    desk.turn(
        events.CommandArrived(
            delivery="d", operator="olga", counter=1, command=command, arguments=arguments, id=b"c" * 16
        )
    )
    assert desk.only(effects.AnswerCommand).reason == "bad_argument"


def test_an_order_that_finds_a_defect_is_answered_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(desk.rules, "_promote", lambda event: {}["missing"])
    monkeypatch.setattr("aggregator.rules.commands.about_models", lambda event, catalogue: "ok")
    order = named("model.promote", OTHER, 5)
    done = desk.turn(order)
    assert desk.only(effects.AnswerCommand).reason == "defect"
    assert effects.Settle(delivery="d") in done
    desk.turn(order)
    assert desk.only(effects.AnswerCommand).reason == "replayed"
    assert desk.journal.broken_link() is None


def test_of_a_refused_update_only_the_keys_are_kept() -> None:
    desk = Desk()
    notice = desk.notice(run="nowhere", absent=("weight",), envelope=b"large")
    desk.arrive(notice)
    with desk.engine.connect() as db:
        row = db.execute(select(updates).where(updates.c.id == notice.id)).one()
    assert (row.envelope, row.state) == (b"", "rejected")
    desk.arrive(notice)
    assert [(outcome, reason) for _, outcome, reason in desk.told()] == [(Outcome.REJECTED, "wrong_run")]
