"""Lent buffers that are overwritten at the moment they are given back, and executors that do their work at any time."""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from broker.blobs.chunks import BufferChunk, BufferPool
from broker.blobs.memory import MemoryBlobs
from broker.blobs.transfer import ChunkUploads
from broker.runtime.threads import InlineExecutor
from protocol.blob import BlobReader, Chunk
from tests.support.chunks import Late
from tests.support.lent_buffers import LentBuffers

NAN = b"\xff"
"""Four of these are no number."""


def poison(buffer: memoryview) -> None:
    """Overwrite what nobody may read any more."""
    buffer.cast("B")[:] = NAN * buffer.nbytes


@contextmanager
def poisoned(*, lent: int = 1) -> Iterator[None]:
    """Every reader and every upload keeps its promise to the letter, and not a moment longer.

    `lent`: how many records stay valid beside the one that is asked for. The promise is one; fewer break it.
    """
    read, uploads = BlobReader.read, ChunkUploads.__init__

    def read_poisoned(self: BlobReader, chunks: Iterable[Chunk], pool: Executor | None = None) -> Iterator[memoryview]:
        out: deque[memoryview] = deque()
        for record in read(self, chunks, pool):
            own = memoryview(bytearray(record))
            out.append(own)
            yield own.toreadonly()
            while len(out) > lent:
                poison(out.popleft())

    def uploads_poisoned(
        self: ChunkUploads, put: Callable[[bytes, memoryview], None], pool: Executor, **options: Any
    ) -> None:
        def put_poisoned(name: bytes, chunk: memoryview) -> None:
            put(name, chunk)
            poison(chunk)

        uploads(self, put_poisoned, pool, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlobReader, "read", read_poisoned)
        patch.setattr(ChunkUploads, "__init__", uploads_poisoned)
        yield


class PooledBlobs(MemoryBlobs):
    """A store in memory that lends an opened object in a pool's buffer, as a remote store does."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: BufferPool = LentBuffers()

    def open(self, key: str, limit: int) -> Chunk:
        """The object, in a buffer that is overwritten when its reader closes it."""
        data = self.get(key, limit)
        buffer = self.buffers.take()
        buffer[: len(data)] = data
        return BufferChunk(buffer, len(data), key, self.buffers)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store it, if it is what its name says."""
        if hashlib.sha256(data).hexdigest() != key[-64:]:
            raise AssertionError("a chunk changed before it was put")
        super().put(key, data)


class Jittery(ThreadPoolExecutor):
    """Threads that begin and end a moment later than they could."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As usual."""

        def late() -> Any:
            time.sleep(random.random() * 2e-4)
            try:
                return fn(*args, **kwargs)
            finally:
                time.sleep(random.random() * 2e-4)

        return super().submit(late)


@contextmanager
def executor(kind: str) -> Iterator[Executor]:
    """One that works at once, as late as may be, or whenever its threads get to it."""
    if kind == "jittery":
        with Jittery(3) as threads:
            yield threads
    else:
        yield InlineExecutor() if kind == "here" else Late()


EXECUTORS = ("here", "late", "jittery")
