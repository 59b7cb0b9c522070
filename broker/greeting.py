"""The first thing a broker says, before anybody logs in: whether it speaks AMQP, and which logins it offers."""

from __future__ import annotations

import socket
import struct

from protocol.errors import Malformed

_HEADER = b"AMQP\x00\x00\x09\x01"
_START = (10, 10)
_MOST = 64 * 1024
_END = 0xCE


def mechanisms(sock: socket.socket) -> tuple[str, ...]:
    """Greet the broker over a connected socket and return the SASL mechanisms it offers.

    Raises:
        Malformed: what answers is no AMQP 0-9-1 broker.
        OSError: it hung up, or did not answer within the socket's timeout; a broker that refuses our certificate under
            TLS 1.3 says so only now.
    """
    sock.sendall(_HEADER)
    kind, channel, size = struct.unpack(">BHI", _exactly(sock, 7))
    if kind != 1 or channel != 0 or not 12 <= size <= _MOST:
        raise Malformed("what answers there is no AMQP 0-9-1 broker; check host and port")
    frame = _exactly(sock, size + 1)
    if frame[-1] != _END or struct.unpack(">HH", frame[:4]) != _START:
        raise Malformed("what answers there is no AMQP 0-9-1 broker; check host and port")
    try:
        words, _ = _long(frame, _long(frame, 6)[1])  # the server's properties stand before the mechanisms
        return tuple(words.decode("ascii").split())
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed("the broker's greeting cannot be read; is it RabbitMQ?") from error


def _long(frame: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", frame, at)
    end = at + 4 + length
    if end > len(frame) - 1:
        raise Malformed("the broker's greeting is cut off; is it RabbitMQ?")
    return frame[at + 4 : end], end


def _exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = sock.recv(size - len(found))
        if not piece:
            raise ConnectionResetError("the other side hung up")
        found += piece
    return found
