"""What SeaweedFS does beyond the contract of all stores, by the aggregator's identity, over TLS; what a kill leaves."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from broker.blobs.base import BlobStore
from broker.blobs.open import open_blobs
from tests.support.blobs import LIMIT, key_of
from tests.support.seaweed import FEDERATION, SeaweedServer, empty

pytestmark = pytest.mark.servers


@pytest.fixture
def store(seaweed: SeaweedServer) -> Iterator[BlobStore]:
    """The bucket, empty."""
    with closing(seaweed.federation.caller("aggregator")) as aggregator:
        empty(aggregator)
        with closing(open_blobs(seaweed.federation.url("aggregator"))) as store:
            yield store
        empty(aggregator)


def test_a_reader_sees_whole_heads_while_they_are_overwritten(store: BlobStore) -> None:
    whole = {bytes([65 + i]) * (20_000 + 1000 * i) for i in range(6)}
    store.put_head(FEDERATION, min(whole))
    done = threading.Event()

    def write() -> None:
        try:
            for _ in range(10):
                for head in whole:
                    store.put_head(FEDERATION, head)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        seen = [store.get_head(FEDERATION, LIMIT)]
        while not done.is_set():
            seen.append(store.get_head(FEDERATION, LIMIT))
        writer.result()
    assert set(seen) <= whole
    assert len(set(seen)) > 1


def test_more_objects_than_a_page_holds_are_listed_in_order(store: BlobStore) -> None:
    data = [i.to_bytes(4) for i in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: store.put(key_of(each, "up/north"), each), data))
    assert [info.key for info in store.list("up/")] == sorted(key_of(each, "up/north") for each in data)


def test_more_folders_than_a_page_holds_are_listed_in_order(store: BlobStore) -> None:
    data = [i.to_bytes(4) for i in range(1100)]
    folders = [f"up/s-{i}" if i % 2 else f"up/s-{i - 1}-b" for i in range(1100)]
    expected = sorted(key_of(each, folder) for each, folder in zip(data, folders, strict=True))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.put, map(key_of, data, folders), data))
    assert [info.key for info in store.list("up/")] == expected


def test_what_was_acknowledged_is_there_after_a_kill_and_a_call_waits_for_the_server(
    private_seaweed: SeaweedServer,
) -> None:
    store = open_blobs(private_seaweed.federation.url("aggregator"))
    data = [os.urandom(size) for size in (10, 100_000, 8 * 1024 * 1024)]
    for each in data:
        store.put(key_of(each), each)
    store.put_head(FEDERATION, b"head 1")
    store.put_head(FEDERATION, b"head 2")
    private_seaweed.kill()
    with ThreadPoolExecutor(2) as pool:
        blob, head = pool.submit(store.get, key_of(data[2]), LIMIT), pool.submit(store.get_head, FEDERATION, LIMIT)
        private_seaweed.start()
        assert (blob.result(60), head.result(60)) == (data[2], b"head 2")
    assert [store.get(key_of(each), LIMIT) for each in data] == data
    store.put(key_of(b"later"), b"later")
    assert sorted(info.key for info in store.list("")) == sorted(key_of(each) for each in (*data, b"later"))
    store.close()
