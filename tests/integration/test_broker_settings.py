"""Brokers that are set up otherwise than the tests' own: no statistics, nothing deprecated, definitions from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.transport.rabbitmq.amqp import parse_amqp_url
from broker.transport.rabbitmq.probe import Probe
from deploy.servers.apply import Management, apply_members, cut_off, queue_depths
from deploy.servers.gitops import broker_definitions, deployment_files
from deploy.servers.members import members_of
from protocol.topology import DEAD_LETTERS, in_queue, up_exchange
from tests.support.certificates import Pki
from tests.support.collect import Collector
from tests.support.members import registry
from tests.support.rabbit import RabbitNode, RabbitVhost, release, require_rabbit
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.servers

RELEASE = tuple(int(number) for number in re.findall(r"\d+", release())[:2])
DEPRECATED = {
    (3, 13): {"classic_queue_mirroring", "global_qos", "ram_node_type", "transient_nonexcl_queues"},
    (4, 0): {"amqp_address_v1", "global_qos", "transient_nonexcl_queues"},
    (4, 3): {
        "amqp_address_v1",
        "amqp_filter_set_bug",
        "global_qos",
        "queue_master_locator",
        "transient_nonexcl_queues",
    },
}
"""What a broker permits, or can be made to, by the release from which on; the management's statistics besides."""
OF_THE_MANAGEMENT = {"management_metrics_collection"}
MEMBERS = members_of(registry("north"))


@contextmanager
def node_with(settings: Sequence[str]) -> Iterator[RabbitNode]:
    require_rabbit()
    node = RabbitNode(settings=settings)
    try:
        node.start()
        yield node
    finally:
        node.close()


def send_one_and_count(node: RabbitNode) -> dict[str, tuple[int | None, int | None]]:
    """Deploy, send an update that nobody fetches, and count until it is seen."""
    with Management(node.management_url) as management:
        apply_members(management, "/", MEMBERS)
        assert apply_members(management, "/", MEMBERS).changes == ()
        vhost = RabbitVhost(node)
        try:
            transport = vhost.open(node.url("%2F"))
            transport.publish(up_exchange("north"), "", b"update").result(DEADLINE)
            # A queue counts for itself every few seconds.
            eventually(lambda: dict_of(management)[in_queue("north")][0] == 1, "the message is counted")
            return dict_of(management)
        finally:
            vhost.close()


def dict_of(management: Management) -> dict[str, tuple[int | None, int | None]]:
    return {name: (ready, consumers) for name, ready, consumers in queue_depths(management, "/")}


def test_depths_are_right_on_a_broker_that_gathers_statistics(rabbit_node: RabbitNode) -> None:
    found = send_one_and_count(rabbit_node)
    assert found[DEAD_LETTERS][0] == 0
    rabbit_node.api("DELETE", "queues", "/", in_queue("north"), "contents")


@pytest.mark.long
def test_a_broker_that_gathers_no_statistics_tells_depths_and_cuts_off_a_site() -> None:
    with node_with(["management_agent.disable_metrics_collector = true"]) as node:
        assert send_one_and_count(node)[in_queue("north")] == (1, None)
        node.api("PUT", "users", "north", body={"password": "pw", "tags": ""})
        with (
            Probe(parse_amqp_url(node.url("%2F", user="north", password="pw"))) as probe,
            Management(node.management_url) as management,
        ):
            cut_off(management, "/", "north")
            eventually(lambda: not probe.up, "the connection of a site that is cut off ends")


@pytest.mark.long
def test_a_broker_that_permits_nothing_deprecated_serves_a_federation() -> None:
    if RELEASE < (3, 13):
        pytest.skip("this RabbitMQ cannot be told what to permit")
    known = DEPRECATED[max(since for since in DEPRECATED if since <= RELEASE)]
    denied = [f"deprecated_features.permit.{name} = false" for name in sorted(known | OF_THE_MANAGEMENT)]
    with node_with(denied) as node:
        assert send_one_and_count(node)[in_queue("north")] == (1, None)


def test_a_deployed_federation_uses_nothing_that_is_deprecated(rabbit_broker: RabbitVhost) -> None:
    node = rabbit_broker.node
    with Management(node.management_url) as management:
        apply_members(management, rabbit_broker.vhost, MEMBERS)
    transport, got = rabbit_broker.open(), Collector()
    transport.consume(in_queue("north"), got)
    transport.publish(up_exchange("north"), "", b"update").result(DEADLINE)
    got.wait_for(1)
    if RELEASE >= (3, 13):
        assert node.api("GET", "deprecated-features", "used") == []
    log = (node.base / "log" / "rabbit.log").read_text()
    assert set(re.findall(r"Deprecated features: `(\w+)`", log)) <= OF_THE_MANAGEMENT


@pytest.mark.long
def test_a_broker_starts_with_the_settings_that_are_deployed(pki: Pki) -> None:
    """Word for word, but for ports and the room on the disk."""
    require_rabbit()
    node = RabbitNode()
    try:
        files = deployment_files("fl", "bucket", MEMBERS, tls=str(pki.folder), port=node.amqps_port)
        settings = files["rabbitmq/rabbitmq.conf"].decode()
        for there, here in (("tcp.port = 15672", f"tcp.port = {node.management_port}"), ("5GB", "50MB")):
            assert there in settings
            settings = settings.replace(there, here)
        (node.base / "rabbitmq.conf").write_text(settings)
        (node.base / "enabled_plugins").write_bytes(files["rabbitmq/enabled_plugins"])
        node.amqp_port = node.amqps_port  # the only one it listens on
        node.start()
        with Management(node.management_url) as management:
            assert apply_members(management, "fl", MEMBERS).changes
            assert apply_members(management, "fl", MEMBERS).changes == ()
    finally:
        node.close()


@pytest.mark.long
def test_a_broker_that_loads_the_definitions_when_it_starts_needs_nothing_more(tmp_path: Path) -> None:
    file = tmp_path / "definitions.json"
    whole = broker_definitions("fl", MEMBERS)
    administrator = {"name": "fledge", "password": "s3cr:t/@word", "tags": "administrator"}
    file.write_text(json.dumps(whole | {"users": [*whole["users"], administrator]}))
    with (
        node_with([f"load_definitions = {file}"]) as node,
        Management(node.management_url) as management,
    ):
        assert apply_members(management, "fl", MEMBERS, dry_run=True).changes == ()
