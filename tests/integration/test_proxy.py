"""Out of a hospital through its proxy: the names of broker and store are known to the proxy alone."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from broker.blobs.base import BlobStore
from broker.blobs.open import open_blobs
from broker.net.proxy import HopError, connect_through, parse_proxy
from broker.net.schemes import Connection
from broker.transport.base import Transport
from broker.transport.open import open_transport
from broker.transport.rabbitmq.transport import RabbitTransport
from protocol.errors import StoreError
from tests.support.certificates import Pki
from tests.support.collect import Collector
from tests.support.connect_proxy import Asked, ConnectProxy
from tests.support.ports import free_ports
from tests.support.rabbit import RabbitNode
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.support.traffic import FLOW, Brisk
from tests.support.waiting import eventually

BROKER, STORE = "broker.example:443", "store.example:443"
LOGIN = ("site-a", "pa:ss w@rd")
QUOTED = "site-a:pa%3Ass%20w%40rd@"
PASSWORDS = ("pa:ss w@rd", "pa%3Ass", "c2l0ZS1hOnBh")  # the last is how Basic begins
CHUNK = 8 * 1024 * 1024


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine that runs the tests."""
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=["http", "https"])
def proxy(
    request: pytest.FixtureRequest, pki: Pki, tls_node: RabbitNode, tls_store: S3Server
) -> Iterator[tuple[ConnectProxy, str]]:
    """A proxy that wants credentials, and its URL; reached in the clear, and by TLS of another authority."""
    routes = {BROKER: ("127.0.0.1", tls_node.amqps_port), STORE: ("127.0.0.1", tls_store.port)}
    files = (pki.folder / "proxy.pem", pki.folder / "proxy.key") if request.param == "https" else None
    with ConnectProxy(routes, login=LOGIN, tls=files) as proxy:
        option = "" if files is None else f"?cacertfile={pki.folder}/other.pem"
        yield proxy, f"{request.param}://{QUOTED}127.0.0.1:{proxy.port}{option}"


@pytest.fixture
def opened() -> Iterator[Callable[[Transport | BlobStore], None]]:
    """Remember what has to be closed."""
    things: list[Transport | BlobStore] = []
    yield things.append
    for thing in things:
        thing.close()


def store_url(host: str = STORE, options: str = "") -> str:
    return f"s3s://{ACCESS_KEY}:{SECRET_KEY}@{host}/hospital{options}"


def key_of(data: bytes) -> str:
    return f"up/site-a/{hashlib.sha256(data).hexdigest()}"


@pytest.mark.servers
def test_messages_and_chunks_go_through_the_proxy_and_a_cut_loses_nothing(
    proxy: tuple[ConnectProxy, str], pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connect, url = proxy
    transport = RabbitTransport(f"amqps://{BROKER}/", Connection(tls=pki.tls(), proxy=url), dice=Brisk())
    store = open_blobs(store_url(), tls=pki.tls(), proxy=url)
    chunks = [os.urandom(CHUNK) for _ in range(3)]
    got = Collector()
    try:
        with capture_logs() as logs, ThreadPoolExecutor(3) as pool:
            transport.declare(FLOW)
            transport.consume("in.q", got)
            puts = [pool.submit(store.put, key_of(chunk), chunk) for chunk in chunks]
            bodies = [b"%d." % i + bytes(100_000) for i in range(40)]
            futures = []
            for i, body in enumerate(bodies):
                futures.append(transport.publish("x", "", body))
                if i in (10, 25):
                    futures[-1].result(30)
                    connect.cut()
            for future in (*futures, *puts):
                future.result(60)
            got.wait_until(lambda arrived: set(arrived) >= set(bodies), "everything")
            assert [store.get(key_of(chunk), CHUNK) for chunk in chunks] == chunks
    finally:
        transport.close()
        store.close()
    assert set(connect.asked) == {Asked(BROKER, 200), Asked(STORE, 200)}
    assert connect.bytes_up > 3 * CHUNK + 40 * 100_000
    assert any(entry["event"] == "broker.connected" for entry in logs)
    assert not any(word in f"{logs} {caplog.text} {transport!r} {store!r}" for word in (*PASSWORDS, SECRET_KEY))


@pytest.mark.servers
def test_the_environment_names_the_proxy_and_who_is_spared(
    tls_store: S3Server, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = f"localhost:{tls_store.port}"
    with ConnectProxy({STORE: ("127.0.0.1", tls_store.port)}) as connect:
        monkeypatch.setenv("HTTPS_PROXY", f"http://localhost:{connect.port}")
        for host in (STORE, direct):
            store = open_blobs(store_url(host), tls=pki.tls())
            store.put(key_of(b"by environment"), b"by environment")
            store.close()
        assert connect.targets == {STORE}
        monkeypatch.setenv("NO_PROXY", ".example")
        store = open_blobs(store_url(options="?deadline=0.5"), tls=pki.tls())
        with pytest.raises(StoreError, match="resolve"):
            store.put(key_of(b"x"), b"x")
        store.close()
        assert len(connect.asked) == 1


def refusing(answer: bytes) -> Iterator[int]:
    """The port of a server that answers everything so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", r"wants credentials.*407; it takes NTLM, fledge"),
        (b"HTTP/1.0 403 Forbidden by pa:ss\r\n\r\n", r"refuses CONNECT to broker\.example:443: 403; ask"),
        (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", r"could not reach broker\.example:443: 504"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "what answers there is no HTTP proxy"),
        (b"", r"hung up when asked for broker\.example:443"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000, "what answers there|something speaks"),
        (b"HTTP/1.1 200 OK\r\n\r\n220 mail.example", "something speaks before it was spoken to"),
    ],
    ids=["407", "403", "504", "ssh", "silence", "endless headers", "talkative"],
)
def test_the_hop_that_fails_is_named(answer: bytes, words: str) -> None:
    for port in refusing(answer):
        with pytest.raises(HopError, match=words) as failed:
            connect_through(parse_proxy(f"http://127.0.0.1:{port}"), "broker.example", 443, 5)
        assert f"http://127.0.0.1:{port}" in str(failed.value)
        assert "pa:ss" not in str(failed.value)


def test_wrong_credentials_an_absent_proxy_and_an_unknown_name_are_told_apart() -> None:
    with ConnectProxy({}, login=LOGIN) as connect, pytest.raises(HopError, match="refuses the credentials: 407") as no:
        connect_through(parse_proxy(f"http://site-a:hunter2@127.0.0.1:{connect.port}"), "broker.example", 443, 5)
    assert "Basic, Negotiate" in str(no.value)
    assert "hunter2" not in f"{no.value!r}"
    (nobody,) = free_ports(1)
    with pytest.raises(HopError, match=r"cannot be reached .*refused"):
        connect_through(parse_proxy(f"http://127.0.0.1:{nobody}"), "broker.example", 443, 5)
    with pytest.raises(HopError, match="its name is not known here"):
        connect_through(parse_proxy("http://proxy.invalid:3128"), "broker.example", 443, 5)


def test_a_silent_proxy_is_given_up_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(HopError, match="gave no answer when asked for"),
    ):
        connect_through(parse_proxy(f"http://127.0.0.1:{silent.getsockname()[1]}"), "broker.example", 443, 0.3)


def test_a_proxy_whose_certificate_nobody_vouches_for_is_not_told_the_password(pki: Pki) -> None:
    with ConnectProxy({}, login=LOGIN, tls=(pki.folder / "proxy.pem", pki.folder / "proxy.key")) as connect:
        with pytest.raises(HopError, match=r"TLS to the proxy itself failed.*cacertfile"):
            connect_through(parse_proxy(f"https://{QUOTED}127.0.0.1:{connect.port}"), "broker.example", 443, 5)
        assert connect.asked == []


@pytest.mark.servers
def test_a_proxy_that_reads_along_is_told_from_one_that_refuses(
    pki: Pki, tls_node: RabbitNode, tls_store: S3Server, opened: Callable[[Transport | BlobStore], None]
) -> None:
    stranger = pki.tls(ca="other")
    routes = {BROKER: ("127.0.0.1", tls_node.amqps_port), STORE: ("127.0.0.1", tls_store.port)}
    with ConnectProxy(routes) as connect, capture_logs() as logs:
        url = f"http://127.0.0.1:{connect.port}"

        def said(words: str) -> bool:
            return any(words in str(entry.get("reason")) for entry in logs)

        opened(store := open_blobs(store_url(options="?deadline=0.5"), tls=stranger, proxy=url))
        with pytest.raises(StoreError, match=r"not trusted behind proxy http://127\.0\.0\.1"):
            store.put(key_of(b"x"), b"x")
        opened(transport := open_transport(f"amqps://{BROKER}/", tls=stranger, proxy=url))
        transport.on_connected(lambda: None)
        eventually(lambda: said("not trusted behind proxy http://127.0.0.1"), "the log tells of the certificate")

        connect.routes["wrong.example:443"] = connect.routes[STORE]
        opened(store := open_blobs(store_url("wrong.example:443"), tls=pki.tls(), proxy=url))
        with pytest.raises(StoreError, match=r"not trusted.*wrong\.example"):
            store.put(key_of(b"x"), b"x")

        connect.routes.clear()
        opened(store := open_blobs(store_url(options="?deadline=0.5"), tls=pki.tls(), proxy=url))
        with pytest.raises(StoreError, match=r"refuses CONNECT to store\.example:443: 403"):
            store.put(key_of(b"x"), b"x")
        eventually(lambda: said("refuses CONNECT to broker.example:443: 403"), "the log names the refusal")


@pytest.mark.servers
def test_a_broker_that_never_speaks_behind_the_proxy_does_not_hold_up_the_end(pki: Pki) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ConnectProxy({BROKER: silent.getsockname()[:2]}) as connect,
    ):
        transport = open_transport(f"amqps://{BROKER}/", tls=pki.tls(), proxy=f"http://127.0.0.1:{connect.port}")
        transport.on_connected(lambda: None)
        greeted, _ = silent.accept()
        with greeted:
            assert greeted.recv(1) == b"\x16"  # TLS has begun, and stays so
            begun = time.monotonic()
            transport.close()
            assert time.monotonic() - begun < 1.5
