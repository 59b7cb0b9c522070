"""Signed URLs: what a site gets with them, and what nobody gets with them, on a real server."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import urllib3

from broker.blobs.s3.grants import Granter
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from broker.blobs.transfer import UploadResult, upload
from protocol import limits
from protocol.errors import Corrupt, FledgeError, Forbidden, Missing, StoreError, TooLarge, TransportError
from protocol.messages import Grant, Request
from protocol.topology import head_key
from tests.support.flaky_http import FlakyHttp
from tests.support.presigned import FEDERATION, SITE, Hub, site_store
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.servers

LIMIT = 1024 * 1024


def key_of(data: bytes, folder: str) -> str:
    return f"{folder}/{hashlib.sha256(data).hexdigest()}"


UPDATE, MODEL = b"an update of site-a", b"a model"
OWN, OTHERS, PUBLISHED = key_of(UPDATE, "up/site-a"), key_of(UPDATE, "up/site-b"), key_of(MODEL, "models")


@pytest.fixture
def hub(s3_server: S3Server, bucket: str) -> Iterator[Hub]:
    """The hub, which has published a model."""
    hub = Hub(s3_server.url(bucket))
    hub.store.put(PUBLISHED, MODEL)
    yield hub
    hub.store.close()


@pytest.fixture
def site(hub: Hub, s3_server: S3Server, bucket: str) -> Iterator[PresignedBlobs]:
    """A site without credentials."""
    store = site_store(hub, s3_server, bucket)
    yield store
    store.close()


@pytest.fixture(scope="module")
def http() -> Iterator[urllib3.PoolManager]:
    """Anybody's HTTP client."""
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


def test_a_site_puts_its_chunks_and_gets_what_is_published(hub: Hub, site: PresignedBlobs) -> None:
    site.put(OWN, UPDATE)
    assert hub.store.get(OWN, LIMIT) == UPDATE
    assert site.get(PUBLISHED, LIMIT) == MODEL
    with pytest.raises(Missing):
        site.get(key_of(b"never published", "models"), LIMIT)


def test_what_a_site_may_not_do_is_refused_without_asking_anybody(hub: Hub, site: PresignedBlobs) -> None:
    for call in (
        lambda: site.put(OTHERS, UPDATE),
        lambda: site.put(PUBLISHED, MODEL),
        lambda: site.get(OTHERS, LIMIT),
        lambda: site.get(OWN, LIMIT),
        lambda: site.get(key_of(b"x", "state"), LIMIT),
        lambda: site.has(OWN),
        lambda: site.list("models/"),
        lambda: site.delete(OWN),
        lambda: site.put_head(FEDERATION, b""),
    ):
        with pytest.raises(Forbidden, match="without credentials"):
            call()
    assert hub.requests == []


def test_an_upload_puts_every_chunk_because_it_cannot_look(hub: Hub, site: PresignedBlobs) -> None:
    data = [os.urandom(10_000) for _ in range(6)]
    done = upload(site, [(key_of(each, "up/site-a"), partial(nullcontext, each)) for each in data])
    assert done == UploadResult(sent=6, skipped=0, sent_bytes=60_000)
    assert [hub.store.get(key_of(each, "up/site-a"), LIMIT) for each in data] == data


def test_the_head_comes_with_the_grant_or_by_url_if_it_is_large(hub: Hub, site: PresignedBlobs) -> None:
    assert site.get_head(FEDERATION, LIMIT) is None
    hub.head = b"signed head"
    assert site.get_head(FEDERATION, LIMIT) == b"signed head"
    with pytest.raises(TooLarge):
        site.get_head(FEDERATION, 5)
    hub.head = os.urandom(limits.HEAD + 1)
    hub.store.put_head(FEDERATION, hub.head)
    hub.requests.clear()
    assert site.get_head(FEDERATION, LIMIT) == hub.head
    assert hub.requests == [Request(puts=(), gets=()), Request(puts=(), gets=(head_key(FEDERATION),))]


def test_damaged_and_oversized_objects_are_found(hub: Hub, site: PresignedBlobs, s3_server: S3Server) -> None:
    with pytest.raises(TooLarge, match=f"{len(MODEL)} bytes"):
        site.get(PUBLISHED, len(MODEL) - 1)
    Path(s3_server.directory, site_bucket(site), PUBLISHED).write_bytes(b"b model")
    with pytest.raises(Corrupt):
        site.get(PUBLISHED, LIMIT)


def site_bucket(site: PresignedBlobs) -> str:
    found = re.search(r"/(b[0-9a-f]{20})'", repr(site))
    assert found is not None
    return found[1]


def test_an_expired_url_is_asked_for_again(hub: Hub, site: PresignedBlobs) -> None:
    hub.skew = -7200.0
    answers = hub.ask

    def set_right(request: Request) -> Grant:
        grant = answers(request)
        hub.skew = 0.0
        return grant

    late = PresignedBlobs(site._url, set_right, SITE)
    assert late.get(PUBLISHED, LIMIT) == MODEL
    hub.skew = -7200.0
    late.put(OWN, UPDATE)
    assert len(hub.requests) == 4
    late.close()


def test_a_clock_that_stays_wrong_is_reported_and_not_repeated_for_ever(hub: Hub, site: PresignedBlobs) -> None:
    hub.skew = -7200.0
    begun = time.monotonic()
    with pytest.raises(Forbidden, match=r"clock.*3 URLs in a row") as caught:
        site.put(OWN, UPDATE)
    assert time.monotonic() - begun < 5
    assert len(hub.requests) == 3
    assert_no_secrets(caught.value)


def test_a_refused_request_is_forbidden_and_an_unanswered_one_can_be_tried_again(site: PresignedBlobs) -> None:
    def refuse(_: Request) -> Grant:
        return Grant(message=b"m" * 16, head=b"", urls=(), expires=0)

    def lose(_: Request) -> Grant:
        raise TransportError("no answer within 30 s")

    for ask, kind, words in ((refuse, Forbidden, "gives this site no URLs"), (lose, StoreError, "no answer within")):
        store = PresignedBlobs(site._url, ask, SITE)
        with pytest.raises(kind, match=words) as caught:
            store.put(OWN, UPDATE)
        assert caught.value.retryable is (kind is StoreError)
        store.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("127.0.0.1", "10.1.2.3"),
        lambda url: url.replace("http:", "https:"),
        lambda url: url.replace("site-a", "site-b"),
        lambda url: url.replace("http://", "http://site-a@"),
        lambda url: "file:///etc/passwd",
        lambda url: "http://[",
    ],
    ids=["machine", "scheme", "key", "login", "file", "nonsense"],
)
def test_a_url_that_leads_elsewhere_is_not_followed(
    hub: Hub, site: PresignedBlobs, change: Callable[[str], str]
) -> None:
    def mislead(request: Request) -> Grant:
        grant = hub.ask(request)
        return Grant(message=grant.message, head=b"", urls=tuple(map(change, grant.urls)), expires=grant.expires)

    store = PresignedBlobs(site._url, mislead, SITE)
    with pytest.raises(Forbidden, match="leads elsewhere") as caught:
        store.put(OWN, UPDATE)
    assert_no_secrets(caught.value)
    store.close()


def test_while_one_request_is_on_its_way_the_wants_of_other_threads_gather(hub: Hub, site: PresignedBlobs) -> None:
    data = [os.urandom(1000) for _ in range(12)]
    first, go = threading.Event(), threading.Event()

    def slowly(request: Request) -> Grant:
        first.set()
        assert go.wait(30)
        return hub.ask(request)

    store = PresignedBlobs(site._url, slowly, SITE)
    with ThreadPoolExecutor(12) as pool:
        puts = [pool.submit(store.put, key_of(each, "up/site-a"), each) for each in data]
        assert first.wait(30)
        while len(store._requests._waiting) < 11:
            time.sleep(0.001)
        go.set()
        for each in puts:
            each.result(30)
    assert [len(request.puts) for request in hub.requests] == [1, 11]
    assert [hub.store.get(key_of(each, "up/site-a"), LIMIT) for each in data] == data
    store.close()


def test_a_store_that_stumbles_is_asked_again_with_the_same_url(hub: Hub, s3_server: S3Server, bucket: str) -> None:
    front = FlakyHttp(s3_server.port, failures=2, body=b"<Error><Code>SlowDown</Code></Error>")
    signing = Hub(s3_server.url(bucket, port=front.port))
    store = site_store(signing, s3_server, bucket, port=front.port)
    store.put(OWN, UPDATE)
    front.failures = 2
    assert store.get(PUBLISHED, LIMIT) == MODEL
    assert len(signing.requests) == 2
    front.failures = 10**6
    impatient = site_store(signing, s3_server, bucket, port=front.port, options="?deadline=0.4")
    with pytest.raises(StoreError, match=r"not done within .* SlowDown") as caught:
        impatient.put(OWN, UPDATE)
    assert_no_secrets(caught.value)
    for each in (store, impatient, signing.store, front):
        each.close()


def test_neither_logs_nor_reprs_show_a_url(hub: Hub, site: PresignedBlobs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site.put(OWN, UPDATE)
    assert "X-Amz-" not in f"{caplog.text} {site!r}"


def assert_no_secrets(error: BaseException | None) -> None:
    """Neither the credentials nor a signature stand anywhere in the chain of errors."""
    while error is not None:
        for word in (ACCESS_KEY, SECRET_KEY, "X-Amz-"):
            assert word not in f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


# What nobody gets with a URL that was signed for something else:


def answer(http: urllib3.PoolManager, method: str, url: str, headers: dict[str, str] | None = None) -> int:
    body = b"planted" if method in ("PUT", "POST") else None
    return http.request(method, url, body=body, headers=headers or {}, redirect=False).status


def test_a_url_to_put_one_object_does_nothing_else(hub: Hub, site: PresignedBlobs, http: urllib3.PoolManager) -> None:
    url = hub.store.presign_put(OWN, 3600)
    assert answer(http, "PUT", url) == 200
    site.put(OWN, UPDATE)
    refused = [
        answer(http, "PUT", url.replace("site-a", "site-b")),
        answer(http, "PUT", url.replace(OWN, PUBLISHED)),
        answer(http, "PUT", url.replace(OWN, head_key(FEDERATION))),
        answer(http, "GET", url),
        answer(http, "HEAD", url),
        answer(http, "DELETE", url),
        answer(http, "POST", url),
        answer(http, "PUT", f"{url}&versionId=1"),
        answer(http, "PUT", url[:-1] + ("0" if url[-1] != "0" else "1")),
        answer(http, "PUT", url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")),
        answer(http, "PUT", url.partition("?")[0]),
        answer(http, "PUT", hub.store.presign_put(OWN, 3600, at=time.time() - 3700)),
    ]
    assert all(status in (400, 403, 405) for status in refused), refused
    assert [info.key for info in hub.store.list("")] == [PUBLISHED, OWN]
    assert hub.store.get(OWN, LIMIT) == UPDATE
    assert hub.store.get(PUBLISHED, LIMIT) == MODEL


def test_a_url_to_get_one_object_does_nothing_else(hub: Hub, site: PresignedBlobs, http: urllib3.PoolManager) -> None:
    site.put(OWN, UPDATE)
    url = hub.store.presign_get(PUBLISHED, 3600)
    assert answer(http, "GET", url) == 200
    refused = [
        answer(http, "GET", url.replace(PUBLISHED, OWN)),
        answer(http, "PUT", url),
        answer(http, "DELETE", url),
        answer(http, "GET", re.sub(r"/models/[0-9a-f]+", "/", url)),
        answer(http, "GET", hub.store.presign_get(PUBLISHED, 3600, at=time.time() - 3700)),
    ]
    assert all(status in (400, 403, 405) for status in refused), refused
    assert hub.store.get(PUBLISHED, LIMIT) == MODEL


def test_a_copy_source_that_was_not_signed_makes_no_copy(
    hub: Hub, s3_server: S3Server, bucket: str, http: urllib3.PoolManager
) -> None:
    secret = b"what only the aggregator reads"
    hub.store.put(key_of(secret, "state"), secret)
    for header in ("x-amz-copy-source", "X-Amz-Copy-Source"):
        for source in (f"/{bucket}/{key_of(secret, 'state')}", f"{bucket}/{key_of(secret, 'state')}"):
            assert answer(http, "PUT", hub.store.presign_put(OWN, 3600), {header: source}) == 403
    with pytest.raises(FledgeError):
        hub.store.get(OWN, LIMIT)
    assert not any(
        path.read_bytes() == secret for path in (s3_server.directory / bucket / "up").rglob("*") if path.is_file()
    )


def test_signing_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    offline = S3Blobs.from_url("s3s://access:secret@store.invalid/bucket")
    granter = Granter(offline, offline, FEDERATION)
    names = tuple(os.urandom(32) for _ in range(limits.URLS))
    granted = granter.grant(SITE, Request(puts=names, gets=()), 1_800_000_000.5)
    assert [url.partition("?")[0] for url in granted.urls] == [
        f"https://store.invalid/bucket/up/site-a/{name.hex()}" for name in names
    ]
    assert all("X-Amz-Expires=3600" in url and "X-Amz-SignedHeaders=host&" in url for url in granted.urls)
    assert granted.expires == 1_800_003_600
    assert sum(map(len, granted.urls)) < limits.BODY
    offline.close()
