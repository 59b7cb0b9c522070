"""RabbitMQ failing in every way it can, while numbered messages flow: none lost, no false confirm."""

from __future__ import annotations

import base64
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from broker.transport.base import Delivery
from deploy.servers.rabbitmq import aggregator_permissions, site_permissions
from protocol import limits
from protocol.errors import LoginRefused, NotAllowed, TransportError, Unroutable
from protocol.topology import (
    AGGREGATOR,
    COMMANDS,
    DEAD,
    DEAD_LETTERS,
    DIRECT,
    GLOBAL,
    Queue,
    Topology,
    down_queue,
    event_exchange,
    event_queue,
    in_queue,
    inbox_queue,
    topology,
    up_exchange,
)
from tests.support.collect import Collector
from tests.support.rabbit import RabbitVhost
from tests.support.traffic import FLOW, HEARTBEAT, Brisk, Traffic
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.servers


@pytest.fixture
def traffic(rabbit_broker: RabbitVhost) -> Iterator[Traffic]:
    rabbit_broker.apply(FLOW)
    traffic = Traffic(rabbit_broker.open(rabbit_broker.url(heartbeat=HEARTBEAT), dice=Brisk())).start()
    traffic.wait_for_flow()
    yield traffic
    traffic.stop()


class Longest(random.Random):
    """Draws the upper end, so that the waits between attempts are known."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_many_messages_are_in_flight_at_once(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(FLOW)
    transport, watcher = rabbit_broker.open(), rabbit_broker.open(rabbit_broker.node.url(rabbit_broker.vhost))
    transport.publish("x", "", b"connects").result(DEADLINE)
    rabbit_broker.proxy.hold_answers()
    futures = [transport.publish("x", "", b"%d" % i) for i in range(500)]
    eventually(lambda: watcher.depth("in.q") > 200, "more than 200 messages lie in the queue")
    assert not any(future.done() for future in futures)
    rabbit_broker.proxy.heal()
    assert [future.result(DEADLINE) for future in futures] == [None] * 500
    assert watcher.depth("in.q") == 501


def test_traffic_survives_resets_of_its_connections(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    for _ in range(5):
        rabbit_broker.proxy.cut()
        traffic.wait_for_flow()
    traffic.finish()


def test_traffic_survives_a_broker_that_cannot_be_reached(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    before = rabbit_broker.proxy.accepted
    rabbit_broker.proxy.refuse()
    eventually(lambda: rabbit_broker.proxy.accepted > before + 6, "several attempts were made")
    rabbit_broker.proxy.heal()
    traffic.wait_for_flow()
    traffic.finish()


def test_traffic_survives_a_stalled_network(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    before = rabbit_broker.proxy.accepted
    rabbit_broker.proxy.stall()
    eventually(lambda: rabbit_broker.proxy.accepted >= before + 2, "both connections were given up")
    rabbit_broker.proxy.heal()
    traffic.wait_for_flow()
    traffic.finish()


def test_traffic_survives_connections_closed_by_the_administrator(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    node, vhost = rabbit_broker.node, rabbit_broker.vhost

    def open_connections() -> list[str]:
        return [found["name"] for found in node.api("GET", "vhosts", vhost, "connections") if "name" in found]

    eventually(lambda: len(open_connections()) == 2, "both connections are listed")
    for name in open_connections():
        node.api("DELETE", "connections", name)
    traffic.wait_for_flow()
    traffic.finish()


def test_traffic_survives_a_killed_broker(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    rabbit_broker.await_durable("in.q", DEAD_LETTERS)
    rabbit_broker.node.kill()
    before = len(traffic.futures)
    eventually(lambda: len(traffic.futures) > before + 50, "publishing went on without a broker")
    rabbit_broker.node.start()
    traffic.wait_for_flow()
    traffic.finish()


ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "absolute"), "1MB", "1GB"),
    "disk": (("set_disk_free_limit",), "900000GB", "50MB"),
}


@pytest.mark.parametrize("which", ["memory", pytest.param("disk", marks=pytest.mark.long)])
def test_an_alarm_holds_up_publishing_and_nothing_else(
    which: str, rabbit_broker: RabbitVhost, traffic: Traffic
) -> None:
    transport, node = traffic.transport, rabbit_broker.node
    setting, alarming, usual = ALARMS[which]
    with capture_logs() as logs:
        node.control(*setting, alarming)
        try:
            eventually(lambda: any(entry["event"] == "broker.blocked" for entry in logs), "the broker blocks")
            held = len(traffic.futures)
            eventually(lambda: len(traffic.futures) > held + 50, "publishing went on")
            assert not traffic.futures[-1].done()
            eventually(lambda: transport.depth("in.q") == 0, "consuming and asking go on")
        finally:
            node.control(*setting, usual)
        traffic.wait_for_flow()
    traffic.finish()


def test_traffic_survives_a_queue_whose_leader_is_restarted(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    leader = f"{{'{rabbit_broker.vhost}_in.q', node()}}"
    for _ in range(2):
        said = rabbit_broker.node.control(
            "eval", f"[ra:stop_server(quorum_queues, {leader}), ra:restart_server(quorum_queues, {leader})]."
        )
        assert said.split() == ["[ok,ok]"]
        traffic.wait_for_flow()
    traffic.finish()


@pytest.mark.long
def test_a_message_outlives_more_dying_consumers_than_brokers_grant_by_themselves(rabbit_broker: RabbitVhost) -> None:
    """From 4.0 on a quorum queue drops what was delivered twenty times, unless its policy says otherwise."""
    rabbit_broker.apply(topology(["a"]))
    transport = rabbit_broker.open(dice=Brisk())
    got = Collector(settle=None)
    transport.consume(in_queue("a"), got)
    transport.publish(up_exchange("a"), "", b"update").result(DEADLINE)
    for life in range(1, 26):
        got.wait_for(life)
        rabbit_broker.proxy.cut()
    got.wait_for(26)[-1].ack()
    eventually(lambda: rabbit_broker.open().depth(in_queue("a")) == 0, "its last ack arrived")
    assert got.bodies == [b"update"] * 26
    assert rabbit_broker.open().depth(DEAD_LETTERS) == 0


def test_a_queue_that_is_deleted_and_comes_back_is_consumed_again(rabbit_broker: RabbitVhost, traffic: Traffic) -> None:
    traffic.finish()
    transport, node = traffic.transport, rabbit_broker.node
    with capture_logs() as logs:
        node.api("DELETE", "queues", rabbit_broker.vhost, "in.q")
        eventually(lambda: any(entry["event"] == "consume.cancelled_by_broker" for entry in logs), "it is noticed")
    with pytest.raises(Unroutable):
        transport.publish("x", "", b"nowhere").result(DEADLINE)
    rabbit_broker.apply(FLOW)
    transport.publish("x", "", b"back").result(DEADLINE)
    traffic.got.wait_until(lambda bodies: bodies[-1] == b"back", "the message after the queue came back")


@pytest.mark.parametrize("single", [True, pytest.param(False, marks=pytest.mark.long)], ids=["single-active", ""])
def test_a_delivery_that_is_held_too_long_comes_back_and_its_late_ack_is_dropped(
    single: bool, rabbit_broker: RabbitVhost
) -> None:
    """The broker closes the channel with 406; from 4.3 on it cancels the consumer, who has to give back what it has."""
    queue = replace(FLOW.queues[0], single_active_consumer=single)
    rabbit_broker.apply(replace(FLOW, queues=(queue, *FLOW.queues[1:])))
    node = rabbit_broker.node
    limit = "application:set_env(rabbit, {}, {}), application:set_env(rabbit, {}, {})."
    node.control("eval", limit.format("consumer_timeout", 1000, "channel_tick_interval", 500))
    try:
        transport = rabbit_broker.open()
        got = Collector(settle=lambda delivery: delivery.ack() if delivery.redelivered else None)
        with capture_logs() as logs:
            transport.consume("in.q", got)
            transport.publish("x", "", b"held too long").result(DEADLINE)
            first, second = got.wait_for(2, DEADLINE)
        assert [second.body, second.redelivered] == [b"held too long", True]
        assert any(
            entry["event"] == "consume.cancelled_by_broker"
            or (entry["event"] == "consume.lost" and "406" in entry["reason"])
            for entry in logs
        )
        first.ack()
        transport.publish("x", "", b"next").result(DEADLINE)
        got.wait_until(lambda bodies: bodies.count(b"next") == 1, "the subscription still works")
    finally:
        node.control("eval", limit.format("consumer_timeout", 1_800_000, "channel_tick_interval", 60_000))


def test_a_handler_that_takes_longer_than_the_heartbeat_keeps_its_connection(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(FLOW)
    transport = rabbit_broker.open(rabbit_broker.url(heartbeat=HEARTBEAT))
    done = threading.Event()

    def handler(delivery: Delivery) -> None:
        threading.Event().wait(4 * HEARTBEAT)  # a broker gives up after two silent heartbeats
        delivery.ack()
        done.set()

    transport.consume("in.q", handler)
    transport.publish("x", "", b"1").result(DEADLINE)
    connections = rabbit_broker.proxy.accepted
    assert done.wait(DEADLINE)
    eventually(lambda: transport.depth("in.q") == 0, "the ack arrived")
    assert rabbit_broker.proxy.accepted == connections


def test_a_site_may_only_do_what_its_permissions_say(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(topology(["site-a", "site-b"]))
    with_permissions(rabbit_broker, "site-a", site_permissions("site-a"))
    site = rabbit_broker.open(rabbit_broker.url(user="site-a", password="pw"))
    site.publish(up_exchange("site-a"), "", b"update").result(DEADLINE)
    for exchange in (GLOBAL, DEAD, up_exchange("site-b"), ""):
        with pytest.raises(NotAllowed, match="403"):
            site.publish(exchange, in_queue("site-a"), b"intrusion").result(DEADLINE)
    with pytest.raises(NotAllowed, match="403") as refused:
        site.declare(topology(["site-c"]))
    assert not isinstance(refused.value, LoginRefused)
    site.publish(up_exchange("site-a"), "", b"still works").result(DEADLINE)
    assert rabbit_broker.open().depth(in_queue("site-b")) == 0


def test_the_aggregators_permissions_are_enough_and_no_more(rabbit_broker: RabbitVhost) -> None:
    wanted = topology(["site-a"])
    rabbit_broker.apply(wanted)
    with_permissions(rabbit_broker, "aggregator", aggregator_permissions())
    aggregator = rabbit_broker.open(rabbit_broker.url(user="aggregator", password="pw"))
    got = Collector()
    for queue in (in_queue("site-a"), event_queue("site-a"), inbox_queue(AGGREGATOR), DEAD_LETTERS):
        aggregator.consume(queue, got)
    for exchange, key in ((DEAD, ""), (DIRECT, "site-a"), (GLOBAL, "")):
        aggregator.publish(exchange, key, b"mine").result(DEADLINE)
    operator = rabbit_broker.open()
    operator.publish(up_exchange("site-a"), "", b"update").result(DEADLINE)
    operator.publish(event_exchange("site-a"), "", b"event").result(DEADLINE)
    operator.publish(COMMANDS, "", b"order").result(DEADLINE)
    got.wait_for(4)
    assert sorted(got.bodies) == [b"event", b"mine", b"order", b"update"]
    for exchange in (up_exchange("site-a"), COMMANDS):
        with pytest.raises(NotAllowed):
            aggregator.publish(exchange, "", b"forged").result(DEADLINE)
    with pytest.raises(NotAllowed):
        aggregator.declare(topology(["site-b"]))


def test_a_refused_publisher_is_slowed_down_and_served_once_permitted(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(FLOW)
    with_permissions(rabbit_broker, "narrow", {"configure": "^$", "write": "^$", "read": "^$"})
    transport = rabbit_broker.open(rabbit_broker.url(user="narrow", password="pw"), dice=Longest())
    started = time.monotonic()
    for _ in range(4):
        with pytest.raises(NotAllowed):
            transport.publish("x", "", b"again and again").result(DEADLINE)
    assert time.monotonic() - started > 0.2 + 0.4 + 0.8
    with_permissions(rabbit_broker, "narrow", {"configure": "^$", "write": "^x$", "read": "^$"})
    transport.publish("x", "", b"permitted").result(DEADLINE)


def test_a_refused_consumer_is_slowed_down_and_served_once_permitted(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(FLOW)
    with_permissions(rabbit_broker, "narrow", {"configure": "^$", "write": "^x$", "read": "^$"})
    transport = rabbit_broker.open(rabbit_broker.url(user="narrow", password="pw"), dice=Longest())
    got = Collector()
    with capture_logs() as logs:
        transport.consume("in.q", got)
        lost = [entry for entry in logs if entry["event"] == "consume.lost"]

        def refusals() -> list[float]:
            lost[:] = [entry for entry in logs if entry["event"] == "consume.lost"]
            return [entry["again_in_s"] for entry in lost]

        eventually(lambda: len(refusals()) >= 3, "three attempts were refused")
        assert refusals()[:3] == [0.2, 0.4, 0.8]
        assert "403" in lost[0]["reason"]
    with_permissions(rabbit_broker, "narrow", {"configure": "^$", "write": "^x$", "read": r"^in\."})
    transport.publish("x", "", b"permitted").result(DEADLINE)
    got.wait_for(1)


def test_a_wrong_password_is_told_at_once_and_repeated_nowhere(rabbit_broker: RabbitVhost) -> None:
    transport = rabbit_broker.open(rabbit_broker.url(password="hunter2"))
    with capture_logs() as logs, pytest.raises(LoginRefused, match="login refused") as refused:
        transport.depth("in.q")
    assert "hunter2" not in f"{refused.value!r} {logs} {transport!r}"


def test_a_missing_vhost_is_told_at_once(rabbit_broker: RabbitVhost) -> None:
    transport = rabbit_broker.open(rabbit_broker.node.url("no-such-vhost"))
    with pytest.raises(LoginRefused, match="vhost refused"):
        transport.declare(FLOW)


def test_an_oversize_delivery_is_dead_lettered_and_never_handled(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(FLOW)
    body = {
        "properties": {},
        "routing_key": "",
        "payload": base64.b64encode(b"x" * (limits.MESSAGE + 1)).decode(),
        "payload_encoding": "base64",
    }
    rabbit_broker.node.api("POST", "exchanges", rabbit_broker.vhost, "x", "publish", body=body)
    transport = rabbit_broker.open()
    got = Collector()
    transport.consume("in.q", got)
    eventually(lambda: transport.depth(DEAD_LETTERS) == 1, "it lies with the dead letters")
    transport.publish("x", "", b"of good size").result(DEADLINE)
    got.wait_for(1)
    assert got.bodies == [b"of good size"]


def test_closing_without_a_broker_is_quick_and_fails_what_was_not_confirmed(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.proxy.refuse()
    transport = rabbit_broker.open()
    transport.consume("in.q", Collector())
    future = transport.publish("x", "", b"stays in the outbox")
    started = time.monotonic()
    transport.close()
    assert time.monotonic() - started < 5
    assert isinstance(future.exception(0), TransportError)


def test_an_unknown_arrangement_of_a_queue_is_refused_when_applying(rabbit_broker: RabbitVhost) -> None:
    rabbit_broker.apply(FLOW)
    single = Queue(name="in.q", max_length=10, overflow="reject-publish", single_active_consumer=True)
    with pytest.raises(TransportError, match=r"in\.q exists with arguments"):
        rabbit_broker.apply(Topology(exchanges=(), queues=(single,), bindings=()))


def test_applying_a_federation_twice_changes_nothing_but_limits(rabbit_broker: RabbitVhost) -> None:
    node, vhost = rabbit_broker.node, rabbit_broker.vhost
    rabbit_broker.apply(topology(["a"]))
    rabbit_broker.apply(topology(["a", "b"]))
    rabbit_broker.open().declare(topology(["a", "b"]))
    names = {queue["name"] for queue in node.api("GET", "queues", vhost)}
    assert names == {queue.name for queue in topology(["a", "b"]).queues}
    policy = node.api("GET", "policies", vhost, "fledge.down")
    assert policy["definition"] == {"max-length": 64, "overflow": "drop-head", "delivery-limit": 50}
    queue = down_queue("b")
    eventually(lambda: node.api("GET", "queues", vhost, queue).get("policy") == "fledge.down", "the limits hold")


def with_permissions(broker: RabbitVhost, user: str, permissions: dict[str, str]) -> None:
    """Make a user (password `pw`) whose permissions are these."""
    broker.node.api("PUT", "users", user, body={"password": "pw", "tags": ""})
    broker.node.api("PUT", "permissions", broker.vhost, user, body=permissions)
