"""Orders as the rules take them: once each, noted in the ledger, answered; revoked and quarantined sites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aggregator.domain import effects, events, writes
from aggregator.domain.state import UpdateState
from aggregator.rules.commands import TEXTS
from aggregator.strategy.strategies import strategy
from protocol.keys import Identity, Role
from protocol.messages import Request
from tests.support.aggregator_rules import RUN, Desk


def order(command: str, counter: int = 1, **changes: Any) -> events.CommandArrived:
    values = {"delivery": "command", "operator": "olga", "counter": counter, "command": command, "id": b"c" * 16}
    return events.CommandArrived(**{**values, **changes})


def noted(desk: Desk) -> list[dict[str, Any]]:
    return [dict(w.entry) for w in desk.writes if isinstance(w, writes.Audit) and w.kind == "command"]


def answer(desk: Desk) -> str:
    return desk.only(effects.AnswerCommand).reason


def test_an_order_to_the_run_is_carried_out_noted_and_answered() -> None:
    desk = Desk()
    desk.turn(order("run.pause"))
    assert answer(desk) == "ok"
    assert noted(desk) == [{"operator": "olga", "command": "run.pause", "taken": True, "reason": "ok", "run": RUN}]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (order("run.resume"), "run_running"),
        (order("run.pause", arguments={"run": "another"}), "unknown_run"),
        (order("fly"), "unknown_command"),
        (order("site.revoke", arguments={"site": "nowhere"}), "unknown_site"),
        (order("site.revoke"), "unknown_site"),
        (order("site.readmit", arguments={"site": "alpha"}), "not_quarantined"),
        (order("site.drain"), "no_site"),
        (order("run.abort", targets=("alpha",)), "bad_argument"),
        (order("site.drain", targets=("alpha", "nowhere")), "unknown_site"),
        (order("dead.purge", arguments={"id": "all"}), "bad_argument"),
        (order("run.pause", objection="not_authorized", text="olga may not"), "not_authorized"),
    ],
)
def test_a_refused_order_changes_nothing_and_says_why(sent: events.CommandArrived, why: str) -> None:
    desk = Desk()
    state = desk.state_of_run.state
    desk.turn(sent)
    assert (answer(desk), desk.state_of_run.state) == (why, state)
    assert noted(desk)[0]["reason"] == why
    assert desk.only(effects.AnswerCommand).text == (sent.text if why == sent.objection else TEXTS.get(why, ""))


def test_a_counter_counts_once_also_after_a_refusal_and_a_restart() -> None:
    desk = Desk()
    desk.turn(order("fly", 7))
    desk.start()
    desk.turn(order("run.pause", 7))
    assert (answer(desk), desk.only(effects.AnswerCommand).counter) == ("replayed", 7)
    assert noted(desk)[0]["reason"] == "replayed"
    desk.turn(order("run.pause", 8))
    assert answer(desk) == "ok"


def test_an_order_for_sites_is_handed_to_each_as_it_was_signed() -> None:
    desk = Desk()
    desk.turn(order("site.drain", targets=("alpha", "beta"), raw=b"signed"))
    sent = [(w.key, w.body) for w in desk.writes if isinstance(w, writes.SendRaw)]
    assert sent == [("alpha", b"signed"), ("beta", b"signed")]
    assert set(desk.only(effects.AnswerCommand).seen) == {"alpha", "beta"}


REPLY = events.ReplyArrived(
    delivery="reply", site="alpha", command=b"c" * 16, ok=True, reason="ok", operators=("olga",), raw=b"reply"
)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_sites_first_reply_goes_to_the_operators_it_is_sealed_for_and_no_other_does(restarted: bool) -> None:
    desk = Desk()
    desk.turn(order("site.drain", targets=("alpha",), raw=b"signed"))
    if restarted:
        desk.start()
    desk.turn(REPLY)
    assert [(w.key, w.body) for w in desk.writes if isinstance(w, writes.SendRaw)] == [("olga", b"reply")]
    assert [w.kind for w in desk.writes if isinstance(w, writes.Audit)] == ["reply"]
    desk.turn(REPLY)
    assert not [w for w in desk.writes if isinstance(w, writes.SendRaw)]


def test_a_flood_of_replies_that_nobody_asked_for_fills_neither_outbox_nor_ledger() -> None:
    desk = Desk()
    noted = 0
    for number in range(600):
        desk.turn(replace(REPLY, command=number.to_bytes(16, "big")))
        assert not [w for w in desk.writes if isinstance(w, writes.SendRaw)]
        noted += sum(isinstance(w, writes.Audit) for w in desk.writes)
    assert noted == 256


def test_a_stolen_keys_counter_does_not_lock_its_successor_out() -> None:
    desk = Desk()
    desk.turn(order("status", 2**62, signer=b"stolen key"))
    desk.turn(order("run.pause", 1, signer=b"new key"))
    assert answer(desk) == "ok"


def test_a_number_from_the_future_is_refused_and_not_counted() -> None:
    desk = Desk()
    desk.turn(order("run.pause", 2**62, objection="counter_ahead", text="set the clock"))
    assert (answer(desk), desk.only(effects.AnswerCommand).text) == ("counter_ahead", "set the clock")
    desk.turn(order("run.pause", 1))
    assert answer(desk) == "ok"


def test_a_question_is_looked_up_and_a_request_granted_after_the_commit() -> None:
    desk = Desk()
    desk.turn(order("status"))
    assert desk.only(effects.LookUp).command.command == "status"
    assert desk.some(effects.AnswerCommand) == []
    asked = events.RequestArrived(delivery="hello", site="alpha", id=b"r" * 16, request=Request(puts=(), gets=()))
    assert desk.turn(asked) == [effects.Settle(delivery="hello"), effects.GrantUrls(request=asked)]


# ---- sites


def revoke(desk: Desk, counter: int = 1) -> None:
    desk.turn(order("site.revoke", counter, arguments={"site": "alpha"}))


def test_a_revoked_site_is_cut_off_at_once_and_its_waiting_updates_are_refused() -> None:
    desk = Desk()
    waiting = desk.validate("alpha")
    revoke(desk)
    assert desk.state(waiting) == (UpdateState.REJECTED, "revoked")
    assert desk.only(effects.CutOff).site == "alpha"
    used = desk.only(effects.UseRegistry).registry
    assert [member.name for member in used.members(Role.SITE)] == ["beta"]
    assert used.version == desk.registry.version
    assert [member.name for member in desk.only(effects.Reissue).registry.members(Role.SITE)] == ["beta"]


def test_a_revoked_site_stays_revoked_after_a_restart_and_is_cut_off_again() -> None:
    desk = Desk()
    revoke(desk)
    desk.start()
    assert desk.only(effects.CutOff).site == "alpha"
    assert [member.name for member in desk.rules.registry.members(Role.SITE)] == ["beta"]


def test_a_version_that_was_being_merged_for_a_revoked_site_is_not_committed() -> None:
    desk = Desk(chosen=strategy("fedbuff", buffer=1))
    desk.validate("beta")
    plan = desk.only(effects.Merge).plan
    revoke(desk)
    again = desk.only(effects.Merge).plan
    desk.turn(events.Merged(plan=plan, product=desk.product(plan)))
    assert desk.state_of_run.version == 0
    desk.turn(events.Merged(plan=again, product=desk.product(again)))
    assert desk.state_of_run.version == 1


def test_the_roots_signature_follows_and_new_keys_bring_the_name_back() -> None:
    desk = Desk()
    revoke(desk)
    same = replace(desk.registry, version=desk.registry.version + 1)
    desk.turn(events.RegistryChanged(registry=same, record=b"somebody else joined"))
    assert [member.name for member in desk.rules.registry.members(Role.SITE)] == ["beta"]
    signed = same.revoke("alpha")
    desk.turn(events.RegistryChanged(registry=signed, record=b"the root says so too"))
    assert desk.rules.commands.held("alpha") == "ok"
    assert [member.name for member in desk.rules.registry.members(Role.SITE)] == ["beta"]
    back = signed.with_entry(Identity.generate("alpha", Role.SITE).public)
    desk.turn(events.RegistryChanged(registry=back, record=b"new keys"))
    assert sorted(member.name for member in desk.rules.registry.members(Role.SITE)) == ["alpha", "beta"]
    desk.registry = back
    desk.start()
    assert sorted(member.name for member in desk.rules.registry.members(Role.SITE)) == ["alpha", "beta"]
    assert desk.some(effects.CutOff) == []


def test_a_quarantined_sites_updates_are_refused_until_it_is_readmitted() -> None:
    desk = Desk()
    waiting = desk.validate("alpha")
    desk.turn(order("site.quarantine", 1, arguments={"site": "alpha"}))
    assert desk.state(waiting) == (UpdateState.REJECTED, "quarantined")
    desk.start()
    late = desk.notice("alpha")
    desk.arrive(late)
    assert desk.state(late) == (UpdateState.REJECTED, "quarantined")
    desk.turn(order("site.readmit", 2, arguments={"site": "alpha"}))
    assert desk.state(desk.validate("alpha"))[0] == UpdateState.VALIDATED


def test_what_was_refused_is_kept_for_operators_and_can_be_forgotten() -> None:
    desk = Desk()
    refused = events.DeliveryRefused(
        delivery="d", site="alpha", queue="in.alpha", reason="bad_signature", raw=b"forged"
    )
    desk.turn(refused)
    [kept] = [w for w in desk.writes if isinstance(w, writes.KeepLetter)]
    assert (kept.queue, kept.reason, kept.raw) == ("in.alpha", "bad_signature", b"forged")
    desk.turn(order("dead.purge"))
    assert writes.ForgetLetters(number=None) in desk.writes
