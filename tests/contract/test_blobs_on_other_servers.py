"""What public reports tell of S3 servers beyond the contract, on those that are found here: pages, regions, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from broker.blobs.open import open_blobs
from broker.blobs.s3.store import S3Blobs
from protocol.errors import Forbidden, Missing, StoreError
from tests.support.blobs import LIMIT, key_of
from tests.support.other_stores import KINDS, SECRET_KEY, OtherStore
from tests.support.presigned import SITE, Hub, site_store

pytestmark = [pytest.mark.servers, pytest.mark.long]

BELIEVES_ALL = "moto"
"""It looks at no signature."""


Found = tuple[str, OtherStore]
"""A server, and the word for its kind."""


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, other_stores: Callable[[str], OtherStore]) -> Found:
    """Each kind of server in turn."""
    return request.param, other_stores(request.param)


@pytest.fixture
def checking(server: Found) -> OtherStore:
    """Those that look at signatures."""
    if server[0] == BELIEVES_ALL:
        pytest.skip("moto looks at no signature")
    return server[1]


def test_more_objects_and_folders_than_a_page_holds_are_listed_in_order(server: Found, bucket: str) -> None:
    data = [i.to_bytes(4) for i in range(1010)]
    folders = [f"up/s-{i}" if i % 2 else f"up/s-{i - 1}-b" for i in range(len(data))]
    with closing(open_blobs(server[1].url(f"{bucket}/clinics"))) as store, ThreadPoolExecutor(8) as pool:
        store.put(key_of(b"first"), b"first")
        list(pool.map(lambda each: store.put(key_of(each), each), data))
        assert [info.key for info in store.list("models/")] == sorted(map(key_of, [*data, b"first"]))
        keys = [key_of(each, folder) for each, folder in zip(data, folders, strict=True)]
        list(pool.map(store.put, keys, data))
        assert [info.key for info in store.list("up/")] == sorted(keys)


def test_many_clients_that_put_first_make_one_bucket(server: Found, bucket: str) -> None:
    data = [str(i).encode() for i in range(8)]

    def put(item: bytes) -> None:
        with closing(open_blobs(server[1].url(bucket))) as store:
            store.put(key_of(item), item)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, data))
    with closing(open_blobs(server[1].url(bucket))) as store:
        assert {info.key for info in store.list("")} == set(map(key_of, data))


def test_a_wrong_secret_is_refused_at_once(checking: OtherStore, bucket: str) -> None:
    url = checking.url(bucket)
    with closing(open_blobs(url)) as store, closing(open_blobs(url.replace(SECRET_KEY, "not-the-secret"))) as stranger:
        store.put(key_of(b"x"), b"x")
        begun = time.monotonic()
        for call in (lambda: stranger.get(key_of(b"x"), LIMIT), lambda: stranger.put(key_of(b"y"), bytes(6_000_000))):
            with pytest.raises(Forbidden, match="check access key, secret"):
                call()
        assert time.monotonic() - begun < 5


def test_what_is_not_what_its_key_says_is_refused(checking: OtherStore, bucket: str) -> None:
    with closing(open_blobs(checking.url(bucket))) as store:
        store.put(key_of(b"x"), b"x")
        with pytest.raises(StoreError, match="the store will not do this"):
            store.put(key_of(b"y"), b"z")
        with pytest.raises(Missing):
            store.get(key_of(b"y"), LIMIT)


def test_another_region_works_or_the_right_one_is_named(server: Found, bucket: str) -> None:
    with closing(open_blobs(server[1].url(bucket))) as store:
        store.put(key_of(b"x"), b"x")
    elsewhere = S3Blobs.from_url(f"{server[1].url(bucket)}?region=eu-central-1")
    try:
        told = str(elsewhere.get(key_of(b"x"), LIMIT))
    except StoreError as error:
        told = str(error)
    elsewhere.close()
    assert told == str(b"x") or "the bucket is in region 'us-east-1'" in told


def test_urls_of_a_hub_whose_clock_is_hours_behind_are_refused(checking: OtherStore, bucket: str) -> None:
    hub = Hub(checking.url(bucket))
    hub.store.put(key_of(b"x"), b"x")
    with closing(site_store(hub, checking, bucket)) as site:
        assert site.get(key_of(b"x"), LIMIT) == b"x"
        hub.skew = -7200.0
        with pytest.raises(Forbidden, match=r"clock.*or of the machine that signed 3 URLs in a row"):
            site.put(key_of(b"x", f"up/{SITE}"), b"x")
    hub.store.close()
