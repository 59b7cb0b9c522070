"""RabbitMQ's data under a newer RabbitMQ: a federation's queues with messages in them, as docs/upgrading.md says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.net.schemes import Connection
from broker.transport.rabbitmq.transport import RabbitTransport
from deploy.servers.apply import Management, apply_members
from deploy.servers.members import BrokerMembers, members_of
from protocol.topology import DEAD, DIRECT, GLOBAL, Topology, up_exchange
from tests.support.collect import Collector
from tests.support.members import registry
from tests.support.rabbit import NEWER, SYSTEM, RabbitNode
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.servers, pytest.mark.long]

BOOKWORM, TRIXIE, FORKY = SYSTEM, NEWER / "trixie" / "bin", NEWER / "forky" / "bin"
SITES, OPERATOR = ("north", "south"), "ada"
VHOST = "fl"
MEMBERS = members_of(registry(*SITES))
BODIES = [b"%d" % number for number in range(40)]
GIVEN_BACK = 7


def need(*versions: Path) -> None:
    for programs in versions:
        if not (programs / "rabbitmq-server").exists():
            suite = programs.parent.name
            pytest.skip(f"no RabbitMQ in {programs}. Run: scripts/newer-debian.sh {suite}")


@contextmanager
def transport_to(node: RabbitNode) -> Iterator[RabbitTransport]:
    transport = RabbitTransport(node.url(VHOST), Connection(name="test"))
    try:
        yield transport
    finally:
        transport.close()


def deployed(node: RabbitNode, members: BrokerMembers) -> list[str]:
    with Management(node.management_url) as management:
        return [str(change) for change in apply_members(management, VHOST, members).changes]


def fill(node: RabbitNode, topology: Topology) -> None:
    """Put messages into every queue, and take one of each site's and hold it while the broker ends."""
    with transport_to(node) as transport:
        exchanges = [*(up_exchange(site) for site in SITES), GLOBAL, DEAD]
        sent = [transport.publish(exchange, "", body) for exchange in exchanges for body in BODIES]
        sent += [transport.publish(DIRECT, name, body) for name in (*SITES, OPERATOR) for body in BODIES]
        for future in sent:
            future.result(DEADLINE)
        for site in SITES:
            got = Collector(settle=None)
            subscription = transport.consume(f"in.{site}", got, prefetch=GIVEN_BACK)
            got.wait_for(GIVEN_BACK)
            subscription.cancel()


@contextmanager
def filled(programs: Path) -> Iterator[RabbitNode]:
    """A node that has stopped, with a federation's queues, messages in all of them and every feature flag."""
    node = RabbitNode(programs=programs)
    try:
        node.start()
        node.api("PUT", "vhosts", VHOST, body={})
        deployed(node, MEMBERS)
        fill(node, MEMBERS.topology)
        node.control("enable_feature_flag", "all")
        node.stop()
        yield node
    finally:
        node.close()


def held(node: RabbitNode, queue: str) -> list[bytes]:
    """What is in a queue, in its order; it is taken out."""
    with transport_to(node) as transport:
        got = Collector()
        transport.consume(queue, got)
        got.wait_for(len(BODIES))
        return got.bodies


def filled_queues() -> list[str]:
    own = [f"{kind}.{site}" for site in SITES for kind in ("in", "down", "inbox")]
    return [*own, f"inbox.{OPERATOR}", "dead.letters"]


def test_a_newer_broker_keeps_what_was_deployed_and_every_message() -> None:
    need(TRIXIE, FORKY)
    with filled(TRIXIE) as node:
        node.programs = FORKY
        node.start()
        assert str(node.api("GET", "overview")["rabbitmq_version"]).startswith("4.3")
        node.control("enable_feature_flag", "all")
        assert deployed(node, MEMBERS) == []
        # What was given back stands before the rest, in either order among itself.
        found = {queue: held(node, queue) for queue in filled_queues()}
        assert {queue: sorted(bodies, key=int) for queue, bodies in found.items()} == dict.fromkeys(found, BODIES)
        assert found["down.north"] == found["inbox.north"] == found["dead.letters"] == BODIES
        assert "make queue in.west" in deployed(node, members_of(registry(*SITES, "west")))


def test_a_broker_two_steps_newer_does_not_start_and_leaves_the_data_to_the_old_one() -> None:
    need(BOOKWORM, TRIXIE)
    with filled(BOOKWORM) as node:
        node.programs = TRIXIE
        with pytest.raises(RuntimeError):
            node.start()
        node.kill()
        assert "`stream_single_active_consumer`: required feature flag not enabled" in (node.base / "out").read_text()
        node.programs = BOOKWORM
        node.start()
        assert deployed(node, MEMBERS) == []
        assert all(sorted(held(node, queue), key=int) == BODIES for queue in filled_queues())
