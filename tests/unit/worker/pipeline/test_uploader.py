from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from broker.blobs.base import BlobStore
from broker.blobs.chunks import BufferPool
from broker.blobs.directory import FileBlobs
from broker.blobs.memory import MemoryBlobs
from broker.runtime.threads import InlineExecutor
from protocol.cipher import Suite
from protocol.envelope import unlock, verify
from protocol.errors import StoreError
from protocol.messages import Kind
from protocol.topology import update_chunk
from tests.support.hostile import flip
from tests.support.lent_buffers import LentBuffers
from tests.support.wire import AGGREGATOR, FEDERATION, REGISTRY, SITE_A, Made, make, payload, read
from worker.domain import events
from worker.domain.state import Sealed, UpdateRow
from worker.intake import Reader
from worker.pipeline.context import SiteContext
from worker.pipeline.reseal import wrap
from worker.pipeline.uploader import Throttle, Uploader
from worker.storage.spool import Spool


class Line:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def throttle(self, rate: float | None) -> Throttle:
        return Throttle(rate, clock=lambda: self.now, wait=self.wait)


class Store(MemoryBlobs):
    """Counts what is put at once, and when."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line
        self.put_at: list[tuple[float, int]] = []

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.put_at.append((self._line.now, len(data)))
        super().put(key, data)


def never() -> Any:
    raise AssertionError("not needed here")


def uploader(store: BlobStore, spool: Spool, throttle: Throttle) -> tuple[Uploader, list[Any]]:
    told: list[Any] = []
    context = SiteContext(site="alpha", reader=never, tell=told.append, log=structlog.get_logger())
    return Uploader(store, spool, context, throttle), told


def spooled(spool: Spool, *sizes: int) -> UpdateRow:
    names = []
    with spool.batch() as batch:
        sink = batch.chunks(InlineExecutor())
        for index, size in enumerate(sizes):
            data = bytes([index]) * size
            names.append(hashlib.sha256(data).digest())
            sink.emit(names[-1], memoryview(data))
        batch.sync()
    return UpdateRow(row=1, id=b"i" * 16, run="r", base_version=0, epoch=0, sequence=1, chunks=tuple(names))


@pytest.mark.parametrize("anew", [False, True])
def test_no_more_leaves_than_the_policy_allows_averaged_over_a_chunk(tmp_path: Path, anew: bool) -> None:
    line = Line()
    store, spool = Store(line), Spool(tmp_path, 10**6)
    row = spooled(spool, 1000, 3000, 2000, 500)
    sender, told = uploader(store, spool, line.throttle(1000.0))
    sender.upload(row, anew=anew)
    assert told == [events.Uploaded(row=1)]
    assert store.put_at == [(0.0, 1000), (1.0, 3000), (4.0, 2000), (6.0, 500)]


def test_what_lies_in_the_store_already_costs_nothing(tmp_path: Path) -> None:
    line = Line()
    store, spool = Store(line), Spool(tmp_path, 10**6)
    row = spooled(spool, 1000, 3000, 2000)
    store.put(update_chunk("alpha", row.chunks[1].hex()), bytes([1]) * 3000)
    sender, _ = uploader(store, spool, line.throttle(1000.0))
    sender.upload(row, anew=False)
    assert store.put_at[1:] == [(0.0, 1000), (1.0, 2000)]


def test_without_a_limit_nobody_waits(tmp_path: Path) -> None:
    line = Line()
    store, spool = Store(line), Spool(tmp_path, 10**6)
    sender, told = uploader(store, spool, line.throttle(None))
    sender.upload(spooled(spool, 1000, 3000, 2000), anew=False)
    assert told == [events.Uploaded(row=1)]
    assert line.waits == []


@pytest.mark.parametrize("anew", [False, True])
def test_no_more_than_four_buffers_are_out_and_all_come_back(tmp_path: Path, anew: bool) -> None:
    class Failing(Store):
        def put(self, key: str, data: bytes | memoryview) -> None:
            if key == failing:
                raise StoreError("no room")
            super().put(key, data)

    line, lent, failing = Line(), LentBuffers(), ""
    store, spool = Failing(line), Spool(tmp_path, 10**6, buffers=lent)
    row = spooled(spool, *range(1000, 1012))
    sender, told = uploader(store, spool, line.throttle(None))
    sender.upload(row, anew=anew)
    assert told == [events.Uploaded(row=1)]
    for name in row.chunks:
        assert hashlib.sha256(store.get(update_chunk("alpha", name.hex()), 2000)).digest() == name
        store.delete(update_chunk("alpha", name.hex()))
    failing = update_chunk("alpha", row.chunks[6].hex())
    sender.upload(row, anew=anew)
    assert told[1:] == [events.SendingFailed(row=1, lost=False)]
    spool.path(row.chunks[6]).write_bytes(b"damaged")
    sender.upload(row, anew=anew)
    assert told[2:] == [events.SendingFailed(row=1, lost=True)]
    assert lent.out == set()
    assert 1 <= lent.most <= 4


def test_a_directory_has_the_spools_own_files(tmp_path: Path) -> None:
    store, spool = FileBlobs(tmp_path / "store"), Spool(tmp_path / "spool", 10**6)
    row = spooled(spool, 1000, 3000, 0)
    sender, told = uploader(store, spool, Throttle(None))
    for anew, names in ((False, 2), (False, 2), (True, 1)):  # what is wanted anew is read, compared and written
        sender.upload(row, anew=anew)
        assert [spool.path(name).stat().st_nlink for name in row.chunks] == [names] * 3
    assert told == [events.Uploaded(row=1)] * 3
    assert [len(store.get(update_chunk("alpha", name.hex()), 10**6)) for name in row.chunks] == [1000, 3000, 0]


def test_where_memory_is_short_for_a_while_the_update_is_sent_later(tmp_path: Path) -> None:
    class Short(BufferPool):
        def take(self) -> memoryview:
            raise MemoryError("no memory")

    spool = Spool(tmp_path, 10**6, buffers=Short())
    sender, told = uploader(MemoryBlobs(), spool, Throttle(None))
    sender.upload(spooled(spool, 1000), anew=False)
    assert told == [events.SendingFailed(row=1, lost=False)]


@pytest.mark.parametrize("anew", [False, True])
def test_a_chunk_that_is_gone_from_the_spool_is_lost_and_not_tried_for_ever(tmp_path: Path, anew: bool) -> None:
    store, spool = FileBlobs(tmp_path / "store"), Spool(tmp_path / "spool", 10**6)
    row = spooled(spool, 1000, 3000)
    spool.path(row.chunks[1]).unlink()
    sender, told = uploader(store, spool, Throttle(None))
    sender.upload(row, anew=anew)
    assert told == [events.SendingFailed(row=1, lost=True)]


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: flip(data, 3)])
def test_a_chunk_that_is_damaged_in_the_spool_is_lost_when_it_is_sealed_again(
    tmp_path: Path, suite: Suite, damage: Callable[[bytes], bytes]
) -> None:
    spool, made = Spool(tmp_path, 10**6), make(Kind.UPDATE, suite=suite)
    with spool.batch() as batch:
        name = hashlib.sha256(made.chunks[0]).digest()
        batch.chunks(InlineExecutor()).emit(name, memoryview(made.chunks[0]))
        batch.sync()
    row = UpdateRow(row=1, id=b"i" * 16, run="r", base_version=0, epoch=0, sequence=1, chunks=(name,))
    key = unlock(verify(made.raw, REGISTRY, federation=FEDERATION, kinds={Kind.UPDATE}), AGGREGATOR)
    sealed = Sealed(envelope=made.raw, chunks=(name,), key=wrap(key, SITE_A))
    reader = Reader(federation=FEDERATION, identity=SITE_A, registry=replace(REGISTRY, cipher=suite.word))
    told: list[Any] = []
    context = SiteContext(site="site-a", reader=lambda: reader, tell=told.append, log=structlog.get_logger())
    sender = Uploader(MemoryBlobs(), spool, context)
    sender.reseal(row, sealed, 2, 30)
    (again,) = told
    assert isinstance(again, events.Resealed)
    assert read(
        Made(again.sealed.envelope, tuple(spool.path(name).read_bytes() for name in again.sealed.chunks))
    ).blob == payload(Kind.UPDATE)
    spool.path(name).write_bytes(damage(made.chunks[0]))
    sender.reseal(row, sealed, 2, 31)
    assert told[1:] == [events.SendingFailed(row=1, lost=True)]
    assert {path.name for path in tmp_path.iterdir()} == {name.hex(), *(chunk.hex() for chunk in again.sealed.chunks)}


def test_a_quiet_hour_saves_nothing_up_for_a_burst() -> None:
    line = Line()
    throttle = line.throttle(1000.0)
    throttle.spend(1000)
    line.now = 3600.0
    for _ in range(3):
        throttle.pause()
        throttle.spend(2000)
    assert line.waits == [2.0, 2.0]


def test_a_worker_that_stops_waits_for_no_line() -> None:
    throttle = Throttle(1.0)
    throttle.spend(10**9)
    outcome: list[str] = []

    def wait() -> None:
        try:
            throttle.pause()
        except StoreError as error:
            outcome.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    throttle.close()
    waiter.join(10)
    assert outcome == ["the worker stops; the update is sent at its next start"]
