"""Parallel uploads and fetching ahead."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from broker.blobs.memory import MemoryBlobs
from broker.blobs.transfer import Item, Load, fetch_ahead, upload
from protocol.errors import Corrupt, Forbidden, Missing, StoreError, TooLarge

LIMIT = 1000


def key_of(data: bytes) -> str:
    """The object key these bytes belong under."""
    return f"models/{hashlib.sha256(data).hexdigest()}"


DATA = [str(i).encode() * 3 for i in range(12)]
KEYS = [key_of(data) for data in DATA]


def filled(store: MemoryBlobs) -> MemoryBlobs:
    """`store` with all of DATA in it."""
    for key, data in zip(KEYS, DATA, strict=True):
        store.put(key, data)
    return store


class Watched(MemoryBlobs):
    """A memory store that knows how many calls run at once and can be held back."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.count = threading.Condition()
        self.running = 0
        self.most = 0
        self.started: list[str] = []

    def _enter(self, key: str) -> None:
        with self.count:
            self.running += 1
            self.most = max(self.most, self.running)
            self.started.append(key)
            self.count.notify_all()
        self.gate.wait(10)

    def _leave(self) -> None:
        with self.count:
            self.running -= 1
            self.count.notify_all()

    def wait_started(self, number: int) -> None:
        """Wait until `number` calls have begun in all."""
        with self.count:
            assert self.count.wait_for(lambda: len(self.started) >= number, 10)

    def wait_idle(self) -> None:
        """Wait until no call runs."""
        with self.count:
            assert self.count.wait_for(lambda: self.running == 0, 10)

    def get(self, key: str, limit: int) -> bytes:
        self._enter(key)
        try:
            return super().get(key, limit)
        finally:
            self._leave()

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._enter(key)
        try:
            super().put(key, data)
        finally:
            self._leave()


def items(loaded: list[str]) -> list[Item]:
    """DATA to be uploaded; what is really loaded is noted."""

    def load(key: str, data: bytes) -> Load:
        def read() -> nullcontext[bytes]:
            loaded.append(key)
            return nullcontext(data)

        return read

    return [(key, load(key, data)) for key, data in zip(KEYS, DATA, strict=True)]


@pytest.mark.parametrize("parallel", [1, 3, 20])
def test_an_upload_puts_what_is_missing_and_loads_nothing_else(parallel: int) -> None:
    store = MemoryBlobs()
    for i in (0, 5, 11):
        store.put(KEYS[i], DATA[i])
    loaded: list[str] = []
    done = upload(store, items(loaded), parallel=parallel)
    assert (done.sent, done.skipped) == (9, 3)
    assert done.sent_bytes == sum(len(DATA[i]) for i in range(12) if i not in (0, 5, 11))
    assert sorted(loaded) == sorted(set(KEYS) - {KEYS[0], KEYS[5], KEYS[11]})
    assert all(store.get(key, LIMIT) == data for key, data in zip(KEYS, DATA, strict=True))


def test_an_upload_runs_no_more_than_it_may_at_once_and_reads_no_further_ahead() -> None:
    store = Watched()
    store.gate.clear()
    loaded: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(upload, store, items(loaded), parallel=3)
        store.wait_started(3)
        assert len(loaded) == 3
        store.gate.set()
        assert going.result(10).sent == 12
    assert store.most == 3


def test_a_failing_upload_raises_the_failure_and_begins_nothing_further() -> None:
    class Broken(MemoryBlobs):
        def put(self, key: str, data: bytes | memoryview) -> None:
            if key == KEYS[2]:
                raise StoreError("no room")
            super().put(key, data)

    store = Broken()
    loaded: list[str] = []
    with pytest.raises(StoreError, match="no room"):
        upload(store, items(loaded), parallel=2)
    assert KEYS[2] in loaded
    assert len(loaded) < 6


def test_an_identity_that_may_put_but_not_look_puts_everything() -> None:
    class PutOnly(MemoryBlobs):
        def has(self, key: str) -> bool:
            raise Forbidden("not yours to see")

    store = PutOnly()
    assert upload(store, items([]), parallel=2).sent == 12


@pytest.mark.parametrize(("parallel", "ahead"), [(1, 0), (1, 1), (2, 2), (4, 20)])
def test_what_is_fetched_ahead_comes_in_order(parallel: int, ahead: int) -> None:
    store = filled(MemoryBlobs())
    assert list(fetch_ahead(store.get, KEYS, LIMIT, parallel=parallel, ahead=ahead)) == DATA


def test_nothing_to_fetch_is_nothing() -> None:
    assert list(fetch_ahead(MemoryBlobs().get, [], LIMIT)) == []


def test_fetching_goes_no_further_ahead_than_asked() -> None:
    store = Watched()
    filled(store)
    store.started.clear()
    stream = fetch_ahead(store.get, KEYS, LIMIT, parallel=8, ahead=2)
    for taken in range(1, 6):
        assert next(stream) == DATA[taken - 1]
        store.wait_started(taken + 2)
        store.wait_idle()
        assert sorted(store.started) == sorted(KEYS[: taken + 2])
    stream.close()


def test_a_stream_that_is_closed_early_ends_its_threads_and_fetches_nothing_more() -> None:
    store = Watched()
    filled(store)
    store.started.clear()
    before = set(threading.enumerate())
    stream = fetch_ahead(store.get, KEYS, LIMIT, parallel=1, ahead=6)
    next(stream)
    mine = [thread for thread in threading.enumerate() if thread not in before]
    assert mine
    stream.close()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()
    assert len(store.started) <= 7
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_that_is_dropped_ends_its_threads() -> None:
    before = set(threading.enumerate())
    stream = fetch_ahead(filled(MemoryBlobs()).get, KEYS, LIMIT, ahead=4)
    next(stream)
    mine = [thread for thread in threading.enumerate() if thread not in before]
    del stream
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


def test_a_shared_pool_is_left_running() -> None:
    store = filled(MemoryBlobs())
    with ThreadPoolExecutor(2) as pool:
        streams = [fetch_ahead(store.get, KEYS, LIMIT, pool=pool) for _ in range(5)]
        for taken in zip(*streams, strict=True):
            assert len(set(taken)) == 1
        assert pool.submit(int, "3").result(10) == 3


@pytest.mark.parametrize("error", [Missing, Corrupt, TooLarge])
def test_a_failure_comes_at_its_place_in_the_order(error: type[Exception]) -> None:
    store = filled(MemoryBlobs())
    limit = LIMIT
    if error is Missing:
        store.delete(KEYS[4])
    elif error is Corrupt:
        store._objects[KEYS[4]] = (b"wrong", 0.0)
    else:
        limit = 5
        store._objects[KEYS[4]] = (b"too long", 0.0)
    stream = fetch_ahead(store.get, KEYS[:5], limit, ahead=4)
    assert [next(stream) for _ in range(4)] == DATA[:4]
    with pytest.raises(error):
        next(stream)
