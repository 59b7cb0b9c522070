"""What operators deployed, left and withdrew: whose code trains which run, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest

from broker.runtime.actor import Step
from protocol.messages import RunState
from tests.support.worker_rules import SEALED, head, only, rules, some, turn, version
from worker.domain import effects, events, writes
from worker.domain.effects import ForgetCode, ForgetOwn, SendReply
from worker.domain.events import CommandSeen, Drain, RunAnswered, RunCommanded
from worker.domain.state import CODE_LOST, Deployment, RunRow, Snapshot
from worker.domain.writes import DropDeployment, NoteDeployment, NoteLeft
from worker.policy import SitePolicy
from worker.rules.worker import WorkerRules

CODE, OTHER = b"C" * 32, b"O" * 32
DEPLOYED = Deployment(code=CODE, operator="olga")
KNOWN = RunRow(run="r", version=1, digest=b"1" * 32, bundle=CODE)


def order(command: str, run: str = "r", code: bytes = b"") -> RunCommanded:
    seen = CommandSeen(
        delivery="d", operator="olga", signer=b"k" * 16, counter=1, id=b"i" * 16, command=f"run.{command}"
    )
    return RunCommanded(command=seen, run=run, code=code)


def answered(step: Step) -> tuple[str, str]:
    answer = only(SendReply, step.effects)
    return answer.reason, answer.text


def shown(step: Step) -> tuple[str, str, str, str]:
    report = some(effects.ReportStatus, step.effects)[-1]
    return report.state, report.run, report.code, report.case


def training(machine: WorkerRules, *given: Any, now: float = 0.0) -> effects.Train:
    return only(effects.Train, turn(machine, *given, now=now).effects)


# ---- whose code


def test_a_run_that_brings_code_waits_until_exactly_that_code_is_deployed_for_it() -> None:
    machine = rules()
    step = turn(machine, version(0, bundle=CODE))
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("waiting", "r", "not_deployed", "-")
    for wrong in (order("deploy", code=OTHER), order("deploy", "another", CODE)):
        step = turn(machine, wrong, now=5.0)
        assert answered(step)[0] == "ok"
        assert not some(effects.Train, step.effects)
    step = turn(machine, order("deploy", code=CODE), now=10.0)
    assert NoteDeployment(run="r", deployment=DEPLOYED) in step.writes
    assert only(SendReply, step.effects).values == (("code", CODE.hex()),)
    assert only(effects.Train, step.effects).bundle == CODE


def test_another_run_trains_while_one_waits_for_its_code() -> None:
    machine = rules()
    turn(machine, version(0, run="s", bundle=CODE))
    begun = training(machine, version(0, run="r"))
    assert (begun.run, begun.bundle) == ("r", b"")
    machine = rules()
    assert training(machine, version(0, run="r"), version(0, run="s", bundle=CODE)).run == "r"


@pytest.mark.parametrize("command", ["deploy", "withdraw", "leave"])
def test_a_command_about_one_run_leaves_the_training_of_another_alone(command: str) -> None:
    ended = RunRow(run="s", state=RunState.STOPPED, version=1, digest=b"2" * 32, bundle=CODE)
    machine = rules(Snapshot(runs=(KNOWN, ended), deployments={"r": DEPLOYED, "s": DEPLOYED}))
    assert training(machine).run == "r"
    step = turn(machine, order(command, "s", OTHER))
    assert answered(step)[0] == "ok"
    assert not some(effects.AbortTraining, step.effects)


def test_a_version_that_names_other_code_waits_again() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED}))
    begun = training(machine)
    step = turn(machine, version(2, bundle=OTHER), events.Trained(id=begun.id, sealed=SEALED), now=5.0)
    assert only(writes.AddUpdate, step.writes).row.base_version == 1
    assert not some(effects.Train, step.effects)
    assert training(machine, version(3, bundle=CODE), now=9.0).version == 3


def test_what_was_deployed_is_known_after_a_restart_and_deploying_it_again_writes_nothing() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED}))
    step = turn(machine, order("deploy", code=CODE))
    assert answered(step) == ("ok", "trains the run")
    assert not some(NoteDeployment, step.writes)
    assert some(effects.Train, step.effects)


def test_a_site_without_a_trainer_of_its_own_trains_deployed_code_only() -> None:
    machine = rules(own_trainer=False)
    step = turn(machine, version(0))
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("waiting", "r", "no_trainer", "-")
    reason, text = answered(turn(machine, order("deploy"), now=5.0))
    assert (reason, "worker.toml" in text) == ("no_trainer", True)
    assert training(machine, version(1, run="s", bundle=CODE), order("deploy", "s", CODE), now=9.0).run == "s"


def test_a_run_without_code_is_trained_by_the_sites_own_trainer_whether_or_not_it_was_deployed() -> None:
    machine = rules()
    step = turn(machine, order("deploy"))
    assert only(SendReply, step.effects).values == (("code", ""),)
    assert training(machine, version(0)).bundle == b""
    assert training(rules(), version(0)).bundle == b""


def test_other_code_for_a_run_replaces_what_was_deployed_and_ends_the_training_with_it() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED, "s": Deployment(code=OTHER, operator="o")}))
    begun = training(machine)
    step = turn(machine, order("deploy", code=OTHER))
    assert some(effects.AbortTraining, step.effects)
    assert only(ForgetCode, step.effects).code == CODE
    assert "not deployed here" in answered(step)[1]
    step = turn(machine, events.Trained(id=begun.id, sealed=SEALED))
    assert only(effects.DropSpool, step.effects).chunks == SEALED.chunks
    assert not some(writes.AddUpdate, step.writes)


def test_code_that_the_site_no_longer_holds_is_asked_for_again() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED}))
    begun = training(machine)
    step = turn(machine, events.TrainingFailed(id=begun.id, code=CODE_LOST, case="bcdfghj"), now=5.0)
    assert only(DropDeployment, step.writes).run == "r"
    assert shown(step) == ("waiting", "r", "not_deployed", "-")
    assert training(machine, order("deploy", code=CODE), now=1000.0).bundle == CODE


def test_a_run_whose_code_fails_lets_another_one_go_first() -> None:
    machine = rules(Snapshot(deployments={"r": DEPLOYED}))
    begun = training(machine, version(0, run="s", quota=9), version(0, run="r", bundle=CODE))
    assert begun.run == "r"
    turn(machine, events.TrainingFailed(id=begun.id, code="trainer", case="bcdfghj"))
    assert training(machine, now=400.0).run == "s"


# ---- leave and join


def test_a_run_that_is_left_is_dropped_and_trained_no_more_until_it_is_joined() -> None:
    machine = rules()
    begun = training(machine, version(0))
    step = turn(machine, order("leave"))
    assert NoteLeft(run="r", left=True) in step.writes
    assert some(effects.AbortTraining, step.effects)
    assert answered(step)[0] == "ok"
    step = turn(machine, events.Trained(id=begun.id, sealed=SEALED), version(1), now=5.0)
    assert not some(writes.AddUpdate, step.writes)
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("waiting", "r", "left", "-")
    step = turn(machine, order("join"), now=9.0)
    assert NoteLeft(run="r", left=False) in step.writes
    assert answered(step) == ("ok", "trains the run")
    assert only(effects.Train, step.effects).version == 1


def test_a_run_stays_left_after_a_restart_and_whatever_is_deployed() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), left=frozenset({"r"})))
    step = turn(machine, order("deploy", code=CODE), order("leave"))
    assert not some(effects.Train, step.effects)
    assert not some(NoteLeft, step.writes)
    assert "has left the run" in some(SendReply, step.effects)[0].text
    assert some(effects.Train, turn(machine, order("join")).effects)


def test_an_operators_join_does_not_override_a_persons_no() -> None:
    machine = rules(Snapshot(runs=(RunRow(run="r", version=1),), answers={"r": False}, left=frozenset({"r"})))
    step = turn(machine, order("join"))
    assert not some(effects.Train, step.effects)
    assert "refused the run" in answered(step)[1]
    assert some(effects.Train, turn(machine, RunAnswered(run="r", approved=True)).effects)


def test_a_persons_yes_does_not_override_an_operators_leave() -> None:
    machine = rules(Snapshot(runs=(RunRow(run="r", version=1),), left=frozenset({"r"})), SitePolicy(ask_first=True))
    assert not some(effects.Train, turn(machine, RunAnswered(run="r", approved=True)).effects)


def test_a_run_that_brings_code_is_asked_about_like_any_other() -> None:
    machine = rules(policy=SitePolicy(ask_first=True))
    step = turn(machine, version(0, bundle=CODE), order("deploy", code=CODE))
    assert not some(effects.Train, step.effects)
    assert shown(step) == ("waiting", "r", "-", "-")
    assert "says yes" in only(SendReply, step.effects).text
    assert training(machine, RunAnswered(run="r", approved=True)).bundle == CODE


@pytest.mark.parametrize("command", ["join", "leave"])
def test_a_run_that_nobody_has_heard_of_is_not_joined_or_left(command: str) -> None:
    step = turn(rules(), order(command))
    assert answered(step)[0] == "unknown_run"
    assert not some(NoteLeft, step.writes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "once a version of it is announced"),
        ([version(0), head(1, ("r", RunState.PAUSED, 0))], "when it goes on"),
        ([version(0), head(1, ("r", RunState.STOPPED, 0))], "has ended"),
        ([version(0, bundle=OTHER)], "not deployed here"),
        ([version(0), Drain()], "is drained"),
    ],
)
def test_a_join_is_answered_with_what_comes_next(given: list[Any], said: str) -> None:
    machine = rules(Snapshot(deployments={"r": DEPLOYED}, registry_digest=b"r" * 32))
    turn(machine, *given)
    assert said in answered(turn(machine, order("join")))[1]


def test_a_join_where_nothing_can_train_says_so() -> None:
    machine = rules(own_trainer=False)
    turn(machine, version(0))
    assert "no trainer of its own" in answered(turn(machine, order("join")))[1]


# ---- withdraw


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.PAUSED])
def test_a_run_that_goes_on_is_not_withdrawn_before_it_is_left(state: RunState) -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED}, registry_digest=b"r" * 32))
    turn(machine, head(1, ("r", state, 1)))
    step = turn(machine, order("withdraw"))
    assert answered(step)[0] == "run_goes_on"
    assert not some(DropDeployment, step.writes)
    # Orders that come together see what the one before has changed.
    step = turn(machine, order("leave"), order("withdraw"))
    assert [answer.reason for answer in some(SendReply, step.effects)] == ["ok", "ok"]
    assert only(DropDeployment, step.writes).run == "r"
    assert only(ForgetCode, step.effects).code == CODE
    assert only(ForgetOwn, step.effects).run == "r"


def test_a_withdrawn_run_stays_left_and_needs_its_code_again() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED}, left=frozenset({"r"})))
    turn(machine, order("withdraw"))
    step = turn(machine, order("join"))
    assert not some(effects.Train, step.effects)
    assert "not deployed here" in answered(step)[1]


def test_code_that_another_run_uses_stays_when_one_is_withdrawn() -> None:
    machine = rules(Snapshot(deployments={"r": DEPLOYED, "s": DEPLOYED}))
    assert not some(ForgetCode, turn(machine, order("withdraw", "r")).effects)
    assert only(ForgetCode, turn(machine, order("withdraw", "s")).effects).code == CODE


def test_withdrawing_what_is_not_here_is_no_harm() -> None:
    step = turn(rules(), order("withdraw"))
    assert answered(step)[0] == "ok"
    assert not step.writes


def test_updates_that_were_journalled_still_go_out_after_a_withdrawal() -> None:
    machine = rules(Snapshot(runs=(KNOWN,), deployments={"r": DEPLOYED}))
    begun = training(machine)
    update = only(writes.AddUpdate, turn(machine, events.Trained(id=begun.id, sealed=SEALED)).writes).row
    step = turn(machine, order("leave"), order("withdraw"), events.Uploaded(row=update.row))
    assert update.row in [effect.row for effect in some(effects.Publish, step.effects)]
    assert not some(effects.DropSpool, step.effects)
