"""A running worker and its operators: orders obeyed once, refused by right and policy, answered; hello and grants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.runtime.health import HEALTH, trouble
from protocol.envelope import unlock
from protocol.errors import StoreError
from protocol.keys import Identity, Role
from protocol.messages import Kind, Request
from tests.support.bodies import typed_body
from tests.support.fake_aggregator import AddOne, Hub
from tests.support.running_worker import Seen, start, stop
from worker.policy import OPEN
from worker.service.service import WorkerService


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    made = Hub(request.node.name[:60])
    yield made
    made.close()


def test_a_drained_site_trains_no_more_until_it_is_undrained(
    hub: Hub, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    start(hub, tmp_path, AddOne(), workers, on_event=seen)
    hub.order("site.drain")
    assert hub.reply().ok
    seen.wait("drained")
    hub.announce(hub.version(0))
    hub.order("site.undrain")
    first, second = hub.next_message(), hub.next_message()
    assert {first.core.kind, second.core.kind} == {Kind.REPLY, Kind.UPDATE}


def test_an_order_that_comes_again_is_obeyed_and_answered_once(
    hub: Hub, workers: list[WorkerService], tmp_path: Path
) -> None:
    worker = start(hub, tmp_path, AddOne(), workers)
    raw = hub.order("site.drain")
    assert hub.reply().ok
    hub.send(raw)
    hub.order("site.undrain")
    assert "trains again" in hub.reply().text
    stop(worker)
    workers.remove(worker)
    start(hub, tmp_path, AddOne(), workers)
    hub.send(raw)
    hub.order("site.undrain")
    assert "trains again" in hub.reply().text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"targets": ("beta",)}, "wrong_site"),
        ({"targets": ()}, "wrong_site"),
        ({"expires": 1}, "expired"),
        ({"expires": 2**40}, "expired"),
        ({"command": "run.abort"}, "unknown_command"),
        ({"command": "fly"}, "unknown_command"),
    ],
)
def test_an_order_that_should_not_be_obeyed_is_answered_with_the_reason(
    hub: Hub, workers: list[WorkerService], tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    start(hub, tmp_path, AddOne(), workers)
    hub.order(**{"command": "site.shutdown", **changes})
    said = hub.reply()
    assert (said.ok, said.reason) == (False, why)
    assert said.text
    assert not workers[0].ended.is_set()


def test_the_sites_own_policy_has_the_last_word(hub: Hub, workers: list[WorkerService], tmp_path: Path) -> None:
    start(hub, tmp_path, AddOne(), workers, policy=OPEN.model_copy(update={"operators": ()}))
    hub.order("site.shutdown")
    said = hub.reply()
    assert (said.ok, said.reason) == (False, "not_authorized")
    assert "this site's own policy" in said.text


def test_a_stranger_is_not_even_answered(hub: Hub, workers: list[WorkerService], tmp_path: Path) -> None:
    start(hub, tmp_path, AddOne(), workers)
    hub.order("site.shutdown", signer=Identity.generate("olga", Role.OPERATOR))
    hub.order("site.drain")
    assert "what is trained" in hub.reply().text
    assert hub.inbound.empty()


@pytest.mark.parametrize(("order", "leaving"), [("site.restart", "restart"), ("site.shutdown", "shutdown")])
def test_a_worker_that_is_told_to_end_answers_first(
    hub: Hub, workers: list[WorkerService], tmp_path: Path, order: str, leaving: str
) -> None:
    worker = start(hub, tmp_path, AddOne(), workers)
    hub.order(order)
    assert hub.reply().ok
    assert worker.ended.wait(10)
    assert worker.leaving == leaving


def test_only_the_hubs_answer_to_this_process_makes_a_worker_healthy(
    hub: Hub, workers: list[WorkerService], tmp_path: Path
) -> None:
    worker = start(hub, tmp_path, AddOne(), workers)
    health = tmp_path / HEALTH
    assert "not been accepted" in trouble(health, time.time(), 1800)
    hello = hub.requests.get(timeout=10)
    assert typed_body(hello, unlock(hello, hub.identity)) == Request(puts=(), gets=())
    hub.grant(hello, signer=Identity.generate("aggregator", Role.AGGREGATOR))
    hub.order("site.drain")
    assert hub.reply().ok
    assert not worker.accepted.is_set()
    hub.grant(hello)
    assert worker.accepted.wait(10)
    assert trouble(health, time.time(), 1800) == ""
    assert "minutes ago" in trouble(health, time.time() + 3600, 1800)


def test_urls_are_asked_for_and_granted(hub: Hub, workers: list[WorkerService], tmp_path: Path) -> None:
    worker = start(hub, tmp_path, AddOne(), workers)
    wanted = Request(puts=(b"c" * 32,), gets=())

    def answer() -> None:
        while True:
            asked = hub.requests.get(timeout=10)
            if typed_body(asked, unlock(asked, hub.identity)) == wanted:
                return hub.grant(asked, "https://store.example/up")

    threading.Thread(target=answer, daemon=True).start()
    assert worker.grants.ask(wanted).urls == ("https://store.example/up",)


def test_a_hub_that_grants_nothing_is_away(
    hub: Hub, workers: list[WorkerService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.grant_client._WAIT_S", 0.05)
    worker = start(hub, tmp_path, AddOne(), workers)
    with pytest.raises(StoreError, match="away or does not know this site"):
        worker.grants.ask(Request(puts=(), gets=("models/x",)))
