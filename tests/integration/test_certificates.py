"""Certificates that are renewed while programs run: the old one ends, nobody restarts anything, nothing is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.blobs.open import open_blobs
from broker.net.schemes import Connection
from broker.net.tls import Tls
from broker.transport.open import open_transport
from broker.transport.rabbitmq.transport import RabbitTransport
from protocol.errors import NotAllowed, StoreError
from tests.support.certificates import Pki
from tests.support.collect import Collector
from tests.support.rabbit import RabbitNode
from tests.support.s3 import S3Server
from tests.support.short_lived import make_client_certificate
from tests.support.traffic import FLOW, Brisk
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers

LIFE = 3.0
"""Seconds; long enough to connect with the first certificate."""


def issue(pki: Pki, folder: Path, seconds: float) -> Tls:
    """Put a certificate of site-a into `folder`, in place of the one that is there."""
    make_client_certificate(pki.folder, "site", authority="ca", common_name="site-a", seconds=seconds, into=folder)
    return Tls(ca=str(pki.folder / "ca.pem"), cert=str(folder / "site.pem"), key=str(folder / "site.key"))


def kept_old(files: Tls, folder: Path) -> Tls:
    """Copy the certificate, to try it when it has ended."""
    old = folder / "old"
    old.mkdir()
    for path in (files.cert, files.key):
        shutil.copy(str(path), old)
    return Tls(ca=files.ca, cert=str(old / "site.pem"), key=str(old / "site.key"))


def wait_until_expired(files: Tls) -> None:
    eventually(lambda: files.expired(time.time()) is not None, "the old certificate has ended")


def refused_by_broker(node: RabbitNode, files: Tls) -> bool:
    """Try to log in once, and tell whether the log says that the certificate is too old."""
    with capture_logs() as logs:
        late = open_transport(f"amqps://127.0.0.1:{node.amqps_port}/", tls=files)
        late.on_connected(lambda: None)
        eventually(lambda: bool(logs), "it worked or did not")
        late.close()
    return "our certificate expired on" in str(logs[0].get("reason"))


def test_a_renewed_certificate_is_used_at_the_next_connection_to_rabbitmq(
    pki: Pki, tls_node: RabbitNode, tmp_path: Path
) -> None:
    files = issue(pki, tmp_path, LIFE)
    transport = RabbitTransport(f"amqps://127.0.0.1:{tls_node.amqps_port}/", Connection(tls=files), dice=Brisk())
    try:
        got = Collector()
        transport.declare(FLOW)
        transport.consume("in.q", got)
        transport.publish("x", "", b"with the first").result(30)
        old = kept_old(files, tmp_path)
        issue(pki, tmp_path, 3600)
        wait_until_expired(old)
        eventually(lambda: refused_by_broker(tls_node, old), "the broker's clock says so too")

        bodies = [b"%d" % i for i in range(2000)]
        futures = [transport.publish("x", "", body) for body in bodies[:1000]]
        eventually(lambda: bool(tls_node.api("GET", "connections")), "the connections are listed")
        for connection in tls_node.api("GET", "connections"):
            tls_node.api("DELETE", "connections", connection["name"])
        futures += [transport.publish("x", "", body) for body in bodies[1000:]]
        for future in futures:
            future.result(30)
        got.wait_until(lambda arrived: set(arrived) >= {b"with the first", *bodies}, "everything that was published")
    finally:
        transport.close()


def test_a_pair_that_is_half_replaced_is_tried_again_until_it_fits(
    pki: Pki, tls_node: RabbitNode, tmp_path: Path
) -> None:
    files = issue(pki, tmp_path, 3600)
    transport = RabbitTransport(f"amqps://127.0.0.1:{tls_node.amqps_port}/", Connection(tls=files), dice=Brisk())
    try:
        key = Path(str(files.key))
        old = key.read_bytes()
        issue(pki, tmp_path, 3600)
        new = key.read_bytes()
        key.write_bytes(old)
        with capture_logs() as logs:
            transport.on_connected(lambda: None)
            eventually(lambda: any("the key has to fit" in str(entry.get("reason")) for entry in logs), "told")
            key.write_bytes(new)
            assert transport.publish("amq.fanout", "", b"nobody listens").exception(30) is not None
    finally:
        transport.close()


def test_a_renewed_certificate_is_used_at_the_next_connection_to_the_store(
    pki: Pki, tls_store: S3Server, tmp_path: Path
) -> None:
    files = issue(pki, tmp_path, LIFE)
    store = open_blobs(tls_store.url("renewed"), tls=files)
    data = os.urandom(100_000)
    key = f"up/site-a/{hashlib.sha256(data).hexdigest()}"
    try:
        store.put(key, data)
        old = kept_old(files, tmp_path)
        issue(pki, tmp_path, 3600)
        wait_until_expired(old)
        late = open_blobs(tls_store.url("renewed", options="?deadline=3"), tls=old)
        with pytest.raises(StoreError, match="certificate"):
            late.put(key, data)
        late.close()
        tls_store.restart()
        assert store.get(key, len(data)) == data
    finally:
        store.close()


def test_without_a_certificate_neither_server_lets_us_in(pki: Pki, tls_node: RabbitNode, tls_store: S3Server) -> None:
    nobody = Tls(ca=str(pki.folder / "ca.pem"))
    store = open_blobs(tls_store.url("renewed", options="?deadline=3"), tls=nobody)
    with pytest.raises(StoreError, match="certificate"):
        list(store.list(""))
    store.close()
    transport = open_transport(f"amqps://127.0.0.1:{tls_node.amqps_port}/", tls=nobody)
    with capture_logs() as logs:
        transport.on_connected(lambda: None)
        eventually(lambda: any("certificate was refused" in str(entry.get("reason")) for entry in logs), "told")
    transport.close()


def test_the_name_in_the_certificate_is_the_login(pki: Pki, tls_node: RabbitNode, tmp_path: Path) -> None:
    make_client_certificate(pki.folder, "site", authority="ca", common_name="site-b", seconds=3600, into=tmp_path)
    other = Tls(ca=str(pki.folder / "ca.pem"), cert=str(tmp_path / "site.pem"), key=str(tmp_path / "site.key"))
    transport = open_transport(f"amqps://127.0.0.1:{tls_node.amqps_port}/", tls=other)
    with pytest.raises(NotAllowed, match="login refused"):
        transport.depth("in.q")
    transport.close()
