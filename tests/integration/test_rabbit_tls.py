"""The way to RabbitMQ over TLS: whom the client believes, and how it logs in."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.transport.rabbitmq.transport import RabbitTransport
from protocol.errors import ConfigError, NotAllowed
from tests.support.certificates import Pki, make_certificate
from tests.support.collect import Collector
from tests.support.rabbit import RabbitNode
from tests.support.traffic import FLOW
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers


def url(node: RabbitNode, pki: Pki, *, ca: str = "ca", client: str | None = "site-a", login: str = "") -> str:
    options = f"cacertfile={pki.folder}/{ca}.pem"
    if client is not None:
        options += f"&certfile={pki.folder}/{client}.pem&keyfile={pki.folder}/{client}.key"
    return f"amqps://{login}127.0.0.1:{node.amqps_port}/?{options}"


def test_a_client_certificate_is_the_login(pki: Pki, tls_node: RabbitNode) -> None:
    transport = RabbitTransport(url(tls_node, pki))
    try:
        transport.declare(FLOW)
        got = Collector()
        transport.consume("in.q", got)
        transport.publish("x", "", b"x" * 200_000).result(30)
        assert len(got.wait_for(1)[0].body) == 200_000
        eventually(
            lambda: {c.get("user") for c in tls_node.api("GET", "connections")} == {"site-a"}, "site-a is connected"
        )
    finally:
        transport.close()


def test_a_password_works_over_tls_too(pki: Pki, tls_node: RabbitNode) -> None:
    transport = RabbitTransport(url(tls_node, pki, login="fledge:s3cr%3At%2F%40word@"))
    try:
        transport.declare(FLOW)
    finally:
        transport.close()


def test_a_certificate_of_an_unknown_user_is_refused_by_name(pki: Pki, tls_node: RabbitNode) -> None:
    make_certificate(pki.folder, "nobody", authority="ca", usage="clientAuth")
    transport = RabbitTransport(url(tls_node, pki, client="nobody"))
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
    pki: Pki, tls_node: RabbitNode, ca: str, client: str | None, words: str
) -> None:
    transport = RabbitTransport(url(tls_node, pki, ca=ca, client=client))
    try:
        with capture_logs() as logs:
            transport.on_connected(lambda: None)
            eventually(lambda: any(words in str(entry.get("reason")) for entry in logs), f"the log says {words!r}")
    finally:
        transport.close()


def test_a_missing_certificate_file_is_told_when_opening(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ghost\.pem"):
        RabbitTransport(f"amqps://broker.example/?cacertfile={tmp_path}/ghost.pem")
