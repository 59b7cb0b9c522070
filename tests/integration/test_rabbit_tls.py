"""The way to RabbitMQ over TLS: whom the client believes, and how it logs in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.rabbit import RabbitTransport
from protocol.errors import ConfigError, NotAllowed
from tests.integration.test_rabbit_faults import FLOW, eventually
from tests.support.certificates import make_authority, make_certificate
from tests.support.collect import Collector
from tests.support.rabbit import RabbitNode
from tests.support.rabbit_fixtures import require_rabbit

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing. Run: apt-get install -y openssl")
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "ca")
    make_authority(folder, "other")
    make_certificate(folder, "server", authority="ca", usage="serverAuth")
    make_certificate(folder, "site-a", authority="ca", usage="clientAuth")
    make_certificate(folder, "stranger", authority="other", usage="clientAuth", common_name="site-a")
    return folder


@pytest.fixture(scope="module")
def node(certificates: Path) -> Iterator[RabbitNode]:
    require_rabbit()
    node = RabbitNode(tls=certificates)
    try:
        node.start()
        node.api("PUT", "users", "site-a", body={"password_hash": "", "tags": ""})
        node.api("PUT", "permissions", "/", "site-a", body={"configure": ".*", "write": ".*", "read": ".*"})
        yield node
    finally:
        node.close()


def url(node: RabbitNode, certificates: Path, *, ca: str = "ca", client: str | None = "site-a", login: str = "") -> str:
    options = f"cacertfile={certificates}/{ca}.pem"
    if client is not None:
        options += f"&certfile={certificates}/{client}.pem&keyfile={certificates}/{client}.key"
    return f"amqps://{login}127.0.0.1:{node.amqps_port}/?{options}"


def test_a_client_certificate_is_the_login(node: RabbitNode, certificates: Path) -> None:
    transport = RabbitTransport(url(node, certificates))
    try:
        transport.declare(FLOW)
        got = Collector()
        transport.consume("in.q", got)
        transport.publish("x", "", b"x" * 200_000).result(30)
        assert len(got.wait_for(1)[0].body) == 200_000
        eventually(lambda: {c.get("user") for c in node.api("GET", "connections")} == {"site-a"}, "site-a is connected")
    finally:
        transport.close()


def test_a_password_works_over_tls_too(node: RabbitNode, certificates: Path) -> None:
    transport = RabbitTransport(url(node, certificates, login="fledge:s3cr%3At%2F%40word@"))
    try:
        transport.declare(FLOW)
    finally:
        transport.close()


def test_a_certificate_of_an_unknown_user_is_refused_by_name(node: RabbitNode, certificates: Path) -> None:
    make_certificate(certificates, "nobody", authority="ca", usage="clientAuth")
    transport = RabbitTransport(url(node, certificates, client="nobody"))
    try:
        with pytest.raises(NotAllowed, match="login refused"):
            transport.depth("in.q")
    finally:
        transport.close()


@pytest.mark.parametrize(
    ("ca", "client", "words"),
    [
        ("other", "site-a", "certificate verify failed"),
        ("ca", None, "our certificate was refused"),
        ("ca", "stranger", "our certificate was refused"),
    ],
    ids=["server of another authority", "no client certificate", "client of another authority"],
)
def test_a_wrong_certificate_is_told_in_words(
    node: RabbitNode, certificates: Path, ca: str, client: str | None, words: str
) -> None:
    transport = RabbitTransport(url(node, certificates, ca=ca, client=client))
    try:
        with capture_logs() as logs:
            transport.on_connected(lambda: None)
            eventually(lambda: any(words in str(entry.get("reason")) for entry in logs), f"the log says {words!r}")
    finally:
        transport.close()


def test_a_missing_certificate_file_is_told_when_opening(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ghost\.pem"):
        RabbitTransport(f"amqps://broker.example/?cacertfile={tmp_path}/ghost.pem")
