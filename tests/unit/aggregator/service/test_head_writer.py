"""The writer of the head: the newest wins, and whoever was fenced writes nothing more."""

from __future__ import annotations

import hashlib
import threading
import time

from aggregator.service.head_writer import PACE, HeadWriter
from broker.blobs.memory import MemoryBlobs
from protocol.errors import StoreError
from protocol.topology import record_key


class Slow(MemoryBlobs):
    """A store whose head can be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.heads: list[bytes] = []
        self.announced: list[tuple[bytes, list[bytes]]] = []
        self.told = threading.Event()

    def tell(self, head: bytes) -> None:
        self.announced.append((head, list(self.heads)))
        self.told.set()

    def put_head(self, name: str, data: bytes) -> None:
        self.entered.set()
        self.gate.wait(10)
        self.heads.append(data)
        super().put_head(name, data)


def held_up() -> tuple[Slow, HeadWriter]:
    """A writer that is putting `first` while `second` and `third` come."""
    store = Slow()
    writer = HeadWriter(store, "federation", store.tell, b"registry")
    writer.put(b"first")
    assert store.entered.wait(10)
    writer.put(b"second")
    writer.put(b"third")
    return store, writer


def test_of_several_heads_that_wait_only_the_newest_is_put() -> None:
    store, writer = held_up()
    store.gate.set()
    writer.close(put=True)
    assert store.heads == [b"first", b"third"]


def test_whoever_was_fenced_does_not_put_what_still_waits() -> None:
    store, writer = held_up()
    opened = threading.Timer(0.05, store.gate.set)
    opened.start()
    writer.close(put=False)
    assert store.heads == [b"first"]


def test_a_head_is_announced_only_after_it_was_put() -> None:
    store, writer = held_up()
    writer.announce()
    assert not store.announced
    store.gate.set()
    assert store.told.wait(10)
    writer.close(put=True)
    assert store.announced == [(b"third", [b"first", b"third"])]


def test_heads_that_are_not_announced_are_put_a_few_times_a_second_and_the_last_one_always() -> None:
    store = Slow()
    store.gate.set()
    writer = HeadWriter(store, "federation", store.tell, b"registry")
    began = time.monotonic()
    number = 0
    while time.monotonic() < began + 3.5 * PACE:
        number += 1
        writer.put(b"%d" % number)
    took = time.monotonic() - began
    writer.put(b"last")
    writer.close(put=True)
    assert 3 <= len(store.heads) <= took / PACE + 2
    assert store.heads[-1] == b"last"


def test_a_head_is_announced_without_waiting_for_its_turn() -> None:
    store = Slow()
    store.gate.set()
    writer = HeadWriter(store, "federation", store.tell, b"registry")
    began = time.monotonic()
    for number in range(40):
        store.told.clear()
        writer.put(b"%d" % number)
        writer.announce()
        assert store.told.wait(10)
    assert time.monotonic() - began < 20 * PACE
    writer.close(put=True)
    assert [head for head, _ in store.announced] == store.heads == [b"%d" % number for number in range(40)]


def test_a_head_is_announced_although_the_store_is_away() -> None:
    class Away(Slow):
        def put_head(self, name: str, data: bytes) -> None:
            raise StoreError("the store is away")

    store = Away()
    writer = HeadWriter(store, "federation", store.tell, b"registry")
    writer.put(b"head")
    writer.announce()
    assert store.told.wait(10)
    writer.close(put=False)
    assert store.announced == [(b"head", [])]


def test_the_registry_that_the_first_head_names_is_there_before_it() -> None:
    store, writer = held_up()
    assert store.get(record_key(hashlib.sha256(b"registry").hexdigest()), 100) == b"registry"
    store.gate.set()
    writer.close(put=True)
