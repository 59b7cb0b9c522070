"""Collecting objects that nothing refers to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from broker.blobs.base import BlobStore
from broker.blobs.directory import FileBlobs
from broker.blobs.garbage import DAY_S, Collected, collect, store_time
from broker.blobs.memory import MemoryBlobs
from protocol.errors import StoreError


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def put(store: BlobStore, text: str, folder: str = "up/site-a") -> str:
    """Store a small object and return its key."""
    data = text.encode()
    key = f"{folder}/{hashlib.sha256(data).hexdigest()}"
    store.put(key, data)
    return key


def test_only_what_is_old_and_unreferenced_below_the_prefix_goes() -> None:
    clock = Clock()
    store = MemoryBlobs(clock)
    old, kept, elsewhere = put(store, "old"), put(store, "referenced"), put(store, "other", "models")
    store.put_head("demo", b"head")
    clock.now += 14 * DAY_S
    boundary = put(store, "boundary")
    clock.now += 1
    assert collect(store, "up/", {kept}) == Collected(count=1, bytes=3)
    assert {info.key for info in store.list("")} == {kept, elsewhere, boundary}
    assert not store.has(old)
    assert store.get_head("demo", 100) == b"head"
    assert collect(store, "up/", {kept}) == Collected(count=0, bytes=0)


def test_an_object_of_exactly_the_age_stays() -> None:
    clock = Clock()
    store = MemoryBlobs(clock)
    key = put(store, "x")
    clock.now += 14 * DAY_S
    assert collect(store, "", set()).count == 0
    assert store.has(key)


def test_references_may_be_asked_for_one_by_one() -> None:
    store = MemoryBlobs(Clock())
    kept = put(store, "kept")
    put(store, "goes")
    assert collect(store, "up/", lambda key: key == kept, older_than_days=0, now=2_000_000.0).count == 1
    assert store.has(kept)


def test_the_age_is_by_the_stores_clock() -> None:
    clock = Clock()  # in January 1970: by this machine's clock everything is half a century old
    store = MemoryBlobs(clock)
    key = put(store, "fresh")
    assert store_time(store) == clock.now
    assert collect(store, "", set()).count == 0
    assert [info.key for info in store.list("")] == [key]


def test_a_directory_is_collected_by_its_files_times(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path)
    key = put(store, "x")
    (info,) = store.list("")
    assert collect(store, "", set(), now=info.modified + 13.9 * DAY_S).count == 0
    assert collect(store, "", set(), now=info.modified + 14.1 * DAY_S) == Collected(count=1, bytes=1)
    assert not store.has(key)


def test_a_store_that_does_not_list_what_was_put_is_left_alone() -> None:
    class Forgetful(MemoryBlobs):
        def put(self, key: str, data: bytes | memoryview) -> None:
            if not key.startswith("clock/"):
                super().put(key, data)

    store = Forgetful(Clock())
    key = put(store, "x")
    with pytest.raises(StoreError, match="nothing was collected"):
        collect(store, "", set(), older_than_days=-1)
    assert store.has(key)
