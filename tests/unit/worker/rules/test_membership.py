"""A revoked site stops, says so, keeps what it has, and goes on once it is a member again."""

from __future__ import annotations

import itertools
import random
from typing import Any

from protocol.keys import Identity, Role
from protocol.messages import Outcome, RunState
from protocol.registry import Registry
from tests.support.worker_rules import SEALED, head, only, receipt, sent, some, trained, turn, version
from worker.domain import effects, events, writes
from worker.domain.effects import Judged
from worker.domain.events import HubAnswered, SiteLeftOut
from worker.domain.state import Snapshot
from worker.rules.membership import Membership
from worker.rules.worker import WorkerRules, WorkerTerms

ME = Identity.generate("alpha", Role.SITE).public
OTHER = Identity.generate("beta", Role.SITE).public
MEMBER = Registry(version=0, entries=()).with_entry(ME).with_entry(OTHER)


def rules(registry: Registry = MEMBER) -> WorkerRules:
    ids = itertools.count(1)
    return WorkerRules(
        Snapshot(registry=registry.version, registry_digest=b"r" * 32),
        WorkerTerms(heartbeat=20.0),
        site="alpha",
        new_id=lambda: next(ids).to_bytes(16, "big"),
        dice=random.Random(1),
        membership=Membership(ME, registry),
    )


def news(registry: Registry, digest: bytes = b"n" * 32) -> events.RegistrySeen:
    return events.RegistrySeen(registry=registry, digest=digest, record=b"signed")


def judged(effects: tuple[Any, ...]) -> list[str]:
    return [each.why for each in some(Judged, effects)]


def test_a_registry_that_revokes_the_site_ends_training_and_sending_at_once() -> None:
    machine = rules()
    update = trained(machine, version(1, quota=2))
    assert some(effects.Upload, turn(machine, events.SendingFailed(row=update.row, lost=False)).effects) == []
    step = turn(machine, news(MEMBER.revoke("alpha")))
    assert judged(step.effects) == ["registry"]
    assert some(effects.AbortTraining, step.effects)
    later = turn(machine, version(2), head(1, ("r", RunState.RUNNING, 2)), now=100.0)
    assert not some(effects.Train, later.effects)
    assert not some(effects.Upload, later.effects)
    assert judged(later.effects) == []
    deadline = machine.deadline()
    assert deadline is not None
    assert deadline > 100.0  # or the loop would turn for nothing
    assert not any(report.publish for report in some(effects.ReportStatus, later.effects))


def test_a_site_that_is_listed_anew_sends_what_it_kept_and_trains_on() -> None:
    machine = rules()
    update = trained(machine, version(1))
    gone = MEMBER.revoke("alpha")
    turn(machine, news(gone), events.SendingFailed(row=update.row, lost=False), version(2))
    again = Registry(version=gone.version, entries=MEMBER.entries[1:]).with_entry(ME)
    step = turn(machine, news(again, b"a" * 32), now=50.0)
    assert judged(step.effects) == [""]
    assert only(effects.Upload, step.effects).row.id == update.id
    assert only(effects.Train, step.effects).version == 2


def test_a_worker_whose_registry_revokes_it_says_so_when_it_starts() -> None:
    assert judged(turn(rules(MEMBER.revoke("alpha"))).effects) == ["registry"]
    assert judged(turn(rules()).effects) == []


def test_losing_a_version_that_it_held_shows_what_an_operator_has_ordered() -> None:
    machine = rules()
    turn(machine, version(3))
    assert judged(turn(machine, SiteLeftOut(run="r", version=3)).effects) == ["record"]
    assert judged(turn(machine, version(4)).effects) == [""]
    assert judged(turn(machine, SiteLeftOut(run="r", version=5)).effects) == ["record"]
    assert judged(turn(machine, HubAnswered()).effects) == [""]


def test_a_newcomer_that_is_left_out_waits_and_looks_again() -> None:
    machine = rules()
    turn(machine)
    step = turn(machine, SiteLeftOut(run="r", version=3), now=1.0)
    assert judged(step.effects) == []
    deadline = machine.deadline()
    assert deadline is not None
    assert deadline <= 3.0
    again = rules(Registry(version=1, entries=MEMBER.entries[1:]).with_entry(ME))
    turn(again, version(3))
    assert judged(turn(again, SiteLeftOut(run="r", version=4)).effects) == []


def test_a_receipt_says_it_and_the_hubs_answer_takes_it_back() -> None:
    machine = rules()
    update = trained(machine, version(1))
    sent(machine, update)
    said = receipt(update, Outcome.REJECTED)
    revoked = events.ReceiptSeen(
        delivery="r", receipt=_because(said.receipt, "revoked"), version=0, raw=b"signed receipt"
    )
    step = turn(machine, revoked)
    assert judged(step.effects) == ["receipt"]
    assert only(writes.SettleUpdate, step.writes).reason == "revoked"
    assert judged(turn(machine, HubAnswered(), now=2.0).effects) == [""]


def _because(said: Any, reason: str) -> Any:
    from dataclasses import replace

    return replace(said, reason=reason)


def test_what_a_training_ends_with_meanwhile_is_kept() -> None:
    machine = rules()
    training = only(effects.Train, turn(machine, version(1)).effects)
    turn(machine, news(MEMBER.revoke("alpha")))
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED))
    assert some(writes.AddUpdate, step.writes)
    assert not some(effects.Upload, step.effects)
