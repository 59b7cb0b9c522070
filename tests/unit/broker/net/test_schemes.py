"""Brokers and stores that other packages bring are opened by their URL's scheme, like ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.blobs.memory import MemoryBlobs
from broker.blobs.open import check_store_url, open_blobs
from broker.net.tls import Tls
from broker.transport.open import check_broker_url, open_transport
from protocol.errors import ConfigError
from tests.support.packages import install

SOURCE = """
from fledge import BlobStore, ConfigError, Scheme
from broker.blobs.memory import MemoryBlobs

seen = []

class Vault(Scheme):
    def check(self, url, *, insecure):
        if url.endswith("/nowhere"):
            raise ConfigError("a vault's URL names a shelf")
        if url.endswith("/broken"):
            raise SystemExit(url)

    def open(self, url, connection):
        seen.append(connection)
        if url.endswith("/broken"):
            raise ValueError(url)
        return object() if url.endswith("/empty") else MemoryBlobs()

class Key:
    pass
"""


@pytest.fixture
def vaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs the package with these schemes of stores."""

    def install_with(**schemes: str) -> None:
        install(tmp_path, monkeypatch, "vaults", {"vaults": SOURCE}, {"fledge.stores": schemes})

    return install_with


def test_a_store_of_another_package_is_opened_by_its_scheme(vaults: Callable[..., None]) -> None:
    vaults(vault="vaults:Vault")
    tls = Tls(ca="ca.pem")
    assert isinstance(open_blobs("vault://shelf/1", insecure=True, tls=tls, proxy="http://proxy:1"), MemoryBlobs)
    import vaults as theirs

    (connection,) = theirs.seen
    assert (connection.insecure, connection.tls, connection.proxy) == (True, tls, "http://proxy:1")


def test_its_urls_are_checked_without_being_opened(vaults: Callable[..., None]) -> None:
    vaults(vault="vaults:Vault")
    check_store_url("vault://shelf/1")
    with pytest.raises(ConfigError, match="names a shelf"):
        check_store_url("vault://shelf/nowhere")
    import vaults as theirs

    assert theirs.seen == []


def test_an_unknown_scheme_lists_what_is_installed_too(vaults: Callable[..., None]) -> None:
    vaults(vault="vaults:Vault")
    known = "known: memory:, file:///dir, s3://, s3s://, vault://"
    for refused in (open_blobs, check_store_url):
        with pytest.raises(ConfigError, match=f"unknown scheme 'safe'; {known}"):
            refused("safe://me:hunter2@shelf")
    for unopened in (open_transport, check_broker_url):
        with pytest.raises(ConfigError, match=r"unknown scheme 'vault'; known: memory:, amqp://, amqps://$"):
            unopened("vault://shelf")


@pytest.mark.parametrize(
    ("value", "url", "message"),
    [
        ("vaults:Key", "vault://shelf", "scheme 'vault' is no fledge.Scheme"),
        ("vaults:Vault", "vault://me:hunter2@shelf/empty", "no fledge.BlobStore: it lacks close, delete"),
        ("vaults:Vault", "vault://me:hunter2@shelf/broken", "'vault:…' cannot be opened: ValueError in vaults"),
    ],
)
def test_what_is_no_store_is_refused_without_the_urls_password(
    vaults: Callable[..., None], value: str, url: str, message: str
) -> None:
    vaults(vault=value)
    with pytest.raises(ConfigError, match=message) as refused:
        open_blobs(url)
    assert "hunter2" not in str(refused.value)


def test_what_a_check_raises_is_told_without_the_urls_password(vaults: Callable[..., None]) -> None:
    vaults(vault="vaults:Vault")
    with pytest.raises(ConfigError, match="'vault:…' cannot be checked: SystemExit in vaults") as refused:
        check_store_url("vault://me:hunter2@shelf/broken")
    assert "hunter2" not in str(refused.value)


def test_nobody_takes_the_scheme_of_a_built_in(vaults: Callable[..., None]) -> None:
    vaults(file="vaults:Vault")
    with pytest.raises(ConfigError, match="store URL scheme 'file' is fledge's own"):
        check_store_url("file:///srv/store")
