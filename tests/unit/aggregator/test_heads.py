"""The writer of the head: the newest wins, and whoever was fenced writes nothing more."""

from __future__ import annotations

import threading

from aggregator.heads import HeadWriter
from broker.memory_blobs import MemoryBlobs


class Slow(MemoryBlobs):
    """A store whose head can be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.put: list[bytes] = []

    def put_head(self, name: str, data: bytes) -> None:
        self.entered.set()
        self.gate.wait(10)
        self.put.append(data)
        super().put_head(name, data)


def held_up() -> tuple[Slow, HeadWriter]:
    """A writer that is putting `first` while `second` and `third` come."""
    store = Slow()
    writer = HeadWriter(store, "federation")
    writer.put(b"first")
    assert store.entered.wait(10)
    writer.put(b"second")
    writer.put(b"third")
    return store, writer


def test_of_several_heads_that_wait_only_the_newest_is_put() -> None:
    store, writer = held_up()
    store.gate.set()
    writer.close(put=True)
    assert store.put == [b"first", b"third"]


def test_whoever_was_fenced_does_not_put_what_still_waits() -> None:
    store, writer = held_up()
    opened = threading.Timer(0.05, store.gate.set)
    opened.start()
    writer.close(put=False)
    assert store.put == [b"first"]
