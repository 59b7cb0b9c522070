"""The contract of all blob stores on SeaweedFS, by the aggregator's identity, over TLS; and what a kill leaves."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.blobs.base import BlobStore
from broker.blobs.open import open_blobs
from tests.contract import test_blobs
from tests.contract.test_blobs import LIMIT, Subject, key_of
from tests.contract.test_store_identities import at, empty
from tests.support.seaweed import FEDERATION, SeaweedServer

pytestmark = pytest.mark.servers


@pytest.fixture
def subject(seaweed: SeaweedServer) -> Iterator[Subject]:
    """The bucket, empty, and the hand that changes an object behind the store's back."""
    aggregator = seaweed.federation.caller("aggregator")

    def overwrite(key: str, data: bytes) -> None:
        assert aggregator.send("PUT", at(key), body=data).status == 200

    empty(aggregator)
    store = open_blobs(seaweed.federation.url("aggregator"))
    yield Subject(store, overwrite)
    store.close()
    empty(aggregator)
    aggregator.close()


@pytest.fixture
def store(subject: Subject) -> BlobStore:
    """The store alone."""
    return subject.store


# What is said there of every store is said here of this one.
test_what_was_put_is_what_is_got = test_blobs.test_what_was_put_is_what_is_got
test_putting_again = test_blobs.test_putting_the_same_object_again_is_harmless
test_missing = test_blobs.test_an_object_that_is_not_there_is_missing
test_missing_among_others = test_blobs.test_an_object_is_missing_also_when_others_are_there
test_a_flipped_bit_is_found_and_a_new_put_mends_it = test_blobs.test_a_flipped_bit_is_found_and_a_new_put_mends_it
test_a_shortened_object_is_found = test_blobs.test_a_shortened_object_is_found
test_too_large = test_blobs.test_an_object_over_the_limit_is_refused_and_one_at_the_limit_is_not
test_listing = test_blobs.test_listing_is_sorted_by_key_and_keeps_to_the_prefix
test_an_empty_store_lists_nothing = test_blobs.test_an_empty_store_lists_nothing
test_heads_are_not_listed = test_blobs.test_heads_are_not_listed
test_objects_carry_the_time_they_were_stored = test_blobs.test_objects_carry_the_time_they_were_stored
test_deleting_is_idempotent = test_blobs.test_deleting_is_idempotent
test_deleting_in_an_empty_store_is_harmless = test_blobs.test_deleting_in_an_empty_store_is_harmless
test_a_head_is_overwritten_and_starts_as_none = test_blobs.test_a_head_is_overwritten_and_starts_as_none
test_many_threads = test_blobs.test_many_threads_put_the_same_and_other_objects_at_once


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
