"""One authority, one RabbitMQ and one S3 server that demand client certificates; loaded as a plugin by conftest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.net.tls import Tls
from tests.support.certificates import make_authority, make_certificate
from tests.support.rabbit import RabbitNode
from tests.support.rabbit_fixtures import require_rabbit
from tests.support.s3 import S3Server


@dataclass(frozen=True, slots=True)
class Pki:
    """A folder with `NAME.pem` and `NAME.key` of the authorities ca and other, a server, site-a, and a stranger."""

    folder: Path

    def tls(self, client: str = "site-a", *, ca: str = "ca") -> Tls:
        """The files of a client who believes `ca`."""
        return Tls(
            ca=str(self.folder / f"{ca}.pem"),
            cert=str(self.folder / f"{client}.pem"),
            key=str(self.folder / f"{client}.key"),
        )


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """The certificates, made once."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is missing. Run: apt-get install -y openssl")
    folder = tmp_path_factory.mktemp("pki")
    make_authority(folder, "ca")
    make_authority(folder, "other")
    names = ("broker.example", "store.example")
    make_certificate(folder, "server", authority="ca", usage="serverAuth", names=names)
    make_certificate(folder, "proxy", authority="other", usage="serverAuth")
    make_certificate(folder, "site-a", authority="ca", usage="clientAuth")
    make_certificate(folder, "stranger", authority="other", usage="clientAuth", common_name="site-a")
    return Pki(folder)


@pytest.fixture(scope="session")
def tls_node(pki: Pki) -> Iterator[RabbitNode]:
    """RabbitMQ for site-a, who logs in by certificate."""
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
    folder = tmp_path_factory.mktemp("tls-s3")
    files = (pki.folder / "server.pem", pki.folder / "server.key")
    server = S3Server(folder / "objects", folder / "log", tls=files, client_ca=pki.folder / "ca.pem")
    yield server
    server.stop()
