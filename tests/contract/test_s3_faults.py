"""What the S3 store does when the server or the network between misbehaves."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from broker.blobs.open import open_blobs
from broker.blobs.s3.store import S3Blobs
from broker.blobs.transfer import upload
from protocol.errors import ConfigError, Corrupt, FledgeError, Forbidden, Missing, StoreError
from tests.support.certificates import make_authority, make_certificate
from tests.support.fault_proxy import FaultProxy
from tests.support.flaky_http import FlakyHttp
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.servers

CHUNK = 8 * 1024 * 1024
LIMIT = 16 * 1024 * 1024
BUSY = b"<Error><Code>SlowDown</Code></Error>"


def key_of(data: bytes) -> str:
    """The object key of an update's chunk with these bytes."""
    return f"up/site-a/{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A fault proxy in front of the shared server."""
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def flaky(s3_server: S3Server) -> Iterator[FlakyHttp]:
    """A front that answers what the test sets, then forwards."""
    front = FlakyHttp(s3_server.port, failures=0, body=BUSY)
    yield front
    front.close()


def chunks(count: int) -> list[bytes]:
    """Random chunks of 8 MiB, made quickly."""
    base = bytearray(os.urandom(CHUNK))
    made = []
    for i in range(count):
        base[:8] = i.to_bytes(8, "big")
        made.append(bytes(base))
    return made


def visible(server: S3Server, bucket: str) -> set[str]:
    """Keys a second client sees, each of them whole."""
    reader = open_blobs(server.url(bucket))
    keys = {info.key for info in reader.list("")}
    for key in keys:
        reader.get(key, LIMIT)
    reader.close()
    return keys


@pytest.mark.parametrize("failures", [1, 3])
def test_a_server_that_is_busy_for_a_while_is_survived_by_every_method(
    s3_server: S3Server, flaky: FlakyHttp, bucket: str, failures: int
) -> None:
    store = open_blobs(s3_server.url(bucket, port=flaky.port))
    data = b"patience"
    seen = []
    for call in (
        lambda: store.put(key_of(data), data),
        lambda: store.get(key_of(data), LIMIT),
        lambda: store.has(key_of(data)),
        lambda: [info.key for info in store.list("up/")],
        lambda: store.put_head("demo", data),
        lambda: store.get_head("demo", LIMIT),
        lambda: store.delete(key_of(data)),
    ):
        flaky.failures = failures
        seen.append(call())
        assert flaky.failures == 0
    assert seen == [None, data, True, [key_of(data)], None, data, None]


def test_one_put_is_one_request(s3_server: S3Server, flaky: FlakyHttp, bucket: str) -> None:
    store = open_blobs(s3_server.url(bucket, port=flaky.port))
    store.put(key_of(b"makes the bucket"), b"makes the bucket")
    flaky.requests.clear()
    data = chunks(1)[0]
    store.put(key_of(data), data)
    assert flaky.requests == [f"PUT /{bucket}/{key_of(data)}"]


@pytest.mark.parametrize("fault", ["refuse", "stall"])
def test_a_passed_deadline_names_operation_and_object_but_no_credentials(
    s3_server: S3Server, proxy: FaultProxy, bucket: str, fault: str
) -> None:
    store = open_blobs(s3_server.url(bucket, port=proxy.port, options="?deadline=0.7"))
    data = b"never arrives"
    getattr(proxy, fault)()
    begun = time.monotonic()
    for verb, call in {
        "put": lambda: store.put(key_of(data), data),
        "get": lambda: store.get(key_of(data), LIMIT),
        "look for": lambda: store.has(key_of(data)),
        "list": lambda: list(store.list("up/site-a/")),
        "delete": lambda: store.delete(key_of(data)),
    }.items():
        with pytest.raises(StoreError, match=f"^{verb} up/site-a/") as caught:
            call()
        assert caught.value.retryable
        assert f"127.0.0.1:{proxy.port}/{bucket}" in str(caught.value)
        assert_no_credentials(caught.value)
    assert time.monotonic() - begun < 10
    proxy.heal()
    assert not store.has(key_of(data))


def assert_no_credentials(error: BaseException | None) -> None:
    """Neither the error nor any error it came from shows the access key or the secret."""
    while error is not None:
        assert ACCESS_KEY not in f"{error!r} {error}"
        assert SECRET_KEY not in f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_credentials_are_never_shown(s3_server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = open_blobs(s3_server.url(bucket))
    store.put(key_of(b"x"), b"x")
    assert repr(store) == f"S3Blobs('s3://127.0.0.1:{s3_server.port}/{bucket}')"
    assert SECRET_KEY not in caplog.text
    assert ACCESS_KEY not in caplog.text


def test_a_wrong_secret_is_refused_at_once_and_not_repeated(s3_server: S3Server, bucket: str) -> None:
    store = open_blobs(s3_server.url(bucket).replace(SECRET_KEY, "not-the-secret"))
    begun = time.monotonic()
    with pytest.raises(Forbidden, match=r"put up/site-a/.*SignatureDoesNotMatch") as caught:
        store.put(key_of(b"x"), b"x")
    assert time.monotonic() - begun < 2
    assert not caught.value.retryable
    assert_no_credentials(caught.value)
    with pytest.raises(Forbidden):
        store.has(key_of(b"x"))


def test_an_answer_that_repeats_the_credentials_does_not_reach_the_error(
    s3_server: S3Server, flaky: FlakyHttp, bucket: str
) -> None:
    spilling = f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>"
    front = FlakyHttp(s3_server.port, failures=1, status=403, body=spilling.encode())
    with pytest.raises(Forbidden) as caught:
        open_blobs(s3_server.url(bucket, port=front.port)).put(key_of(b"x"), b"x")
    front.close()
    assert_no_credentials(caught.value)


@pytest.mark.parametrize("body", [b"<Error><Code>", b"\xff\xfe not text", b"", b"<html>gateway</html>"])
def test_answers_that_make_no_sense_are_survived(s3_server: S3Server, bucket: str, body: bytes) -> None:
    front = FlakyHttp(s3_server.port, failures=2, status=502, body=body)
    store = open_blobs(s3_server.url(bucket, port=front.port))
    store.put(key_of(b"x"), b"x")
    front.failures = 2
    assert store.get(key_of(b"x"), LIMIT) == b"x"
    front.close()


def test_an_endless_error_page_is_not_read_to_its_end(s3_server: S3Server, bucket: str) -> None:
    front = FlakyHttp(s3_server.port, failures=10**6, status=500, body=bytes(9 * 1024 * 1024))
    with pytest.raises(StoreError, match="longer than 4194304 bytes"):
        open_blobs(s3_server.url(bucket, port=front.port, options="?deadline=1")).get(key_of(b"x"), LIMIT)
    front.close()


def test_nothing_half_written_is_visible_after_a_cut_and_the_put_succeeds_by_itself(
    s3_server: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    store = open_blobs(s3_server.url(bucket, port=proxy.port))
    store.put(key_of(b"first"), b"first")
    data = chunks(1)[0]
    proxy.cut_after(CHUNK // 2)
    connections = proxy.accepted
    store.put(key_of(data), data)
    assert proxy.accepted > connections  # it was cut indeed
    assert visible(s3_server, bucket) == {key_of(b"first"), key_of(data)}


def test_a_put_that_is_cut_for_good_leaves_nothing_behind(s3_server: S3Server, bucket: str) -> None:
    with FaultProxy(s3_server.port) as proxy:
        store = open_blobs(s3_server.url(bucket, port=proxy.port, options="?deadline=3"))
        store.put(key_of(b"first"), b"first")
        data = chunks(1)[0]
        proxy.cut_after(CHUNK // 2, refuse=True)
        with pytest.raises(StoreError, match="put"):
            store.put(key_of(data), data)
    assert visible(s3_server, bucket) == {key_of(b"first")}


def test_a_get_that_is_cut_in_the_middle_is_repeated(s3_server: S3Server, proxy: FaultProxy, bucket: str) -> None:
    store = open_blobs(s3_server.url(bucket, port=proxy.port))
    data = chunks(1)[0]
    store.put(key_of(data), data)
    connections = proxy.accepted
    proxy.cut_after(CHUNK // 2)
    assert store.get(key_of(data), LIMIT) == data
    assert proxy.accepted > connections


def test_an_upload_goes_on_where_it_stopped_and_sends_no_finished_chunk_again(
    s3_server: S3Server, flaky: FlakyHttp, bucket: str
) -> None:
    data = chunks(6)
    items = [(key_of(chunk), partial(nullcontext, chunk)) for chunk in data]
    with FaultProxy(s3_server.port) as proxy:
        store = open_blobs(s3_server.url(bucket, port=proxy.port, options="?deadline=2"))
        proxy.cut_after(int(3.5 * CHUNK), refuse=True)
        with pytest.raises(StoreError):
            upload(store, items, parallel=2)
    there = visible(s3_server, bucket)
    assert 0 < len(there) < 6
    flaky.requests.clear()
    done = upload(open_blobs(s3_server.url(bucket, port=flaky.port)), items, parallel=2)
    assert (done.sent, done.skipped, done.sent_bytes) == (6 - len(there), len(there), (6 - len(there)) * CHUNK)
    put_again = {request.split(f"/{bucket}/")[1] for request in flaky.requests if request.startswith("PUT")}
    assert put_again == set(map(key_of, data)) - there


def test_an_upload_survives_a_kill_of_the_server(private_s3_server: S3Server, bucket: str) -> None:
    server = private_s3_server
    data = chunks(10)
    with FaultProxy(server.port) as proxy:
        store = open_blobs(server.url(bucket, port=proxy.port))
        proxy.cut_after(int(4.5 * CHUNK))

        def kill_and_restart() -> set[str]:
            proxy.wait_cut(30)
            server.kill()
            whole = {path.relative_to(server.directory / bucket).as_posix() for path in finished(server, bucket)}
            server.start()
            return whole

        with ThreadPoolExecutor(1) as pool:
            killer = pool.submit(kill_and_restart)
            done = upload(store, [(key_of(chunk), partial(nullcontext, chunk)) for chunk in data], parallel=2)
            survived = killer.result()
    assert done.sent == 10
    assert survived
    assert survived < set(map(key_of, data))
    assert visible(server, bucket) == set(map(key_of, data))


def finished(server: S3Server, bucket: str) -> list[Path]:
    """Files of a bucket that carry an object's full name."""
    return [path for path in (server.directory / bucket).rglob("*") if path.is_file() and len(path.name) == 64]


def test_a_server_that_is_away_for_a_moment_is_waited_for(private_s3_server: S3Server, bucket: str) -> None:
    server = private_s3_server
    store = open_blobs(server.url(bucket))
    store.put(key_of(b"x"), b"x")
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.get, key_of(b"x"), LIMIT)
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.3)
        server.start()
        assert reading.result(timeout=30) == b"x"


def test_closing_ends_the_waiting_for_a_server_that_is_away(private_s3_server: S3Server, bucket: str) -> None:
    server = private_s3_server
    store = open_blobs(server.url(bucket))
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.get, key_of(b"x"), LIMIT)
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.3)
        store.close()
        with pytest.raises(StoreError, match="was closed"):
            reading.result(timeout=10)


def test_more_objects_than_a_page_are_listed_in_order(private_s3_server: S3Server, bucket: str) -> None:
    server = private_s3_server
    server.kill()  # it does not see what is written behind its back while it runs
    folder = server.directory / bucket / "up" / "site-a"
    folder.mkdir(parents=True)
    for i in range(2105):
        (server.directory / bucket / key_of(str(i).encode())).touch()
    server.start()
    expected = sorted(f"up/site-a/{path.name}" for path in folder.iterdir())
    assert len(expected) == 2105
    assert [info.key for info in open_blobs(server.url(bucket)).list("up/")] == expected


def test_a_lying_content_length_does_not_pass_for_the_object(s3_server: S3Server, bucket: str) -> None:
    front = FlakyHttp(s3_server.port, failures=1, status=200, body=b"something else")
    with pytest.raises(Corrupt, match="do not hash"):
        open_blobs(s3_server.url(bucket, port=front.port)).get(key_of(b"x"), LIMIT)
    front.close()


def test_reading_needs_no_bucket(s3_server: S3Server, bucket: str) -> None:
    store = S3Blobs.from_url(s3_server.url(bucket))
    assert list(store.list("")) == []
    assert store.get_head("demo", LIMIT) is None
    assert not store.has(key_of(b"x"))
    with pytest.raises(Missing):
        store.get(key_of(b"x"), LIMIT)
    assert not (s3_server.directory / bucket).exists()


def test_many_first_puts_at_once_make_one_bucket(s3_server: S3Server, bucket: str) -> None:
    data = [str(i).encode() for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: open_blobs(s3_server.url(bucket)).put(key_of(item), item), data))
    assert visible(s3_server, bucket) == set(map(key_of, data))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://k:hush@host:9000", "write s3://KEY:SECRET@host:port/bucket"),
        ("s3://k:hush@host:9000/a/b", "write s3://"),
        ("s3://k:hush@host:9000/UPPER", "write s3://"),
        ("s3://k:hush@/bucket", "write s3://"),
        ("s3://host:9000/bucket", "no credentials"),
        ("s3://k:hush@host:9000/bucket?speed=9", "unknown option 'speed'"),
        ("s3://k:hush@host:9000/bucket?deadline=soon", "deadline 'soon'"),
        ("s3://k:hush@host:9000/bucket?deadline=-1", "deadline '-1'"),
        ("s3s://k:hush@host:9000/bucket?cacertfile=/nowhere.pem", "cacertfile '/nowhere.pem' cannot be used"),
        ("s3://k:hush@host:port/bucket", "the port has to be a number"),
        ("ftp://k:hush@host/bucket", "unknown scheme"),
        ("file://host/dir", "three slashes"),
        ("file:dir", "three slashes"),
    ],
)
def test_a_store_url_that_is_wrong_is_explained_without_its_secret(
    url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLEDGE_S3_ACCESS_KEY", raising=False)
    monkeypatch.delenv("FLEDGE_S3_SECRET_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        open_blobs(url)
    assert why in str(caught.value)
    error: FledgeError = caught.value
    assert "hush" not in f"{error!r} {error}"


def test_credentials_may_come_from_the_environment(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_S3_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("FLEDGE_S3_SECRET_KEY", SECRET_KEY)
    store = open_blobs(f"s3://127.0.0.1:{s3_server.port}/{bucket}")
    store.put(key_of(b"x"), b"x")
    assert store.has(key_of(b"x"))


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[S3Server, Path]]:
    """A server that speaks TLS for 127.0.0.1, and the certificate of its authority."""
    make_authority(tmp_path, "authority")
    make_certificate(tmp_path, "server", authority="authority", usage="serverAuth")
    server = S3Server(tmp_path / "objects", tmp_path / "log", tls=(tmp_path / "server.pem", tmp_path / "server.key"))
    yield server, tmp_path / "authority.pem"
    server.stop()


def test_tls_is_spoken_with_a_server_whose_authority_is_given(tls_server: tuple[S3Server, Path], bucket: str) -> None:
    server, certificate = tls_server
    store = open_blobs(server.url(bucket, options=f"?cacertfile={certificate}"))
    data = chunks(1)[0]
    store.put(key_of(data), data)
    assert store.get(key_of(data), LIMIT) == data
    assert repr(store).startswith("S3Blobs('s3s://127.0.0.1")


def test_a_refusal_in_the_middle_of_a_large_body_is_understood(
    tls_server: tuple[S3Server, Path], s3_server: S3Server, bucket: str
) -> None:
    tls, certificate = tls_server
    data = chunks(1)[0]
    for url in (tls.url(bucket, options=f"?cacertfile={certificate}"), s3_server.url(bucket)):
        with pytest.raises(Forbidden, match="SignatureDoesNotMatch"):
            open_blobs(url.replace(SECRET_KEY, "not-the-secret")).put(key_of(data), data)


def test_a_certificate_nobody_vouches_for_is_refused_at_once(tls_server: tuple[S3Server, Path], bucket: str) -> None:
    server, _ = tls_server
    begun = time.monotonic()
    with pytest.raises(StoreError, match="certificate is not trusted"):
        open_blobs(server.url(bucket)).put(key_of(b"x"), b"x")
    assert time.monotonic() - begun < 5
    assert finished(server, bucket) == []
