"""What a broker says first, and what does not pass for a broker."""

from __future__ import annotations

import socket
import struct

import pytest

from broker.transport.rabbitmq.probe import mechanisms
from protocol.errors import Malformed


def greeting(words: bytes, *, properties: bytes = b"\x01a", method: tuple[int, int] = (10, 10)) -> bytes:
    """A frame with the method Connection.Start."""
    body = struct.pack(">HHBB", *method, 0, 9)
    for field in (properties, words, b"en_US"):
        body += struct.pack(">I", len(field)) + field
    return struct.pack(">BHI", 1, 0, len(body)) + body + b"\xce"


def said(answer: bytes) -> tuple[str, ...]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        return mechanisms(ours)


def test_the_mechanisms_are_read_from_the_greeting() -> None:
    assert said(greeting(b"PLAIN EXTERNAL")) == ("PLAIN", "EXTERNAL")
    assert said(greeting(b"")) == ()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"AMQP\x00\x00\x09\x01" + bytes(20),
        greeting(b"EXTERNAL", method=(10, 50)),
        greeting(b"\xff\xfe"),
        greeting(b"EXTERNAL")[:-1] + b"\x00",
        struct.pack(">BHI", 1, 0, 2**31) + bytes(64),
        struct.pack(">BHI", 1, 0, 14) + struct.pack(">HHBB", 10, 10, 0, 9) + b"\xff" * 8 + b"\xce",
    ],
    ids=["http", "another version", "another method", "no text", "no end", "huge", "lengths that lie"],
)
def test_what_is_no_greeting_is_refused(answer: bytes) -> None:
    with pytest.raises(Malformed, match="broker"):
        said(answer)


def test_whoever_hangs_up_says_nothing() -> None:
    with pytest.raises(ConnectionResetError, match="hung up"):
        said(greeting(b"EXTERNAL")[:9])
