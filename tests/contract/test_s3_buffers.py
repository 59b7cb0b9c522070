"""Chunks by way of a real S3 server: nothing of their size is allocated for one transfer."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from broker.blobs.chunks import SupportsOpen, open_chunk
from broker.blobs.s3.store import S3Blobs
from protocol import limits
from protocol.errors import Corrupt
from protocol.topology import model_chunk, update_chunk
from tests.support.lent_buffers import LentBuffers
from tests.support.presigned import SITE, Hub, site_store
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers

DATA = os.urandom(8 * 1024 * 1024)
NAME = hashlib.sha256(DATA).hexdigest()
MODEL, UPDATE = model_chunk(NAME), update_chunk(SITE, NAME)
FEW = 1536 * 1024
"""Bytes: a few pieces and a connection's, and no chunk."""


@contextmanager
def allocating_little() -> Iterator[None]:
    """Fails if more than a few pieces are allocated at once."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < FEW


@pytest.mark.parametrize("signed", [False, True])
def test_a_chunk_goes_up_and_comes_down_without_a_copy(
    s3_server: S3Server, bucket: str, lent: LentBuffers, signed: bool
) -> None:
    hub = Hub(s3_server.url(bucket))
    hub.store.put(model_chunk(hashlib.sha256(b"").hexdigest()), b"")  # makes the bucket, and every library is loaded
    store = site_store(hub, s3_server, bucket) if signed else hub.store
    with closing(hub.store), closing(store):
        store.put(UPDATE, memoryview(DATA))
        with allocating_little():
            store.put(UPDATE, memoryview(DATA))
        assert hub.store.get(UPDATE, limits.CHUNK) == DATA
        hub.store.put(MODEL, DATA)
        assert isinstance(store, SupportsOpen)
        store.open(MODEL, limits.CHUNK).close(right=True)
        with allocating_little():
            chunk = store.open(MODEL, limits.CHUNK)
            assert chunk.part(0, len(chunk), memoryview(b"")) == DATA
            chunk.close(right=True)
    assert len(lent.made) == 1
    assert lent.out == set()


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"?", lambda data: data[:-1]])
def test_what_was_changed_in_the_store_is_no_object_and_leaves_no_buffer_out(
    s3_server: S3Server, bucket: str, lent: LentBuffers, change: Callable[[bytes], bytes]
) -> None:
    with closing(S3Blobs.from_url(s3_server.url(bucket))) as store:
        store.put(MODEL, DATA)
        (s3_server.directory / bucket / MODEL).write_bytes(change(DATA))
        for _ in range(2):
            with pytest.raises(Corrupt, match="do not hash to the object's name"):
                open_chunk(store, MODEL, limits.CHUNK)
            assert lent.out == set()
    assert len(lent.made) == 1
