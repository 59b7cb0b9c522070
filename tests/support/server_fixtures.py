"""Fixtures of private servers, each started when a test first asks for it, one of a kind for each test process.

All tests load this module, so it loads what starts servers only when a fixture is used: arithmetic needs no pika.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.certificates import Pki
    from tests.support.lent_buffers import LentBuffers
    from tests.support.rabbit import RabbitNode, RabbitVhost
    from tests.support.s3 import S3Server
    from tests.support.seaweed import SeaweedServer


def pytest_report_header() -> str:
    """Say which RabbitMQ the tests use."""
    from tests.support.rabbit import BIN, installed, release

    return f"RabbitMQ: {release() if installed() else 'none'} in {BIN}"


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> LentBuffers:
    """The process's buffers, watched."""
    from broker.blobs.chunks import BUFFERS
    from tests.support.lent_buffers import LentBuffers

    watched = LentBuffers()
    monkeypatch.setattr(BUFFERS, "take", watched.take)
    monkeypatch.setattr(BUFFERS, "give_back", watched.give_back)
    return watched


@pytest.fixture(scope="session")
def rabbit_node() -> Iterator[RabbitNode]:
    """A node of this test process alone; it is gone afterwards, whatever happens to the process."""
    from tests.support.rabbit import RabbitNode, require_rabbit

    require_rabbit()
    node = RabbitNode()
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture
def rabbit_broker(rabbit_node: RabbitNode) -> Iterator[RabbitVhost]:
    """A vhost of this test alone, behind a fault proxy."""
    from tests.support.rabbit import RabbitVhost

    vhost = RabbitVhost(rabbit_node)
    try:
        yield vhost
    finally:
        vhost.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole session; take a `bucket` of your own and leave the server running."""
    yield from _s3_server(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def private_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of this test's own, to be killed and restarted at will."""
    yield from _s3_server(tmp_path_factory.mktemp("s3"))


def _s3_server(folder: Path) -> Iterator[S3Server]:
    from tests.support.s3 import S3Server

    server = S3Server(folder / "objects", folder / "log")
    yield server
    server.stop()


@pytest.fixture
def bucket() -> str:
    """A bucket name nobody else uses."""
    return f"b{uuid.uuid4().hex[:20]}"


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """One SeaweedFS for the whole session, with a provisioned federation; leave it running, and its bucket empty."""
    yield from _seaweed(tmp_path_factory.mktemp("seaweed"))


@pytest.fixture
def private_seaweed(tmp_path: Path) -> Iterator[SeaweedServer]:
    """A server of this test's own, to be killed and started again."""
    yield from _seaweed(tmp_path)


def _seaweed(folder: Path) -> Iterator[SeaweedServer]:
    from tests.support.ports import free_ports
    from tests.support.seaweed import Provisioned, SeaweedServer, require_seaweed

    require_seaweed()
    (port,) = free_ports(1)
    server = SeaweedServer(Provisioned(folder, port), folder / "data", folder / "log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """One authority and certificates by it and by another, made once."""
    from tests.support.certificates import make_pki

    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing. Run: apt-get install -y openssl")
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def tls_node(pki: Pki) -> Iterator[RabbitNode]:
    """RabbitMQ for site-a, who logs in by certificate."""
    from tests.support.rabbit import RabbitNode, require_rabbit

    require_rabbit()
    node = RabbitNode(tls=pki.folder)
    try:
        node.start()
        node.api("PUT", "users", "site-a", body={"password_hash": "", "tags": ""})
        node.api("PUT", "permissions", "/", "site-a", body={"configure": ".*", "write": ".*", "read": ".*"})
        yield node
    finally:
        node.close()


@pytest.fixture(scope="session")
def tls_store(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that lets in only who has a certificate of the authority."""
    from tests.support.s3 import S3Server

    folder = tmp_path_factory.mktemp("tls-s3")
    files = (pki.folder / "server.pem", pki.folder / "server.key")
    server = S3Server(folder / "objects", folder / "log", tls=files, client_ca=pki.folder / "ca.pem")
    yield server
    server.stop()
