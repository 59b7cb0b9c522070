"""Every participant's own certificate, tried against everything that is not its own, on a broker as it is deployed.

What is refused is refused by RabbitMQ itself: nothing of fledge stands between the certificate and the server.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
import urllib3
from pika.exceptions import AMQPConnectionError

from broker.transport.rabbitmq.amqp import AmqpUrl, parse_amqp_url
from broker.transport.rabbitmq.probe import DONE, REFUSED, Probe, find_queue, mechanisms, publish, read
from broker.transport.rabbitmq.transport import RabbitTransport
from deploy.servers.apply import Management, apply_members, cut_off
from deploy.servers.gitops import broker_definitions
from deploy.servers.members import members_of
from fledge.doctor.checks.permissions import Try, forbidden, needed, own
from protocol.errors import NotAllowed, TransportError
from protocol.keys import Identity, Role
from protocol.registry import sign_registry
from protocol.topology import AGGREGATOR
from tests.support.certificates import make_authority, make_certificate
from tests.support.members import registry
from tests.support.rabbit import RabbitNode, require_rabbit
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers

VHOST = "fl"
REGISTRY = registry("site-a", "site-ab", "site-c", operators=("ada", "bob"))
MEMBERS = members_of(REGISTRY)
PEOPLE = [(entry.name, entry.role) for entry in REGISTRY.entries]
OWN = {name: own(role, name, MEMBERS.topology) for name, role in PEOPLE}
TRIED = ("site-a", "ada", AGGREGATOR)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing. Run: apt-get install -y openssl")
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "ca")
    make_authority(folder, "other")
    make_certificate(folder, "server", authority="ca", usage="serverAuth")
    for name, _ in PEOPLE:
        make_certificate(folder, name, authority="ca", usage="clientAuth")
    make_certificate(folder, "watcher", authority="ca", usage="clientAuth")
    make_certificate(folder, "stranger", authority="other", usage="clientAuth", common_name="site-a")
    return folder


@pytest.fixture(scope="module")
def node(certificates: Path) -> Iterator[RabbitNode]:
    require_rabbit()
    node = RabbitNode(tls=certificates, external_only=True)
    try:
        node.start()
        with Management(node.management_url) as management:
            apply_members(management, VHOST, MEMBERS)
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def probes(node: RabbitNode, certificates: Path) -> Iterator[dict[str, Probe]]:
    """One connection for each participant that is tried."""
    opened = {name: Probe(url(node, certificates, name)) for name in TRIED}
    yield opened
    for probe in opened.values():
        probe.close()


def url(node: RabbitNode, folder: Path, name: str) -> AmqpUrl:
    files = f"cacertfile={folder}/ca.pem&certfile={folder}/{name}.pem&keyfile={folder}/{name}.key"
    return parse_amqp_url(f"amqps://127.0.0.1:{node.amqps_port}/{VHOST}?{files}")


@pytest.fixture(scope="module")
def counting(node: RabbitNode, certificates: Path) -> Iterator[Callable[[], dict[str, int]]]:
    """How many messages each queue holds just now, of those that are not empty; lists of the broker lag behind.

    Newer brokers tell that only who may do something with the queue, so it is asked by somebody who may read all.
    """
    node.api("PUT", "users", "watcher", body={"password_hash": "", "tags": ""})
    node.api("PUT", "permissions", VHOST, "watcher", body={"configure": "^$", "write": "^$", "read": ".*"})
    context = url(node, certificates, "watcher").tls_context()
    assert context is not None
    parameters = pika.ConnectionParameters(
        "127.0.0.1",
        node.amqps_port,
        VHOST,
        pika.credentials.ExternalCredentials(),
        ssl_options=pika.SSLOptions(context, "127.0.0.1"),
    )
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()

    def count() -> dict[str, int]:
        names = [queue.name for queue in MEMBERS.topology.queues]
        found = {name: channel.queue_declare(name, passive=True).method.message_count for name in names}
        return {name: messages for name, messages in found.items() if messages}

    yield count
    connection.close()


def cases(kind: str) -> list[pytest.param]:
    """All tries of all who are tried, each a case of its own."""
    made = []
    for name in TRIED:
        tries = needed(OWN[name]) if kind == "needed" else forbidden(OWN[name], MEMBERS.topology)
        made += [pytest.param(name, one, id=f"{name}: {one.code} {one.operation.what}") for one in tries]
    return made


@pytest.mark.parametrize(("name", "attempt"), cases("needed"))
def test_what_a_participant_needs_works(probes: dict[str, Probe], name: str, attempt: Try) -> None:
    assert probes[name].attempt(attempt.operation).code == attempt.answer


@pytest.mark.parametrize(("name", "attempt"), cases("forbidden"))
def test_the_server_itself_refuses(probes: dict[str, Probe], name: str, attempt: Try) -> None:
    reply = attempt.on(probes[name])
    assert reply.code == attempt.answer, reply
    if attempt.code != "user_id":
        assert re.search("ACCESS_REFUSED|access to .* refused", reply.text), reply


def test_all_queues_and_exchanges_of_the_federation_are_tried() -> None:
    tried = " ".join(one.operation.what for one in forbidden(OWN["site-a"], MEMBERS.topology))
    for thing in (*MEMBERS.topology.queues, *MEMBERS.topology.exchanges):
        verbs = ("read queue", "publish to exchange", "delete queue", "delete exchange", "bind queue")
        assert any(f"{verb} {thing.name}" in tried for verb in verbs), thing.name


def test_what_was_tried_left_nothing_behind(node: RabbitNode, counting: Callable[[], dict[str, int]]) -> None:
    held = node.api("GET", "definitions", VHOST)
    assert {queue["name"] for queue in held["queues"]} == {queue.name for queue in MEMBERS.topology.queues}
    assert {exchange["name"] for exchange in held["exchanges"]} == {e.name for e in MEMBERS.topology.exchanges}
    assert counting() == {}


def test_copies_by_header_go_nowhere_but_the_senders_own_queue(
    node: RabbitNode, probes: dict[str, Probe], counting: Callable[[], dict[str, int]]
) -> None:
    everywhere = tuple(queue.name for queue in MEMBERS.topology.queues) + tuple(name for name, _ in PEOPLE)
    assert probes["site-a"].attempt(publish("up.site-a", "in.site-c", copies=everywhere)).code == DONE
    assert counting() == {"in.site-a": 1}
    node.api("DELETE", "queues", VHOST, "in.site-a", "contents")


def test_an_operator_reaches_the_aggregators_inbox_and_no_other(
    node: RabbitNode, probes: dict[str, Probe], counting: Callable[[], dict[str, int]]
) -> None:
    for name, _ in PEOPLE:
        assert probes["ada"].attempt(publish("direct", name)).code == REFUSED
        assert probes["ada"].attempt(publish("", f"inbox.{name}")).code == REFUSED
    assert counting() == {}
    assert probes["ada"].attempt(publish("orders", "site-a")).code == DONE
    assert counting() == {"inbox.aggregator": 1}
    assert probes[AGGREGATOR].attempt(read("inbox.aggregator")).code == DONE
    node.api("DELETE", "queues", VHOST, "inbox.aggregator", "contents")


def test_certificates_are_the_only_way_in(node: RabbitNode, certificates: Path) -> None:
    good = url(node, certificates, "site-a")
    context = good.tls_context()
    assert context is not None
    raw = socket.create_connection(("127.0.0.1", node.amqps_port), 10)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
        assert mechanisms(sock) == ("EXTERNAL",)


@pytest.mark.parametrize("login", [("site-a", ""), ("fledge", "s3cr:t/@word"), ("guest", "guest")])
def test_no_password_logs_in(node: RabbitNode, certificates: Path, login: tuple[str, str]) -> None:
    context = url(node, certificates, "site-a").tls_context()
    assert context is not None
    parameters = pika.ConnectionParameters(
        "127.0.0.1",
        node.amqps_port,
        VHOST,
        pika.PlainCredentials(*login),
        ssl_options=pika.SSLOptions(context, "127.0.0.1"),
    )
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(parameters)


def test_a_certificate_of_another_authority_is_refused(node: RabbitNode, certificates: Path) -> None:
    with pytest.raises(TransportError, match="certificate was refused"):
        Probe(url(node, certificates, "stranger"))


def test_another_vhost_is_refused(node: RabbitNode, certificates: Path) -> None:
    with pytest.raises(NotAllowed, match="vhost refused"):
        Probe(dataclasses.replace(url(node, certificates, "site-a"), vhost="/"))


@pytest.mark.parametrize("path", ["overview", "users", "queues", "definitions", "whoami", f"queues/{VHOST}/in.site-a"])
def test_the_management_interface_is_closed_to_participants(node: RabbitNode, path: str) -> None:
    for password in ("", "site-a"):
        headers = urllib3.make_headers(basic_auth=f"site-a:{password}")
        with urllib3.PoolManager() as pool:
            asked = pool.request("GET", f"http://127.0.0.1:{node.management_port}/api/{path}", headers=headers)
        assert asked.status == 401


def test_more_connections_than_allowed_are_refused(node: RabbitNode, certificates: Path) -> None:
    limit = next(login.connections for login in MEMBERS.logins if login.name == "site-c")
    opened = []
    try:
        for _ in range(limit):
            opened.append(Probe(url(node, certificates, "site-c")))
        with pytest.raises(TransportError):
            opened.append(Probe(url(node, certificates, "site-c")))
    finally:
        for probe in opened:
            probe.close()


def test_deploying_again_changes_nothing_and_a_dry_run_only_looks(node: RabbitNode) -> None:
    with Management(node.management_url) as management:
        assert apply_members(management, VHOST, MEMBERS).changes == ()
        later = members_of(REGISTRY.with_entry(Identity.generate("site-d", Role.SITE).public))
        todo = apply_members(management, VHOST, later, dry_run=True)
        assert "make user site-d" in [str(change) for change in todo.changes]
        assert apply_members(management, VHOST, later, dry_run=True) == todo


def test_the_definitions_file_makes_the_same(node: RabbitNode) -> None:
    with Management(node.management_url) as management:
        management.call("POST", "definitions", body=broker_definitions("gitops", MEMBERS))
        assert apply_members(management, "gitops", MEMBERS, dry_run=True).changes == ()
        management.call("DELETE", "vhosts", "gitops")


def fledge(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fledge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        timeout=120,
    )


def test_the_command_deploys_once_and_shows_no_password(node: RabbitNode, tmp_path: Path) -> None:
    root = Identity.generate("root", Role.ROOT)
    (tmp_path / "registry.bin").write_bytes(sign_registry(REGISTRY, root, "fl", b"m" * 16))
    whose = ["--registry", tmp_path / "registry.bin", "--root", bytes(root.sign.verify_key).hex()]
    whose += ["--federation", "fl", "--vhost", "command"]
    reach = {"FLEDGE_MANAGEMENT": node.management_url}
    first = fledge("deploy", "broker", *whose, "--dry-run", **reach)
    assert first.stdout.splitlines()[0] == "would make vhost command", first.stderr
    done = json.loads(fledge("deploy", "broker", *whose, "--json", **reach).stdout)
    assert "make queue inbox.ada" in done["changes"]
    again = fledge("deploy", "broker", *whose, **reach)
    assert again.stdout == f"vhost command: nothing to change for {len(PEOPLE)} members\n", again.stderr
    given = fledge("deploy", "broker", *whose, "--management", node.management_url)
    assert given.returncode == 2
    assert "put the URL into FLEDGE_MANAGEMENT" in given.stderr
    assert "s3cr" not in first.stdout + again.stdout + given.stderr
    node.api("DELETE", "vhosts", "command")


def test_the_files_are_written_by_the_command_and_do_not_change(tmp_path: Path) -> None:
    root = Identity.generate("root", Role.ROOT)
    (tmp_path / "registry.bin").write_bytes(sign_registry(REGISTRY, root, "fl", b"m" * 16))
    whose = ["--registry", tmp_path / "registry.bin", "--root", bytes(root.sign.verify_key).hex()]
    whose += ["--federation", "fl", "--vhost", "fl", "--bucket", "fledge", "-o", tmp_path / "out"]
    assert "wrote s3/site-site-a.json" in fledge("deploy", "files", *whose).stdout
    assert (
        fledge("deploy", "files", *whose).stdout
        == f"{tmp_path / 'out'}: nothing to change; RabbitMQ listens on port 5671\n"
    )
    stranger = fledge("deploy", "files", *whose, "--federation", "other")
    assert stranger.returncode == 1
    assert len(stranger.stderr.splitlines()) == 1


def test_a_site_that_is_cut_off_is_gone_at_once_and_does_not_come_back(node: RabbitNode, certificates: Path) -> None:
    transport = RabbitTransport(str_url(node, certificates, "site-ab"))
    try:
        assert transport.depth("inbox.site-ab") == 0
        with Probe(url(node, certificates, "site-ab")) as probe, Management(node.management_url) as management:
            started = time.monotonic()
            cut_off(management, VHOST, "site-ab")
            eventually(lambda: not probe.up, "the connection ends")
            with pytest.raises(NotAllowed, match="login refused"):
                Probe(url(node, certificates, "site-ab"))
            assert time.monotonic() - started < 5
            cut_off(management, VHOST, "site-ab")
        with pytest.raises(NotAllowed):
            transport.depth("inbox.site-ab")
    finally:
        transport.close()
    with Probe(url(node, certificates, "site-a")) as other:
        assert other.attempt(find_queue("inbox.site-a")).code == DONE


def test_deploying_with_the_revocation_keeps_it_out_and_without_lets_it_in_again(node: RabbitNode) -> None:
    with Management(node.management_url) as management:
        cut_off(management, VHOST, "site-ab")
        assert "make user site-ab" in [str(change) for change in apply_members(management, VHOST, MEMBERS).changes]
        revoked = members_of(REGISTRY.revoke("site-ab"))
        changes = [str(change) for change in apply_members(management, VHOST, revoked).changes]
        assert changes == ["remove user site-ab", "remove exchange up.site-ab"]
        assert management.call("GET", "users", "site-ab", missing_ok=True) is None


def test_deploying_takes_away_what_operators_were_once_allowed(node: RabbitNode, certificates: Path) -> None:
    """Operators wrote to `direct` before they had an exchange of their own."""
    old = {"configure": "^$", "write": "^direct$", "read": r"^inbox\.bob$"}
    with Management(node.management_url) as management:
        apply_members(management, VHOST, MEMBERS)
        node.api("PUT", "permissions", VHOST, "bob", body=old)
        changes = [str(change) for change in apply_members(management, VHOST, MEMBERS).changes]
        assert changes == ["change bob's permissions"]
    with Probe(url(node, certificates, "bob")) as probe:
        assert probe.attempt(publish("direct", "site-a")).code == REFUSED


def test_a_hole_is_seen(node: RabbitNode, certificates: Path) -> None:
    wide = {"configure": ".*", "write": ".*", "read": ".*"}
    node.api("PUT", "permissions", VHOST, "bob", body=wide)
    with Probe(url(node, certificates, "bob")) as probe:
        held = [one for one in forbidden(OWN["bob"], MEMBERS.topology) if one.code != "user_id"]
        replies = {one.operation.what: one.on(probe).code for one in held}
    assert [what for what, code in replies.items() if code == 403 and "exchange amq." not in what] == []
    with Management(node.management_url) as management:
        apply_members(management, VHOST, MEMBERS)


def str_url(node: RabbitNode, folder: Path, name: str) -> str:
    files = f"cacertfile={folder}/ca.pem&certfile={folder}/{name}.pem&keyfile={folder}/{name}.key"
    return f"amqps://127.0.0.1:{node.amqps_port}/{VHOST}?{files}"
