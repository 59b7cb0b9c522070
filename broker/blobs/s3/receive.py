"""Objects that are received into the process's buffers instead of bytes of their own."""

from __future__ import annotations

from collections.abc import Callable

from broker.blobs.base import check_digest
from broker.blobs.chunks import BUFFERS, BufferChunk
from protocol.blob import Chunk


def receive_chunk(key: str, limit: int, receive: Callable[[memoryview], tuple[int, str]]) -> Chunk:
    """The object, in one of the process's buffers until its reader closes it.

    Args:
        receive: fills what it is given, which is as large as the object may be, from the start, as often as it has to;
            returns the object's size and SHA-256.

    Raises:
        Corrupt: the bytes do not hash to the key's name; after any error the buffer is given back.
    """
    buffer = BUFFERS.take()
    try:
        size, digest = receive(buffer[:limit])
        check_digest(key, size, digest)
    except BaseException:
        BUFFERS.give_back(buffer)
        raise
    return BufferChunk(buffer, size, key)
