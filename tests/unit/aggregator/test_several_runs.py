"""Several runs under one set of rules: each with its own updates and versions, all with the same members and head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aggregator import events, order_events
from aggregator.events import UpdateState
from aggregator.snapshot import RunRules
from aggregator.strategies import strategy
from protocol.messages import Outcome, RunState
from tests.unit.aggregator.desk import RULES_OF_RUN, RUN, Desk, new_run

OTHER = "other"


def rules_of(name: str, **changes: Any) -> RunRules:
    return replace(RULES_OF_RUN, run=name, strategy=strategy("fedbuff", buffer=1), **changes)


def brought(desk: Desk, name: str = OTHER, counter: int = 1, **changes: Any) -> None:
    """An operator's run is taken over and started."""
    new = new_run(rules_of(name, **changes), desk.registry.version, RunState.CREATED)
    order = order_events.CommandArrived(
        delivery="d", operator="olga", counter=counter, command="run.create", arguments={"run": name}, id=b"c" * 16
    )
    desk.turn(order)
    desk.turn(order_events.Prepared(command=order, made=new))
    desk.turn(named("run.start", name, counter + 1))


def named(command: str, run: str, counter: int) -> order_events.CommandArrived:
    return order_events.CommandArrived(
        delivery="d", operator="olga", counter=counter, command=command, arguments={"run": run}, id=b"c" * 16
    )


def admitted(desk: Desk, run: str, site: str = "alpha") -> events.UpdateNotice:
    notice = desk.notice(site, run=run)
    desk.arrive(notice)
    desk.turn(events.Admitted(id=notice.id, norm=1.0))
    return notice


def test_runs_merge_their_own_updates_and_one_head_tells_all_of_them() -> None:
    desk = Desk()
    brought(desk)
    first = admitted(desk, OTHER)
    plan = desk.only(events.Merge).plan
    assert (plan.run, [member.id for member in plan.members]) == (OTHER, [first.id])
    second = desk.notice()
    desk.arrive(second)
    assert desk.only(events.Admit) == events.Admit(run=RUN, id=second.id)
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.only(events.PutHead).runs == (
        events.RunPlace(run=RUN, state=RunState.RUNNING, reason="ok", version=0),
        events.RunPlace(run=OTHER, state=RunState.RUNNING, reason="start-by-olga", version=1),
    )
    assert [write.plan.run for write in desk.writes if isinstance(write, events.CommitVersion)] == [OTHER]


def test_the_end_of_one_run_is_not_the_end_of_the_other() -> None:
    desk = Desk()
    brought(desk)
    kept = desk.validate("alpha")
    lost = desk.notice("beta", run=OTHER)
    desk.arrive(lost)
    desk.turn(named("run.abort", OTHER, 9))
    assert desk.told() == [(lost.id, Outcome.RUN_ABORTED, "abort-by-olga")]
    assert desk.state(kept)[0] == UpdateState.VALIDATED
    assert desk.only(events.Ended).run == OTHER


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
    assert [(admit.run, admit.id) for admit in desk.some(events.Admit)] == [(OTHER, there.id)]
    assert desk.rules.runs[RUN].holds(waiting.id)


def test_a_site_that_is_revoked_is_out_of_all_runs() -> None:
    desk = Desk()
    brought(desk)
    ours, theirs = desk.validate("alpha"), desk.notice("alpha", run=OTHER)
    desk.arrive(theirs)
    order = order_events.CommandArrived(
        delivery="d", operator="olga", counter=9, command="site.revoke", arguments={"site": "alpha"}
    )
    desk.turn(order)
    assert sorted(desk.told()) == sorted(
        [(ours.id, Outcome.REJECTED, "revoked"), (theirs.id, Outcome.REJECTED, "revoked")]
    )
    assert {reissue.run for reissue in desk.some(events.Reissue)} == {RUN, OTHER}


def test_a_run_that_was_deleted_while_its_merge_was_under_way_stays_gone() -> None:
    desk = Desk()
    brought(desk)
    admitted(desk, OTHER)
    plan = desk.only(events.Merge).plan
    desk.turn(named("run.stop", OTHER, 8))
    desk.turn(named("run.delete", OTHER, 9))
    assert desk.turn(events.Merged(plan=plan, product=desk.product(plan))) == []
    assert desk.turn(events.Reissued(run=OTHER, version=0, registry=2, record=b"", spec_record=b"")) == []
    assert desk.turn(events.ReissueFailed(run=OTHER)) == []
    assert desk.journal.names() == (RUN,)
    assert desk.journal.broken_link() is None


def test_two_who_bring_a_run_of_one_name_at_once_get_one() -> None:
    desk = Desk()
    orders = [named("run.create", OTHER, counter) for counter in (1, 2)]
    desk.turn(*orders)
    assert len(desk.some(order_events.Prepare)) == 2
    new = new_run(rules_of(OTHER), desk.registry.version, RunState.CREATED)
    desk.turn(*(order_events.Prepared(command=order, made=new) for order in orders))
    assert [told.reason for told in desk.some(order_events.Tell)] == ["ok", "run_exists"]
    assert [type(write) for write in desk.writes].count(order_events.CreateRun) == 1


def test_a_run_that_was_made_for_an_older_registry_is_wrapped_again() -> None:
    desk = Desk()
    new = new_run(rules_of(OTHER), desk.registry.version - 1, RunState.CREATED)
    order = named("run.create", OTHER, 1)
    desk.turn(order)
    desk.turn(order_events.Prepared(command=order, made=new))
    assert desk.only(events.Reissue).run == OTHER


def test_a_head_tells_those_that_go_on_and_the_newest_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.heading._MOST", 3)
    desk = Desk()
    for index in range(4):
        brought(desk, f"run-{index}", 10 * index + 1)
        desk.turn(named("run.stop", f"run-{index}", 10 * index + 5))
    told = [place.run for place in desk.only(events.PutHead).runs]
    assert told == [RUN, "run-2", "run-3"]
