"""Single AMQP operations, tried one by one to see what the broker says; for checks of rights, never for traffic.

Each runs on a channel of its own, because a broker refuses by closing the channel. Should one be allowed that ought not
to be, it does as little as it can: it sends an empty message, reads one and gives it back, makes what it removes again.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from broker.net.proxy import Proxy
from broker.transport.rabbitmq.amqp import AmqpUrl
from broker.transport.rabbitmq.connection import Basic, BasicProperties, Channel, Link, LinkEvents
from protocol.errors import Malformed, TransportError

DONE = 200
REFUSED = 403
NOT_FOUND = 404
FAILED = 406
NO_ANSWER = 0
_PATIENCE_S = 25.0
"""A little longer than a connection may take to open."""

Ask = Callable[[Channel, Callable[..., None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something to try; `ask(channel, done)` asks for it and has `done` called when the broker did it."""

    what: str
    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReply:
    """What the broker said: the AMQP reply code (200: it was done), or NO_ANSWER and its words."""

    code: int
    text: str = ""


def read(queue: str) -> Operation:
    """Take a message of a queue; it is given back."""

    def ask(channel: Channel, done: Callable[..., None]) -> None:
        channel.add_callback(done, [Basic.GetEmpty])
        channel.basic_get(queue, done)

    return Operation(what=f"read queue {queue}", ask=ask)


def publish(exchange: str, key: str = "", *, user: str | None = None, copies: tuple[str, ...] = ()) -> Operation:
    """Send an empty message, as `user` if given, with copies to the keys in `copies` (CC and BCC)."""

    def ask(channel: Channel, done: Callable[..., None]) -> None:
        headers = {"CC": list(copies), "BCC": list(copies)} if copies else None
        properties = BasicProperties(user_id=user, headers=headers)
        channel.confirm_delivery(done, lambda _: channel.basic_publish(exchange, key, b"", properties))

    name = exchange or "(default)"
    what = f"publish to exchange {name}" + (f" with key {key}" if key else "") + (f" as user {user}" if user else "")
    return Operation(what=what + (f" with copies to {', '.join(copies)}" if copies else ""), ask=ask)


def declare_queue(name: str) -> Operation:
    """Make a queue; the broker names it if `name` is empty. It goes with the connection."""
    return Operation(
        what=f"declare queue {name or '(named by the broker)'}",
        ask=lambda channel, done: channel.queue_declare(name, exclusive=True, auto_delete=True, callback=done),
    )


def find_queue(name: str) -> Operation:
    """Ask whether a queue is there."""
    return Operation(
        what=f"find queue {name}", ask=lambda channel, done: channel.queue_declare(name, passive=True, callback=done)
    )


def delete_queue(name: str) -> Operation:
    """Delete a queue if it has no consumer and nothing is in it."""
    return Operation(
        what=f"delete queue {name}",
        ask=lambda channel, done: channel.queue_delete(name, if_unused=True, if_empty=True, callback=done),
    )


def declare_exchange(name: str) -> Operation:
    """Make an exchange, which goes again with the channel."""

    def ask(channel: Channel, done: Callable[..., None]) -> None:
        def made(_: object) -> None:
            channel.exchange_delete(name, callback=done)

        channel.exchange_declare(name, "fanout", callback=made)

    return Operation(what=f"declare exchange {name}", ask=ask)


def delete_exchange(name: str) -> Operation:
    """Delete an exchange if nothing is bound to it."""
    return Operation(
        what=f"delete exchange {name}",
        ask=lambda channel, done: channel.exchange_delete(name, if_unused=True, callback=done),
    )


def bind(queue: str, exchange: str, key: str = "") -> Operation:
    """Have a queue get what an exchange gets; the binding is taken away again."""

    def ask(channel: Channel, done: Callable[..., None]) -> None:
        def bound(_: object) -> None:
            channel.queue_unbind(queue, exchange, key, mark, done)

        # A binding is one of its own by its arguments, so taking this one away leaves a real one alone.
        mark = {"x-fledge-probe": True}
        channel.queue_bind(queue, exchange, key, mark, bound)

    return Operation(what=f"bind queue {queue} to exchange {exchange}", ask=ask)


def unbind(queue: str, exchange: str) -> Operation:
    """Take a binding away that is none of ours."""
    return Operation(
        what=f"unbind queue {queue} from exchange {exchange}",
        ask=lambda channel, done: channel.queue_unbind(queue, exchange, "fledge-probe", callback=done),
    )


def bind_exchange(destination: str, source: str) -> Operation:
    """Have an exchange get what another gets; the binding is taken away again."""

    def ask(channel: Channel, done: Callable[..., None]) -> None:
        def bound(_: object) -> None:
            channel.exchange_unbind(destination, source, "", mark, done)

        mark = {"x-fledge-probe": True}
        channel.exchange_bind(destination, source, "", mark, bound)

    return Operation(what=f"bind exchange {destination} to exchange {source}", ask=ask)


class Probe:
    """A connection for trying operations; opened at once, closed by `close` or at the end of a `with`."""

    def __init__(self, url: AmqpUrl, *, proxy: Proxy | None = None) -> None:
        """Connect.

        Raises:
            NotAllowed: the login or the vhost is refused.
            TransportError: not reached; says why.
        """
        self._first: Future[None] = Future()
        self._up = threading.Event()
        self._link = Link(
            url,
            "fledge probe",
            random.Random(),
            events=LinkEvents(up=self._on_up, down=self._on_down, refused=self._fail),
            proxy=proxy,
        )
        self._link.start()
        try:
            self._first.result(_PATIENCE_S)
        except TimeoutError:
            self.close()
            raise TransportError(f"broker {url}: no answer in {_PATIENCE_S:.0f} s") from None
        except TransportError:
            self.close()
            raise

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def up(self) -> bool:
        """Whether the connection stands."""
        return self._up.is_set()

    def attempt(self, operation: Operation) -> ProbeReply:
        """Try it and return what the broker says; a connection that an earlier attempt cost is made again first.

        Raises:
            TransportError: the connection does not come back.
        """
        if not self._up.wait(_PATIENCE_S):
            raise TransportError(f"cannot {operation.what}: {self._link.trouble or 'the connection is gone'}")
        answer: Future[ProbeReply] = Future()
        self._link.call(lambda: self._ask(operation, answer))
        try:
            return answer.result(_PATIENCE_S)
        except TimeoutError:
            return ProbeReply(code=NO_ANSWER, text="no answer")

    def close(self) -> None:
        self._link.close()

    def _ask(self, operation: Operation, answer: Future[ProbeReply]) -> None:
        if not self._link.up:
            answer.set_result(ProbeReply(code=NO_ANSWER, text="the connection was lost"))
            return

        def settle(reply: ProbeReply) -> None:
            if not answer.done():
                answer.set_result(reply)

        def opened(channel: Channel) -> None:
            def done(*_: object) -> None:
                settle(ProbeReply(code=DONE))
                if channel.is_open:
                    channel.close()  # gives back what was read

            operation.ask(channel, done)

        def closed(_: Channel, reason: BaseException) -> None:
            code = int(getattr(reason, "reply_code", 0))
            settle(ProbeReply(code=code, text=str(getattr(reason, "reply_text", reason))))

        self._link.channel(opened, closed)

    def _on_up(self) -> None:
        self._up.set()
        if not self._first.done():
            self._first.set_result(None)

    def _on_down(self) -> None:
        self._up.clear()
        # A refusal is told right after this; only if none is, it was something else.
        self._link.call(lambda: self._fail(TransportError(self._link.trouble or "not reached")))

    def _fail(self, error: TransportError) -> None:
        if not self._first.done():
            self._first.set_exception(error)


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
