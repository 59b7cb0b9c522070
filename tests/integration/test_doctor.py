"""The doctor on real servers: what works is called so, and of what does not the first hop is named."""

from __future__ import annotations

import json
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.intake import Intake
from broker.transport.base import Delivery
from deploy.servers.apply import Management, apply_members
from deploy.servers.members import members_of
from deploy.servers.rabbitmq import site_permissions
from fledge.connections import broker_of
from fledge.doctor.adversarial import attack
from fledge.doctor.examine import examine
from fledge.doctor.findings import Finding, Verdict
from fledge.doctor.place import read_kit, read_place
from fledge.doctor.report import DoctorReport
from protocol.topology import event_queue
from tests.support.connect_proxy import ConnectProxy
from tests.support.kits import Kits
from tests.support.ports import free_ports
from tests.support.rabbit import RabbitNode, require_rabbit
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.servers

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def node(kits: Kits) -> Iterator[RabbitNode]:
    require_rabbit()
    node = RabbitNode(tls=kits.tls, external_only=True)
    try:
        node.start()
        with Management(node.management_url) as management:
            apply_members(management, "fl", members_of(kits.registry))
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def store(kits: Kits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("store")
    server = S3Server(folder / "objects", folder / "log", tls=(kits.tls / "server.pem", kits.tls / "server.key"))
    (folder / "objects" / "fledge").mkdir()
    yield server
    server.stop()


@pytest.fixture
def make(kits: Kits, node: RabbitNode, store: S3Server, tmp_path: Path) -> Make:
    """Make a kit that works, unless something else is said."""

    def one(name: str = "site-a", **other: str) -> Path:
        servers = {
            "broker": f"amqps://127.0.0.1:{node.amqps_port}/fl",
            "store": f"s3s://127.0.0.1:{store.port}/fledge",
        }
        kit = kits.make(name, tmp_path / name, **(servers | other))
        kits.credentials(kit, ACCESS_KEY, SECRET_KEY)
        return kit

    return one


def look(kit: Path, **environ: str) -> DoctorReport:
    return examine(read_kit(kit), environ, machine=False)


def found(report: DoctorReport, check: str) -> Finding:
    return next(finding for finding in report.findings if finding.check == check)


def first(report: DoctorReport) -> tuple[str, str]:
    """The first thing in the way."""
    assert report.blocked is not None, report.lines()
    return report.blocked.check, report.blocked.code


@contextmanager
def inspector(kits: Kits) -> Iterator[int]:
    """What stands in a hospital's network and answers TLS with a certificate of its own; the port it listens on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kits.tls / "inspector.pem", kits.tls / "inspector.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(sock, server_side=True) as inside:
                    inside.recv(1)
            except OSError:
                sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.parametrize("name", ["site-a", "ada", "aggregator"])
def test_everybody_who_can_take_part_is_told_so(make: Make, name: str) -> None:
    report = look(make(name, extra='access = "credentials"' if name == "ada" else ""))
    assert report.ok, report.lines()
    assert {finding.verdict for finding in report.findings} == {Verdict.GOOD}, report.lines()
    assert report.letter == ""
    checks = [finding.check for finding in report.findings]
    for check in ("certificate", "broker.tcp", "broker.tls", "broker.login", "broker.vhost", "broker.rights"):
        assert check in checks
    for check in ("store.tcp", "store.tls", "store.answer", "store.clock"):
        assert check in checks
    assert ("store.read" in checks) is (name != "ada")
    assert "store.write" in checks


def test_an_operators_way_to_the_store_is_walked_as_the_console_goes_it(make: Make, kits: Kits, tmp_path: Path) -> None:
    signed = look(make("ada"))
    assert signed.ok, signed.lines()
    assert (found(signed, "store.tls").verdict, found(signed, "store.read").code) == (Verdict.GOOD, "presigned")
    (port,) = free_ports(1)
    kit = tmp_path / "ada"
    elsewhere = {"FLEDGE_STORE": f"s3s://127.0.0.1:{port}/fledge"}
    blocked = examine(read_place(kit / "operator.toml", elsewhere), {}, machine=False)
    assert first(blocked) == ("store.tcp", "refused")
    old = kits.make("ada", tmp_path / "old", broker="amqps://broker.invalid:5671/fl", store="")
    assert "fledge provision --reissue" in found(look(old), "files.store").advice


def test_a_name_that_nobody_knows_is_named(make: Make) -> None:
    report = look(make(broker="amqps://broker.invalid:5671/fl"))
    assert first(report)[0] == "broker.dns"
    assert "outgoing TCP to broker.invalid, port 5671, AMQP 0-9-1 inside TLS 1.3" in report.letter
    assert found(report, "store.read").verdict == Verdict.GOOD, "the other connection is looked at all the same"


def test_a_closed_port_is_named_and_the_firewall_team_gets_a_letter(make: Make) -> None:
    (port,) = free_ports(1)
    report = look(make(broker=f"amqps://127.0.0.1:{port}/fl"))
    assert first(report) == ("broker.tcp", "refused")
    assert f"port {port}" in report.letter
    assert "nothing has to be let" in report.letter


def test_a_proxy_that_is_not_there_is_named(make: Make) -> None:
    (port,) = free_ports(1)
    report = look(make(extra=f'proxy = "http://127.0.0.1:{port}"'))
    assert first(report) == ("broker.proxy", "refused")
    assert str(found(report, "broker.proxy").server) in report.letter


def test_the_way_through_a_proxy_is_walked_and_its_refusals_are_told_apart(
    make: Make, node: RabbitNode, store: S3Server
) -> None:
    ports = (node.amqps_port, store.port)
    routes = {f"127.0.0.1:{port}": ("127.0.0.1", port) for port in ports}
    with ConnectProxy(routes, login=("site", "s3cret")) as proxy:
        good = look(make(extra=f'proxy = "http://site:s3cret@127.0.0.1:{proxy.port}"'))
        unknown = look(make("site-b", extra=f'proxy = "http://127.0.0.1:{proxy.port}"'))
    assert good.ok, good.lines()
    assert found(good, "broker.proxy").verdict == Verdict.GOOD
    assert first(unknown) == ("broker.proxy", "login")
    with ConnectProxy({}) as proxy:
        report = look(make("aggregator", extra=f'proxy = "http://127.0.0.1:{proxy.port}"'))
    assert first(report) == ("broker.proxy", "refused")
    assert f"outgoing TCP to 127.0.0.1, port {node.amqps_port}" in report.letter
    assert "s3cret" not in json.dumps([good.document(), unknown.document()])


def test_tls_inspection_is_called_by_its_name(make: Make, kits: Kits) -> None:
    with inspector(kits) as port:
        report = look(make(broker=f"amqps://127.0.0.1:{port}/fl"))
    assert first(report) == ("broker.tls", "intercepted")
    assert "CN=inspector TLS CA" in report.summary
    assert "exempt" in report.letter


def test_a_port_without_tls_is_named(make: Make, node: RabbitNode) -> None:
    assert first(look(make(broker=f"amqps://127.0.0.1:{node.amqp_port}/fl"))) == ("broker.tls", "no_tls")


def test_a_certificate_of_another_authority_is_named_here_and_by_the_broker(make: Make, kits: Kits) -> None:
    kits.certify("site-a", file="stranger", authority="other")
    report = look(make(certificate="stranger"))
    assert first(report) == ("certificate", "other_authority")
    assert (found(report, "broker.certificate").verdict, found(report, "broker.certificate").code) == (
        Verdict.BAD,
        "other_authority",
    )


def test_an_expired_certificate_is_named_here_and_by_the_broker(make: Make, kits: Kits) -> None:
    kits.certify("site-a", file="old", age_days=30, days=20)
    report = look(make(certificate="old"))
    assert first(report) == ("certificate", "expired")
    assert "fledge provision --renew site-a" in found(report, "certificate").advice
    assert found(report, "broker.certificate").code == "expired"


def test_a_participant_that_was_cut_off_is_told(make: Make, node: RabbitNode, kits: Kits) -> None:
    kit = make("site-b")
    node.api("DELETE", "users", "site-b")
    try:
        assert first(look(kit)) == ("broker.login", "refused")
    finally:
        _deploy(node, kits)


def test_a_vhost_that_is_not_there_or_not_ours_is_named(make: Make, node: RabbitNode) -> None:
    kit = make(broker=f"amqps://127.0.0.1:{node.amqps_port}/other")
    assert first(look(kit)) == ("broker.vhost", "refused")


def test_missing_queues_and_rights_are_told_apart(make: Make, node: RabbitNode, kits: Kits) -> None:
    kit = make("site-b")
    node.api("DELETE", "queues", "fl", "down.site-b")
    node.api("PUT", "permissions", "fl", "site-b", body=site_permissions("site-b") | {"write": "^ev.site-b$"})
    try:
        report = look(kit)
        assert first(report) == ("broker.queues", "missing")
        assert "queue down.site-b" in found(report, "broker.queues").cause
        assert "exchange up.site-b" in found(report, "broker.rights").cause
    finally:
        _deploy(node, kits)


def _deploy(node: RabbitNode, kits: Kits) -> None:
    with Management(node.management_url) as management:
        apply_members(management, "fl", members_of(kits.registry))


@pytest.mark.parametrize("keys", [("nobody", SECRET_KEY), (ACCESS_KEY, "wrong")], ids=["access", "secret"])
def test_wrong_keys_of_the_store_are_named_and_not_shown(make: Make, kits: Kits, keys: tuple[str, str]) -> None:
    kit = make()
    kits.credentials(kit, *keys)
    report = look(kit)
    assert first(report)[0] == "store.read"
    assert "wrong" not in json.dumps(report.document())


def test_nothing_private_is_in_what_may_be_sent(make: Make, tmp_path: Path, node: RabbitNode) -> None:
    (port,) = free_ports(1)
    report = look(make(certificate="site-b", broker=f"amqps://127.0.0.1:{port}/fl"))
    shared = report.shareable()
    assert len({len(column) for column in shared.values()}) == 1
    assert str(tmp_path) not in json.dumps(shared)
    assert "other_name" in shared["code"]
    assert f"127.0.0.1 port {port}" in shared["server"]


def fledge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fledge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        timeout=120,
    )


def test_the_command_tells_by_its_exit_code_and_shows_no_secret(make: Make) -> None:
    (port,) = free_ports(1)
    blocked = fledge("doctor", "--kit", make(broker=f"amqps://127.0.0.1:{port}/fl"), "--json")
    assert blocked.returncode == 1, blocked.stderr
    assert json.loads(blocked.stdout)["blocked"] == "broker.tcp"
    assert blocked.stderr == ""
    shown = fledge("doctor", "--config", make("aggregator") / "aggregator.toml")
    assert shown.returncode == 0, shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("aggregator: nothing is in the way")
    assert SECRET_KEY not in blocked.stdout + shown.stdout


def test_the_hub_gets_what_the_command_found_at_a_site(make: Make, kits: Kits) -> None:
    kit, hub = make("site-b"), read_kit(make("aggregator"))
    kits.credentials(kit, "nobody", SECRET_KEY)
    told = fledge("doctor", "--kit", kit, "--json")
    assert told.returncode == 1, told.stderr
    assert json.loads(told.stdout)["sent"] is True, told.stdout
    silent = fledge("doctor", "--kit", kit, "--no-send")
    assert "the hub: the checks" not in silent.stdout
    assert "operators have no queue" in fledge("doctor", "--kit", make("ada")).stdout
    came: queue.Queue[Delivery] = queue.Queue()
    with broker_of(hub.config, hub.base, "aggregator") as transport:
        transport.consume(event_queue("site-b"), came.put)
        delivery = came.get(timeout=30)
        _, sign = Intake("fl", kits.identities["aggregator"], kits.registry).live("site-b", delivery, delivery.body)
        delivery.ack()
    assert came.empty()
    assert sign is not None
    assert sign.event.code == "store.read:keys"
    assert sign.event.metrics["doctor.broker.rights"] == 1.0


def test_no_forbidden_thing_works_for_anybody_on_this_broker(make: Make) -> None:
    for name in ("site-a", "ada", "aggregator"):
        report = attack(read_kit(make(name)), {})
        on_broker = [f for f in report.findings if f.check.startswith("attack.") and not _of_store(f)]
        assert {finding.verdict for finding in on_broker} == {Verdict.GOOD}, report.lines()
        assert sum(finding.number or 0 for finding in on_broker) > 50


def _of_store(finding: Finding) -> bool:
    return finding.check in (
        "attack.unsigned",
        "attack.credentials",
        "attack.every_key",
        "attack.urls",
        "attack.signers",
    )


def test_a_hole_in_the_broker_fails_loudly(make: Make, node: RabbitNode, kits: Kits) -> None:
    kit = make("ada")
    node.api("PUT", "permissions", "fl", "ada", body={"configure": "^$", "write": "^direct$", "read": ".*"})
    try:
        report = attack(read_kit(kit), {})
        assert first(report) == ("attack.read", "allowed")
        assert "WORKED: read queue dead.letters" in report.summary
    finally:
        _deploy(node, kits)


def test_rclone_is_unsafe_with_credentials(make: Make) -> None:
    report = attack(read_kit(make()), {})
    assert (found(report, "attack.credentials").code, found(report, "attack.every_key").code) == ("allowed", "unsafe")
    for word in ("list everything", "get up/site-b", "put models"):
        assert word in found(report, "attack.credentials").cause
    assert found(report, "attack.unsigned").verdict == Verdict.GOOD
    assert "presigned" in found(report, "attack.every_key").advice
    hub = attack(read_kit(make("aggregator")), {})
    assert first(hub) == ("attack.every_key", "unsafe")


def test_rclone_is_safe_with_signed_urls(make: Make, kits: Kits) -> None:
    kit = make(extra='access = "presigned"')
    assert found(look(kit), "store.read").code == "presigned"
    site = attack(read_kit(kit), {})
    assert site.ok, site.lines()
    kit = make("aggregator")
    kits.credentials(kit, ACCESS_KEY, SECRET_KEY, signers=True)
    hub = attack(read_kit(kit), {})
    assert hub.ok, hub.lines()
    assert found(hub, "attack.urls").verdict == Verdict.GOOD
    assert found(hub, "attack.signers").verdict == Verdict.WARNING


def test_what_was_tried_leaves_no_object_but_where_its_owner_may_put_it(make: Make, store: S3Server) -> None:
    attack(read_kit(make()), {})
    look(make("site-b"))
    left = {
        path.relative_to(store.directory / "fledge").parts[0]
        for path in (store.directory / "fledge").rglob("*")
        if path.is_file()
    }
    assert left <= {"up", "heads", "bundles"}


def test_the_command_fails_when_something_works(make: Make) -> None:
    done = fledge("doctor", "--adversarial", "--kit", make())
    assert done.returncode == 1
    assert "WORKED" in done.stdout
