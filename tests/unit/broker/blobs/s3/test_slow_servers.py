"""Servers that never come to an end: a call ends when its deadline has passed, whatever it is that they still say."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from broker.blobs.s3.store import S3Blobs
from protocol.errors import StoreError

KEY = f"models/{hashlib.sha256(b'a model').hexdigest()}"
DEADLINE_S = 1.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status": (b"", b"H"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
    "chunk": (CHUNKED, b"1\r\nx\r\n"),
    "size": (CHUNKED + b"1;", b"x"),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"X: x\r\n"),
    "error": (b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\n", b"x"),
}
"""What it begins with, and what it goes on with for ever."""


@contextmanager
def talking(first: bytes, then: bytes) -> Iterator[int]:
    """A server that says something every 50 ms until it is no longer listened to; its port."""
    ended = threading.Event()

    def talk(heard: socket.socket) -> None:
        with heard, suppress(OSError):
            heard.recv(65536)
            heard.sendall(first)
            while not ended.wait(0.05):
                heard.sendall(then)

    def serve() -> None:
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=talk, args=(listener.accept()[0],))
                threads.append(thread)
                thread.start()

    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = [threading.Thread(target=serve)]
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        listener.close()


@pytest.mark.parametrize("said", ENDLESS)
def test_a_server_that_goes_on_talking_holds_nobody_beyond_the_deadline(said: str) -> None:
    with talking(*ENDLESS[said]) as port:
        store = S3Blobs.from_url(f"s3://key:secret@127.0.0.1:{port}/bucket?deadline={DEADLINE_S}")
        begun = time.monotonic()
        with pytest.raises(StoreError, match="not done within 1 s"):
            store.get(KEY, 1000)
        assert time.monotonic() - begun < DEADLINE_S + 2  # it would be heard for as long as the test lasts
        store.close()
