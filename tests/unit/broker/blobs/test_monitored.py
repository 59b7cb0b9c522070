"""What is noticed of a store by how its operations end."""

from __future__ import annotations

import hashlib
import time

import pytest

from broker.blobs import monitored
from broker.blobs.memory import MemoryBlobs
from broker.blobs.monitored import MonitoredBlobs
from protocol.errors import ConfigError, Forbidden, Missing, StoreError, TooLarge

DATA = b"chunk"
KEY = f"models/{hashlib.sha256(DATA).hexdigest()}"


class Sick(MemoryBlobs):
    """A store that can be told to fail."""

    sick = False
    full = False
    """Nothing can be put, and nothing looked for."""

    def get(self, key: str, limit: int) -> bytes:
        if self.sick:
            raise StoreError("not done within 30 s")
        return super().get(key, limit)

    def put(self, key: str, data: bytes | memoryview) -> None:
        if self.full:
            raise Forbidden("the store refused this identity")
        super().put(key, data)

    def has(self, key: str) -> bool:
        if self.full:
            raise Forbidden("the store refused this identity")
        return super().has(key)


def test_it_tells_when_failing_begins_and_when_it_ends() -> None:
    inner, told = Sick(), list[float | None]()
    store = MonitoredBlobs(inner)
    store.tell(told.append)
    store.put(KEY, DATA)
    assert told == []
    inner.sick = True
    before = time.time()
    for _ in range(3):
        with pytest.raises(StoreError):
            store.get(KEY, 10)
    (since,) = told
    assert since is not None
    assert before <= since <= time.time()
    inner.sick = False
    assert store.get(KEY, 10) == DATA
    assert [info.key for info in store.list("")] == [KEY]
    assert told == [since, None]


def test_an_answer_is_an_answer_even_if_it_is_no() -> None:
    inner, told = Sick(), list[float | None]()
    store = MonitoredBlobs(inner)
    inner.sick = True
    with pytest.raises(StoreError):
        store.get(KEY, 10)
    store.tell(told.append)
    assert told[0] is not None
    with pytest.raises(ConfigError):
        store.put("../x", DATA)
    assert len(told) == 1
    inner.sick = False
    with pytest.raises(Missing):
        store.get(KEY, 10)
    assert told[1:] == [None]


def test_a_store_that_lets_things_be_read_and_not_written_is_failing_all_the_while() -> None:
    inner, told = Sick(), list[float | None]()
    store = MonitoredBlobs(inner)
    store.tell(told.append)
    store.put(KEY, DATA)
    inner.full = True
    with pytest.raises(Forbidden):
        store.put(KEY, DATA)
    assert store.get(KEY, 10) == DATA
    assert len(told) == 1
    inner.sick = True
    with pytest.raises(StoreError):
        store.get(KEY, 10)
    inner.full = False
    store.put(KEY, DATA)
    assert len(told) == 1
    inner.sick = False
    assert store.get(KEY, 10) == DATA
    assert told[1:] == [None]


def test_a_failure_that_nobody_repeats_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, told = Sick(), list[float | None]()
    store = MonitoredBlobs(inner)
    store.put(KEY, DATA)
    store.tell(told.append)
    inner.full = True
    with pytest.raises(Forbidden):
        store.put(KEY, DATA)  # of a run that ends meanwhile, so it is not tried again
    assert store.get(KEY, 10) == DATA
    assert len(told) == 1
    monkeypatch.setattr(monitored, "_FORGOTTEN_S", 0.0)
    assert store.get(KEY, 10) == DATA
    assert told[1:] == [None]


def test_an_object_that_is_too_large_is_no_fault_of_the_stores() -> None:
    inner, told = Sick(), list[float | None]()
    store = MonitoredBlobs(inner)
    store.put(KEY, DATA)
    store.tell(told.append)
    inner.sick = True
    with pytest.raises(StoreError):
        store.get(KEY, 10)
    inner.sick = False
    with pytest.raises(TooLarge):
        store.get(KEY, 1)
    assert told[1:] == [None]


def test_not_being_allowed_to_look_says_nothing_about_a_store() -> None:
    inner, told = Sick(), list[float | None]()
    store = MonitoredBlobs(inner)
    store.tell(told.append)
    inner.full = True
    with pytest.raises(Forbidden):
        store.has(KEY)
    assert told == []
