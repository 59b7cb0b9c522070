"""Blobs in memory: chunks collected in a list, and read back from one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest

from broker.blobs.chunks import SupportsGet
from broker.blobs.memory import MemoryBlobs
from broker.blobs.transfer import KeyOf, read_blob
from protocol import limits
from protocol.blob import BlobReader, BlobWriter, CallbackSink, HeldChunk
from protocol.spec import records


def cut(data: bytes) -> Iterator[bytes]:
    """A payload's records."""
    for index in range(records(len(data))):
        yield data[index * limits.RECORD : (index + 1) * limits.RECORD]


def write_blob(writer: BlobWriter, data: bytes) -> None:
    """Every record of `data`, in order."""
    for record in cut(data):
        writer.write(record)


def collected(chunks: list[bytes]) -> CallbackSink:
    """A sink that appends each chunk."""
    return CallbackSink(lambda _name, chunk: chunks.append(bytes(chunk)))


def plaintext(reader: BlobReader, chunks: Iterable[bytes], *, checked: bool = False) -> bytes:
    """What the chunks hold; `checked`: as if their hashes had been compared before."""
    held = (HeldChunk(chunk, checked=checked) for chunk in chunks)
    return b"".join(bytes(record) for record in reader.read(held))


def stored(store: SupportsGet, reader: BlobReader, key_of: KeyOf) -> bytes:
    """What a blob in a store holds."""
    return b"".join(bytes(record) for record in read_blob(store, reader, key_of))


class Counted(MemoryBlobs):
    """A memory store that notes what is fetched from it."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def get(self, key: str, limit: int) -> bytes:
        self.fetched.append(key)
        return super().get(key, limit)


@contextmanager
def small_records(size: int = 32) -> Iterator[None]:
    """Limits scaled down; every formula stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "RECORD", size)
        patch.setattr(limits, "CHUNK", limits.RECORDS_PER_CHUNK * (size + 32))
        yield


class Late(Executor):
    """Does its work as late as may be: when somebody asks for the result. The worst case for a lent buffer."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that does its work in `result`."""
        return _LateFuture(fn, args, kwargs)


class _LateFuture(Future[Any]):
    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        super().__init__()
        self._work: Callable[[], Any] | None = lambda: fn(*args, **kwargs)

    def result(self, timeout: float | None = None) -> Any:
        work, self._work = self._work, None
        if work is not None:
            try:
                self.set_result(work())
            except BaseException as error:
                self.set_exception(error)
        return super().result(timeout)
