"""Objects received into lent buffers, from servers that send too much, too little, garbage, or nothing at all."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from broker.blobs.base import BlobStore
from broker.blobs.chunks import SupportsOpen
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from protocol import limits
from protocol.blob import Chunk
from protocol.errors import Corrupt, FledgeError, Missing, StoreError, TooLarge
from protocol.messages import Grant
from tests.support.lent_buffers import LentBuffers

DATA = os.urandom(700_001)
KEY = f"models/{hashlib.sha256(DATA).hexdigest()}"
EMPTY = f"models/{hashlib.sha256(b'').hexdigest()}"
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
HALF = 350_000


def sized(body: bytes, said: int | None = None) -> bytes:
    """An answer that declares its size."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body) if said is None else said, body)


def in_chunks(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """An answer that does not."""
    pieces = (body[i : i + 99_999] for i in range(0, len(body), 99_999))
    sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b%b" % (sent, end)


@contextmanager
def saying(answers: list[bytes], stall: bool = False) -> Iterator[int]:
    """A server that gives these answers to its connections in turn, again and again the last; its port.

    It hangs up after each, or with `stall` when nobody waits any more.
    """

    def serve() -> None:
        with suppress(OSError):
            while True:
                heard, _ = listener.accept()
                with heard, suppress(OSError):
                    heard.recv(65536)
                    heard.sendall(answers.pop(0) if len(answers) > 1 else answers[0])
                    if stall:
                        ended.wait()

    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()


def with_keys(port: int, deadline: float) -> BlobStore:
    return S3Blobs.from_url(f"s3://key:secret@127.0.0.1:{port}/bucket?deadline={deadline}")


def without_keys(port: int, deadline: float) -> BlobStore:
    def ask(_: object) -> Grant:
        return Grant(message=b"m" * 16, head=b"", urls=(f"http://127.0.0.1:{port}/bucket/{wanted[0]}",), expires=0)

    class Site(PresignedBlobs):
        def open(self, key: str, limit: int) -> Chunk:
            wanted[:] = [key]
            return super().open(key, limit)

    wanted = [KEY]
    return Site.from_url(f"s3://127.0.0.1:{port}/bucket?deadline={deadline}", ask, "site-a")


@pytest.fixture(params=[with_keys, without_keys])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., Chunk]]:
    """Opens the object at a server, as one of the two kinds of store."""
    stores = []

    def open_at(port: int, *, key: str = KEY, limit: int = limits.CHUNK, deadline: float = 20) -> Chunk:
        stores.append(request.param(port, deadline))
        store = stores[-1]
        assert isinstance(store, SupportsOpen)
        return store.open(key, limit)

    yield open_at
    for store in stores:
        store.close()


@pytest.mark.parametrize("answer", [sized(DATA), in_chunks(DATA)])
def test_an_object_is_received_into_one_lent_buffer(
    opened: Callable[..., Chunk], lent: LentBuffers, answer: bytes
) -> None:
    with saying([answer]) as port:
        chunk = opened(port, limit=len(DATA))
        assert chunk.checked
        assert len(chunk) == len(DATA)
        nothing = memoryview(b"")
        assert bytes(chunk.part(0, len(DATA), nothing)) == DATA
        assert chunk.part(5, 9, nothing) == DATA[5:9]
        assert id(chunk.part(0, 1, nothing).obj) in lent.out
        chunk.close(right=True)
        chunk.close(right=True)
        assert lent.out == set()
        with pytest.raises(ValueError, match="read after it was closed"):
            chunk.part(0, 1, nothing)


@pytest.mark.parametrize("answer", [sized(b""), in_chunks(b"")])
def test_an_empty_object_is_one(opened: Callable[..., Chunk], lent: LentBuffers, answer: bytes) -> None:
    with saying([answer]) as port:
        chunk = opened(port, key=EMPTY)
        assert len(chunk) == 0
        chunk.close(right=True)
    assert lent.out == set()


def test_what_is_cut_short_is_asked_for_again_into_the_same_buffer(
    opened: Callable[..., Chunk], lent: LentBuffers
) -> None:
    other = os.urandom(HALF)
    answers = [sized(other, len(DATA)), in_chunks(other, b""), in_chunks(other, b"zz\r\n"), b"", sized(DATA)]
    with saying(answers) as port:
        chunk = opened(port)
        assert bytes(chunk.part(0, len(chunk), memoryview(b""))) == DATA
        chunk.close(right=True)
    assert answers == [sized(DATA)]
    assert len(lent.made) == 1


@pytest.mark.parametrize(
    ("answer", "expected", "why"),
    [
        (sized(bytes(len(DATA))), Corrupt, "700001 stored bytes do not hash"),
        (sized(DATA[:-1]), Corrupt, "700000 stored bytes do not hash"),
        (in_chunks(DATA + b"x"), Corrupt, "700002 stored bytes do not hash"),
        (sized(b""), Corrupt, "the 0 stored bytes"),
        (MISSING, Missing, "no such object"),
        (b"garbage\r\n\r\n", StoreError, "not done within 1 s"),
    ],
)
def test_a_wrong_answer_is_no_object_and_leaves_no_buffer_out(
    opened: Callable[..., Chunk], lent: LentBuffers, answer: bytes, expected: type[FledgeError], why: str
) -> None:
    with saying([answer]) as port, pytest.raises(expected, match=why):
        opened(port, deadline=1)
    assert lent.out == set()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (sized(DATA), "700001 bytes, at most 700000 expected; refused unread"),
        (in_chunks(DATA), "more than the expected 700000 bytes; reading was stopped"),
    ],
)
def test_no_more_is_read_than_was_expected(
    opened: Callable[..., Chunk], lent: LentBuffers, answer: bytes, why: str
) -> None:
    with saying([answer]) as port, pytest.raises(TooLarge, match=why):
        opened(port, limit=len(DATA) - 1)
    assert lent.out == set()


@pytest.mark.parametrize("answer", [sized(DATA[:HALF], len(DATA)), in_chunks(DATA[:HALF], b""), b"HTTP/1.1 200 OK\r\n"])
def test_a_server_that_stalls_holds_a_buffer_until_the_deadline(
    opened: Callable[..., Chunk], lent: LentBuffers, answer: bytes
) -> None:
    with saying([answer], stall=True) as port, pytest.raises(StoreError, match=r"not done within 0\.5 s"):
        opened(port, deadline=0.5)
    assert lent.out == set()


def test_what_may_be_larger_than_a_buffer_has_bytes_of_its_own(opened: Callable[..., Chunk], lent: LentBuffers) -> None:
    with saying([sized(DATA)]) as port:
        chunk = opened(port, limit=limits.CHUNK + 1)
        assert bytes(chunk.part(0, len(chunk), memoryview(b""))) == DATA
        assert chunk.checked
    assert lent.made == set()
