"""Operators at a running aggregator: orders signed by a console, answered by the hub and by sites, over real bytes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.domain.writes import KeepLetter
from aggregator.operators.admin_access import AdminAccess
from broker.transport.memory import MemoryTransport
from fledge.operator.console import Answer, Console
from protocol import topology
from protocol.envelope import seal, unlock, verify
from protocol.errors import TransportError
from protocol.keys import Identity, Role
from protocol.messages import Command, Event, Grant, Kind, Outcome, Request, RunState
from tests.support.bodies import typed_body
from tests.support.federation import FEDERATION, RUN, Site
from tests.support.running_aggregator import ONE, Hub, one


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as hub:
        hub.start()
        yield hub


def sign_of_life(hub: Hub, site: str, event: Event | None = None) -> None:
    event = event or Event(state="training", progress=0.5, metrics={}, software="test")
    before = hub.happened.count(event.state)
    raw = seal(
        hub.federation.members[site],
        Kind.EVENT,
        event,
        [hub.federation.aggregator.public],
        federation=FEDERATION,
        message_id=os.urandom(16),
        run="test-run",
    )
    hub.transport.publish(topology.event_exchange(site), "", raw).result(10)
    hub.wait(lambda: hub.happened.count(event.state) > before)


def test_what_a_sites_doctor_found_is_shown_until_it_looks_again_and_hides_no_worker(hub: Hub) -> None:
    metrics = {"doctor.broker.tcp": 1.0, "doctor.broker.queues": 0.0, "doctor.at": 1_800_000_000.0}
    found = Event(state="examined", progress=0.0, metrics=metrics, software="test", code="broker.queues:missing")

    def shown() -> Mapping[str, Any]:
        return one(hub.console().ask("site.show", {"site": "site-0"})).values

    sign_of_life(hub, "site-0", found)
    assert shown()["doing"] == "examined"
    sign_of_life(hub, "site-0")
    told = shown()
    assert (told["doing"], told["doctor"], told["doctor_bad"]) == ("training", "broker.queues:missing", "broker.queues")
    assert told["doctor_at"] == "2027-01-15T08:00+00:00"
    sign_of_life(hub, "site-0", replace(found, metrics={"doctor.broker.queues": 1.0}, code="-"))
    assert (shown()["doing"], shown()["doctor"]) == ("training", "ok")


def test_status_shows_the_run_and_every_site(hub: Hub) -> None:
    sign_of_life(hub, "site-1")
    said = one(hub.console().ask("status", {}))
    assert (said.ok, said.sender) == (True, "aggregator")
    assert (said.values["run"], said.values["state"], said.values["version"]) == ("test-run", "running", 0)
    assert (said.values["registry"], said.values["cipher"]) == (hub.federation.registry.version, "xchacha20")
    assert said.values["site"] == ("site-0", "site-1", "site-2")
    assert said.values["doing"] == ("never seen", "training", "never seen")
    assert said.values["seen"][0] == -1.0
    assert said.values["loss"] == said.values["measured_here"] == (None, None, None)
    assert 0 <= said.values["seen"][1] < 60


def test_a_run_is_paused_resumed_and_ended_by_order(hub: Hub) -> None:
    console, service = hub.console(), hub.services[0]
    assert one(console.ask("run.pause", {})).ok
    assert service.rules.runs[RUN].state == RunState.PAUSED
    again = one(console.ask("run.pause", {}))
    assert (again.ok, again.reason) == (False, "run_paused")
    assert one(console.ask("run.resume", {})).ok
    assert one(console.ask("run.stop", {})).ok
    assert one(console.ask("run.show", {})).values["state"] == "stopped"


def test_versions_updates_and_the_ledger_can_be_looked_at(hub: Hub) -> None:
    for site in ("site-0", "site-1"):
        hub.send(site, hub.sites[site].update(ONE))
    hub.wait_outcome("site-0", Outcome.MERGED)
    console = hub.console()
    models = one(console.ask("model.list", {})).values
    assert models["version"] == (1, 0)
    assert models["sites"][0] == "site-0, site-1"
    shown = one(console.ask("model.show", {"version": 1})).values
    assert sorted(shown["site"]) == ["site-0", "site-1"]
    updates = one(console.ask("update.list", {"site": "site-0"})).values
    assert updates["state"] == ("merged",)
    assert one(console.ask("update.show", {"update": updates["update"][0]})).values["site"] == "site-0"
    assert "version" in one(console.ask("audit.log", {})).values["kind"]
    assert one(console.ask("site.show", {"site": "site-0"})).values["state"] == ("merged",)
    assert one(console.ask("site.list", {})).values["role"].count("site") == 3
    assert one(console.ask("run.list", {})).values["run"] == ("test-run",)


@pytest.mark.parametrize(
    ("order", "arguments", "words"),
    [
        ("model.show", {"version": 99}, "no version 99"),
        ("update.show", {"update": "zz zz"}, "hexadecimal"),
        ("update.show", {"update": "abcdef"}, "no update begins"),
        ("site.show", {"site": "nowhere"}, "no member"),
        ("dead.show", {"id": 5}, "no refused message 5"),
        ("audit.log", {"limit": 10**6}, "limit"),
    ],
)
def test_a_question_that_cannot_be_answered_says_what_is_wrong(
    hub: Hub, order: str, arguments: dict[str, Any], words: str
) -> None:
    said = one(hub.console().ask(order, arguments))
    assert (said.ok, said.reason) == (False, "not_possible")
    assert words in said.text


def test_orders_for_sites_are_answered_by_each_and_a_silent_one_is_named(hub: Hub) -> None:
    hub.obey("site-0")
    said = hub.console().ask("site.drain", {}, ["site-0", "site-1"], timeout=2)
    assert [(each.sender, each.ok, each.reason) for each in said] == [
        ("site-0", True, "ok"),
        ("site-1", False, "no_answer"),
    ]
    assert "the command is queued and will run when it returns" in said[1].text


def test_an_operator_without_the_right_is_refused_and_the_ledger_shows_it(hub: Hub) -> None:
    newcomer = Identity.generate("olga", Role.OPERATOR)
    hub.federation.registry = hub.federation.registry.with_entry(
        newcomer.public, organisation="elsewhere", roles=("site_it",)
    )
    hub.services[0].update_registry(hub.federation.registry_record)
    assert "olga" in one(hub.console().ask("site.list", {})).values["site"]
    said = one(hub.console(newcomer).ask("run.abort", {}))
    assert (said.ok, said.reason) == (False, "not_authorized")
    assert "olga is not authorized to train at aggregator" in said.text
    log = one(hub.console().ask("audit.log", {})).values
    assert any('"olga"' in entry and "not_authorized" in entry for entry in log["entry"])


def test_a_replayed_order_an_expired_one_and_a_forged_one_change_nothing_and_are_noted(hub: Hub) -> None:
    def order(signer: Identity, counter: int, expires: float) -> bytes:
        command = Command(counter=counter, expires=int(expires), command="run.pause", arguments={})
        to = [hub.federation.aggregator.public]
        return seal(signer, Kind.COMMAND, command, to, federation=FEDERATION, message_id=os.urandom(16))

    now = time.time()
    pause = order(hub.federation.operator, 1, now + 60)
    forger = Identity.generate("operator", Role.OPERATOR)
    for raw in (pause, order(hub.federation.operator, 2, now - 60), order(forger, 3, now + 60)):
        hub.transport.publish(topology.COMMANDS, "", raw).result(10)
    console = hub.console()
    assert one(console.ask("run.resume", {})).ok
    hub.transport.publish(topology.COMMANDS, "", pause).result(10)
    log = one(console.ask("audit.log", {})).values
    assert hub.services[0].rules.runs[RUN].state == RunState.RUNNING
    said = " ".join(log["entry"])
    assert '"replayed"' in said
    assert '"expired"' in said
    assert '"untrusted"' in said


def test_a_revoked_site_is_cut_off_at_the_broker_and_its_next_update_is_refused(hub: Hub) -> None:
    console = hub.console()
    began = time.monotonic()
    assert one(console.ask("site.revoke", {"site": "site-2"})).ok
    hub.wait(lambda: hub.cut == ["site-2"])
    assert time.monotonic() - began < 5
    hub.send("site-2", hub.sites["site-2"].update(ONE))
    hub.wait(lambda: "revoked" in hub.dead())
    dead = one(console.ask("dead.list", {})).values
    assert dead["reason"] == ("revoked",)
    assert one(console.ask("dead.show", {"id": dead["id"][0]})).values["queue"] == "in.site-2"
    assert "site-2" not in one(console.ask("status", {})).values["site"]
    assert one(console.ask("dead.purge", {})).ok
    assert one(console.ask("dead.list", {})).values["id"] == ()


def test_the_answer_to_a_revocation_says_what_is_left_to_do_where_the_hub_cannot_reach_the_broker(hub: Hub) -> None:
    console = hub.console()
    assert "store stays" in one(console.ask("site.revoke", {"site": "site-1"})).text
    hub.services[-1]._parts.responder._access = AdminAccess()
    said = one(console.ask("site.revoke", {"site": "site-2"}))
    assert said.ok
    assert "delete the site's user there by hand" in said.text
    assert "fledge deploy broker" in said.text


def became(answer: Answer) -> dict[Any, tuple[Any, Any]]:
    """By number, what became of each message that was handed in again."""
    values = answer.values
    return dict(zip(values["id"], zip(values["became"], values["reason"], strict=True), strict=True))


def test_of_every_message_that_is_handed_in_again_it_is_told_what_became_of_it(hub: Hub) -> None:
    newcomer = Identity.generate("site-9", Role.SITE)
    hub.federation.members["site-9"] = newcomer
    site, waiting = hub.sites["site-0"], Site(hub.federation, "site-9", hub.store)
    hub.federation.registry = hub.federation.registry.with_entry(newcomer.public, organisation="clinic")
    good, stale = waiting.update(ONE), waiting.update(ONE, base=7)
    stranger = site.update(ONE, signer=Identity.generate("x", Role.SITE))
    gap = Site(hub.federation, "site-9", hub.store, sequence=10**6).update(ONE)
    event, to = Event(state="idle", progress=0.0, metrics={}, software="test"), [hub.federation.aggregator.public]
    sign = seal(newcomer, Kind.EVENT, event, to, federation=FEDERATION, message_id=os.urandom(16), run=RUN)
    hub.services[0].journal.commit(
        [KeepLetter(queue="in.site-9", reason="untrusted", raw=raw) for raw in (good, good, stale, gap)]
        + [KeepLetter(queue="events.site-9", reason="untrusted", raw=sign)]
        + [KeepLetter(queue="in.site-0", reason="untrusted", raw=stranger)]
        + [KeepLetter(queue="inbox.aggregator", reason="untrusted", raw=b"an order")]
    )
    console = hub.console()
    early = one(console.ask("dead.replay", {"id": (1, 3)}))
    assert became(early) == {1: ("refused", "untrusted"), 3: ("refused", "untrusted")}
    assert (early.values["left"], early.text) == (7, "2 refused; 7 are left")

    hub.services[0].update_registry(hub.federation.registry_record)
    hub.wait(lambda: "site-9" in one(console.ask("status", {})).values["site"])
    said = one(console.ask("dead.replay", {}))
    assert became(said) == {
        1: ("accepted", "journalled"),
        2: ("duplicate", "journalled"),
        3: ("rejected", "future_base"),
        4: ("rejected", "sequence_gap"),
        5: ("accepted", "ok"),
        6: ("refused", "untrusted"),
        7: ("refused", "orders_are_given_anew"),
    }
    assert said.values["left"] == 2
    assert one(console.ask("dead.list", {})).values["id"] == (7, 6)
    again = one(console.ask("dead.replay", {"id": 6}))
    assert became(again) == {6: ("refused", "untrusted")}
    assert hub.dead() == []


def test_messages_that_are_not_there_are_not_handed_in_again(hub: Hub) -> None:
    console = hub.console()
    assert one(console.ask("dead.replay", {})).text == "there was none; 0 are left"
    for wanted in (5, (5, 6), "5", (True,), tuple(range(201))):
        said = one(console.ask("dead.replay", {"id": wanted}))
        assert (said.ok, said.reason) == (False, "not_possible")


def test_queue_depths_come_from_the_broker(hub: Hub) -> None:
    assert one(hub.console().ask("queue.list", {})).values == {
        "queue": ("in.site-0",),
        "ready": (3,),
        "consumers": (1,),
    }


def test_a_console_with_an_old_registry_learns_the_newest_by_itself(hub: Hub) -> None:
    old = hub.federation.registry
    newcomer = Identity.generate("site-new", Role.SITE)
    hub.federation.members["site-new"] = newcomer
    hub.federation.registry = old.with_entry(newcomer.public, organisation="clinic")
    hub.services[0].update_registry(hub.federation.registry_record)
    hub.obey("site-new")
    console = hub.console(registry=old)
    assert one(console.ask("site.drain", {}, ["site-new"])).ok
    assert console.registry == hub.federation.registry


def test_a_site_that_says_hello_is_granted_the_head(hub: Hub) -> None:
    granted: list[Grant] = []
    done = threading.Event()

    def take(raw: bytes) -> None:
        verified = verify(raw, hub.federation.registry, federation=FEDERATION, kinds={Kind.GRANT})
        granted.append(typed_body(verified, unlock(verified, hub.federation.members["site-0"])))
        done.set()

    hub.handlers[topology.inbox_queue("site-0")] = take
    hub.wait(lambda: hub.store.get_head(FEDERATION, 10**6) is not None)
    hello = seal(
        hub.federation.members["site-0"],
        Kind.REQUEST,
        Request(puts=(), gets=()),
        [hub.federation.aggregator.public],
        federation=FEDERATION,
        message_id=b"h" * 16,
    )
    hub.transport.publish(topology.up_exchange("site-0"), "", hello).result(10)
    assert done.wait(10)
    assert granted[0].message == b"h" * 16
    assert granted[0].head
    assert granted[0].urls == ()


class Deaf(MemoryTransport):
    """A broker that is away: it takes nothing and says nothing."""

    def publish(self, exchange: str, key: str, body: bytes) -> Future[None]:
        return Future()


def test_an_order_that_no_broker_takes_ends_with_what_to_do(hub: Hub) -> None:
    console = Console(
        hub.federation.operator,
        FEDERATION,
        hub.federation.root_key,
        hub.federation.registry,
        Deaf.named(hub.network),
    )
    with pytest.raises(TransportError, match=r"has not taken .*'s command in time.*fledge doctor"):
        console.ask("status", {}, timeout=0.2)
