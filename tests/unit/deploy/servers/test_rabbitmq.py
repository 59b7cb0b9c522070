"""Topologies as RabbitMQ definitions."""

from __future__ import annotations

import re

import pytest

from deploy.servers.rabbitmq import (
    aggregator_permissions,
    definitions,
    operator_permissions,
    policies,
    site_permissions,
)
from protocol.errors import ConfigError
from protocol.topology import Queue, Topology, topology

# What RabbitMQ 3.10 knows; it refuses a policy with any other key.
KNOWN = {
    "max-length",
    "overflow",
    "delivery-limit",
    "dead-letter-exchange",
    "dead-letter-strategy",
}


def test_every_queue_falls_under_exactly_one_policy_with_its_limits() -> None:
    federation = topology(["a", "b-c"])
    for queue in federation.queues:
        found = [policy for policy in policies(federation) if re.search(policy["pattern"], queue.name)]
        assert len(found) == 1
        assert found[0]["definition"]["max-length"] == queue.max_length
        assert found[0]["definition"]["overflow"] == queue.overflow
        assert ("dead-letter-exchange" in found[0]["definition"]) == queue.dead_letter


def test_policies_do_not_grow_with_the_number_of_sites() -> None:
    assert policies(topology(["a"])) == policies(topology([f"s{i}" for i in range(50)]))


def test_policies_use_only_keys_that_the_oldest_broker_knows() -> None:
    assert set().union(*(policy["definition"] for policy in policies(topology(["a"])))) <= KNOWN


def test_queues_of_one_family_with_different_limits_are_refused() -> None:
    queues = tuple(Queue(name=f"in.{n}", max_length=n, overflow="drop-head") for n in (1, 2))
    with pytest.raises(ConfigError, match=r"in\.2"):
        policies(Topology(exchanges=(), queues=queues, bindings=()))


def test_dead_letters_that_could_be_lost_are_refused() -> None:
    queue = Queue(name="in.a", max_length=1, overflow="drop-head", dead_letter=True)
    with pytest.raises(ConfigError, match="reject-publish"):
        policies(Topology(exchanges=(), queues=(queue,), bindings=()))


def test_definitions_hold_the_whole_topology() -> None:
    federation = topology(["a"])
    made = definitions(federation)
    assert [exchange["name"] for exchange in made["exchanges"]] == [exchange.name for exchange in federation.exchanges]
    assert [queue["name"] for queue in made["queues"]] == [queue.name for queue in federation.queues]
    assert all(queue["durable"] and queue["arguments"]["x-queue-type"] == "quorum" for queue in made["queues"])
    assert {(b["source"], b["destination"], b["routing_key"]) for b in made["bindings"]} == {
        (binding.exchange, binding.queue, binding.key) for binding in federation.bindings
    }


@pytest.mark.parametrize(
    "name", ["up.site-ab", "upXsite-a", "up.site-a.x", "xup.site-a", "global", "direct", "orders", "dead", ""]
)
def test_a_site_may_write_to_nothing_but_its_own_exchanges(name: str) -> None:
    permissions = site_permissions("site-a")
    assert re.search(permissions["write"], "up.site-a")
    assert re.search(permissions["write"], "ev.site-a")
    assert not re.search(permissions["write"], name)
    assert permissions["configure"] == "^$"


@pytest.mark.parametrize("name", ["down.site-b", "in.site-a", "inbox.aggregator", "inbox.site-ab", "dead.letters"])
def test_a_site_may_read_nothing_but_its_own_queues(name: str) -> None:
    permissions = site_permissions("site-a")
    assert re.search(permissions["read"], "down.site-a")
    assert re.search(permissions["read"], "inbox.site-a")
    assert not re.search(permissions["read"], name)


def test_an_operator_writes_orders_and_reads_its_own_inbox() -> None:
    permissions = operator_permissions("ada")
    assert permissions == {"configure": "^$", "write": "^orders$", "read": r"^inbox\.ada$"}
    for name in ("direct", "global", "dead", "up.a", "ev.a", "orders.x", "xorders", ""):
        assert not re.search(permissions["write"], name)
    assert not re.search(aggregator_permissions()["write"], "orders")


def test_the_aggregator_may_not_read_what_is_meant_for_sites() -> None:
    permissions = aggregator_permissions()
    for name in ("in.a", "events.a", "inbox.aggregator", "dead.letters"):
        assert re.search(permissions["read"], name)
    for name in ("down.a", "inbox.a"):
        assert not re.search(permissions["read"], name)
    for name in ("up.a", "ev.a"):
        assert not re.search(permissions["write"], name)
