"""Hosts for which the S3 library has rules of its own: what is called and signed is what was configured, nothing else.

Names of Amazon and Aliyun are led to a server on this machine by a proxy that resolves them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.blobs.s3.grants import Granter
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from broker.net.schemes import Connection
from broker.net.tls import Tls
from protocol.errors import ConfigError, StoreError
from protocol.messages import Grant, Request
from tests.support.blobs import LIMIT, key_of
from tests.support.certificates import make_authority, make_certificate
from tests.support.connect_proxy import Asked, ConnectProxy
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server

SITE, FEDERATION = "site-a", "demo"
HOSTS = {
    # what is written: what is called, and the region that is signed for
    "s3.eu-central-1.amazonaws.com/{}": ("s3.eu-central-1.amazonaws.com", "eu-central-1"),
    "s3.EU-central-1.amazonaws.com:443/{}": ("s3.eu-central-1.amazonaws.com", "eu-central-1"),
    "s3.amazonaws.com/{}?region=eu-west-1": ("s3.eu-west-1.amazonaws.com", "eu-west-1"),
    "s3.dualstack.eu-central-1.amazonaws.com/{}": ("s3.dualstack.eu-central-1.amazonaws.com", "eu-central-1"),
    "s3-fips.us-east-2.amazonaws.com/{}": ("s3-fips.us-east-2.amazonaws.com", "us-east-2"),
    "s3.cn-north-1.amazonaws.com.cn/{}/clinics": ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    "s3.eusc-de-east-1.amazonaws.eu/{}": ("s3.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
    "oss-cn-hangzhou.aliyuncs.com/{}": ("oss-cn-hangzhou.aliyuncs.com", "us-east-1"),
    "storage.example/{}/clinics/demo?region=auto": ("storage.example", "auto"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    """A server with a certificate for all of these names, and its authority's."""
    folder = tmp_path_factory.mktemp("hosts")
    make_authority(folder, "authority")
    names = sorted({host for host, _ in HOSTS.values()})
    make_certificate(folder, "server", authority="authority", usage="serverAuth", names=names)
    server = S3Server(folder / "objects", folder / "log", tls=(folder / "server.pem", folder / "server.key"))
    yield server, folder / "authority.pem"
    server.stop()


@pytest.mark.servers
@pytest.mark.parametrize("written", HOSTS)
def test_what_was_configured_is_called_and_signed_and_every_signed_url_is_used(
    server: tuple[S3Server, Path], bucket: str, written: str
) -> None:
    running, authority = server
    called, region = HOSTS[written]
    place, tls = written.format(bucket), Tls(ca=str(authority))
    with ConnectProxy({f"{called}:443": ("127.0.0.1", running.port)}) as proxy:
        through = f"http://127.0.0.1:{proxy.port}"
        hub = S3Blobs.from_url(f"s3s://{ACCESS_KEY}:{SECRET_KEY}@{place}", tls=tls, proxy=through)
        signed: list[str] = []

        def ask(request: Request) -> Grant:
            granted = Granter(hub, hub, FEDERATION).grant(SITE, request, time.time())
            signed.extend(granted.urls)
            return granted.answer(b"m" * 16, None)

        site = PresignedBlobs.from_url(f"s3s://{place}", ask, SITE, connection=Connection(tls=tls, proxy=through))
        model, update = os.urandom(1000), os.urandom(1000)
        hub.put(key_of(model), model)
        hub.put_head(FEDERATION, b"head")
        assert site.get(key_of(model), LIMIT) == model
        assert site.get_head(FEDERATION, LIMIT) == b"head"
        site.put(key_of(update, f"up/{SITE}"), update)
        assert [info.key for info in hub.list("")] == [key_of(model), key_of(update, f"up/{SITE}")]
        hub.close()
        site.close()
    assert set(proxy.asked) == {Asked(f"{called}:443", 200)}
    assert all(f"%2F{region}%2Fs3%2F" in url for url in signed)
    assert len(signed) == 3


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("s3.amazonaws.com/clinics", "write the bucket's into the host, such as s3.eu-central-1.amazonaws.com"),
        ("s3.amazonaws.com.cn/clinics", "this host names none"),
        ("s3-accelerate.amazonaws.com/clinics", "this host names none"),
        ("s3.eu-central-1.amazonaws.com/clinics?region=us-east-1", "the host is in 'eu-central-1' and ?region= says"),
        ("s3-eu-west-1.amazonaws.com/clinics", "would call s3-eu-west-1.us-east-1.amazonaws.com instead"),
        ("s3.eu-central-1.amazonaws.com:8443/clinics", "without a port"),
        ("ec2.eu-central-1.amazonaws.com/clinics", "invalid Amazon AWS host"),
        ("host/clinics?region=eu%20west", "region 'eu west' has to be one word"),
        ("host/192.168.1.1", "IP address"),
        ("host/two..dots", "successive characters"),
    ],
)
def test_a_place_that_the_library_would_look_for_elsewhere_is_refused_when_it_is_opened(place: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        S3Blobs.from_url(f"s3s://key:hush-hush@{place}")
    assert says in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.servers
def test_a_kit_can_use_a_store_with_a_certificate_of_the_public_kind(
    server: tuple[S3Server, Path], bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running, authority = server
    make_authority(tmp_path, "federation")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))  # as if it were one of this machine's
    kit, url = Tls(ca=str(tmp_path / "federation.pem")), running.url(bucket)
    with pytest.raises(StoreError, match="certificate is not trusted"):
        S3Blobs.from_url(url, tls=kit).put(key_of(b"x"), b"x")
    store = S3Blobs.from_url(f"{url}?cacertfile=system", tls=kit)
    store.put(key_of(b"x"), b"x")
    store.close()
