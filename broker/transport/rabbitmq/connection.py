"""The link to RabbitMQ: one connection owned by one thread, made again whenever it is lost. Only here is pika named."""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pika
import structlog
from pika.adapters.base_connection import _StreamingProtocolShim
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.nbio_interface import AbstractIOReference
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel
from pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelClosedByBroker,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)
from pika.frame import Method
from pika.spec import PERSISTENT_DELIVERY_MODE, Basic, BasicProperties

from broker.net.backoff import full_jitter
from broker.net.proxy import HopError, Proxy, connect_through
from broker.transport.rabbitmq.amqp import AmqpUrl
from protocol.errors import ConfigError, LoginRefused, NotAllowed, TransportError, Unroutable

__all__ = [
    "Basic",
    "BasicProperties",
    "Channel",
    "Link",
    "LinkEvents",
    "Method",
    "channel_alone_closed",
    "persistent",
    "refusal",
]

log = structlog.get_logger()

# pika reports every failed attempt with tracebacks of its own; what matters is logged here, once, without secrets.
logging.getLogger("pika").setLevel(logging.CRITICAL)

_SETTLED = 30.0
"""A connection that lived this many seconds was a good one: its loss starts the back-off from the beginning."""
_CLOSE_GRACE = 2.0
"""Seconds a broker has to answer a goodbye."""
_TCP_S = 10
"""Seconds for a TCP connection, or for one through a proxy."""
_STACK_S = 20
"""Seconds until everything stands: TCP, TLS and AMQP."""
_REFUSED = 403
_NOT_FOUND = 404


def _parameters(url: AmqpUrl, name: str) -> pika.ConnectionParameters:
    context = url.tls_context()
    user, password = url.user, url.password
    return pika.ConnectionParameters(
        host=url.host,
        port=url.port,
        virtual_host=url.vhost,
        credentials=pika.credentials.ExternalCredentials() if user is None else pika.PlainCredentials(user, password),
        ssl_options=None if context is None else pika.SSLOptions(context, url.host),
        heartbeat=url.heartbeat,
        blocked_connection_timeout=60,
        socket_timeout=_TCP_S,
        stack_timeout=_STACK_S,
        connection_attempts=1,
        tcp_options={"TCP_USER_TIMEOUT": 2000 * url.heartbeat, "TCP_KEEPIDLE": 30},
        client_properties={"connection_name": name, "product": "fledge"},
    )


def _cause(error: BaseException) -> BaseException:
    """Find why a connection failed; pika wraps the cause several times."""
    while True:
        inner = getattr(error, "exceptions", None)
        cause = inner[-1] if inner else getattr(error, "exception", None)
        if cause is None and len(error.args) == 1 and isinstance(error.args[0], BaseException):
            cause = error.args[0]
        if not isinstance(cause, BaseException):
            return error
        error = cause


def _describe(cause: BaseException, url: AmqpUrl, proxy: Proxy | None) -> str:
    if isinstance(cause, HopError):
        return str(cause)
    text = f"{type(cause).__name__}: {cause}".rstrip(": ")
    if isinstance(cause, ssl.SSLCertVerificationError):
        behind = "" if proxy is None else f" behind proxy {proxy}, which may be reading along"
        return f"the broker's certificate is not trusted{behind} ({text})"
    if isinstance(cause, IncompatibleProtocolError) and (end := url.files.expired(time.time())):
        return f"closed while opening: our certificate expired on {end:%Y-%m-%d at %H:%M} UTC; have it renewed"
    if isinstance(cause, ProbableAuthenticationError):
        return f"login refused; check user and password, or the client certificate ({text})"
    if isinstance(cause, ProbableAccessDeniedError):
        return f"vhost refused; it does not exist or this user may not use it ({text})"
    if isinstance(cause, IncompatibleProtocolError):
        return f"closed while opening: no broker behind that port, or with TLS our certificate was refused ({text})"
    return text


def refusal(what: str, reason: BaseException) -> TransportError:
    """Turn the broker's reason for closing a channel into our error."""
    if isinstance(reason, ChannelClosedByBroker):
        kind = {_REFUSED: NotAllowed, _NOT_FOUND: Unroutable}.get(reason.reply_code, TransportError)
        return kind(f"{what}: the broker says {reason.reply_code} {reason.reply_text}")
    return TransportError(f"{what}: {reason}")


def channel_alone_closed(reason: BaseException) -> bool:
    """Tell a channel closed on its own, by either side, from one that went down with its connection."""
    return isinstance(reason, ChannelClosed)


def persistent(message_id: str) -> BasicProperties:
    """Properties of a message that survives the broker's restart."""
    return BasicProperties(delivery_mode=PERSISTENT_DELIVERY_MODE, message_id=message_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEvents:
    """What is called of a link's life, on its thread."""

    up: Callable[[], None]
    """The connection is open."""
    down: Callable[[], None]
    """It was lost, or could not be opened."""
    refused: Callable[[LoginRefused], None]
    """That was because the login or the vhost is refused, which time alone does not cure; the link goes on trying."""


class Link:
    """One connection, owned by one thread; a lost one is replaced until `close`.

    Its channels and everything reached through them belong to the link's thread: other threads use `call`.
    """

    def __init__(
        self, url: AmqpUrl, name: str, dice: random.Random, *, events: LinkEvents, proxy: Proxy | None = None
    ) -> None:
        """Prepare; nothing is connected before `start`."""
        self.closing = False
        """`close` was called; what goes down now is meant to."""
        self.trouble: str | None = None
        """What went wrong last; None before the first failure and while connected."""
        self._url = url
        self._name = name
        self._proxy = proxy
        self._events = events
        self._dice = dice
        self._waits = full_jitter(self._dice)
        self._loop = IOLoop()
        self._connection: pika.SelectConnection | None = None
        self._attempt: pika.SelectConnection | None = None
        self._linking: AbstractIOReference | None = None
        """The TLS handshake over a socket that stands, if one was ever begun; it can be cancelled until it is done."""
        self._opened_at = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def up(self) -> bool:
        """Whether channels can be opened now."""
        return self._connection is not None and bool(self._connection.is_open)

    def channel(self, opened: Callable[[Channel], None], closed: Callable[[Channel, BaseException], None]) -> Channel:
        """Open a channel; on the link's thread, and only while it is up."""
        if self._connection is None:
            raise TransportError(f"broker {self._url}: {self.trouble or 'not connected'}")
        channel = self._connection.channel(on_open_callback=opened)
        channel.add_on_close_callback(closed)
        return channel

    def start(self) -> None:
        """Begin to connect, unless that was done before."""
        with self._lock:
            if self._thread is None and not self.closing:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def call(self, action: Callable[[], None]) -> None:
        """Run `action` on the link's thread, soon; from any thread."""
        self._loop.add_callback_threadsafe(action)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Run `action` after a while; on the link's thread only."""
        self._loop.call_later(seconds, action)

    def progress(self) -> None:
        """Something worked: the next loss is waited out from the shortest back-off again."""
        self._waits = full_jitter(self._dice)

    def close(self) -> None:
        """Disconnect and end the thread; a connection that no longer answers is dropped."""
        with self._lock:
            self.closing = True
            thread = self._thread
        if thread is None:
            self._loop.close()
            return
        self.call(self._shut)
        if thread is not threading.current_thread():
            thread.join(2 * _CLOSE_GRACE)

    def _run(self) -> None:
        self._connect()
        while True:
            try:
                self._loop.start()
                break
            except Exception as error:
                # pika has let internal errors escape from its loop before; a new connection is the cure for all.
                log.exception("broker.link_failed", link=self._name)
                broken, self._attempt = self._attempt, None
                self._abandon(broken)
                self._lost(error)
        self._loop.close()

    def _connect(self) -> None:
        if self.closing:
            self._loop.stop()
            return
        if self._proxy is not None:
            # On a thread of its own: a proxy may take its time, and this one has to go on answering.
            threading.Thread(target=self._dial, args=(self._proxy,), name=f"{self._name} dial", daemon=True).start()
            return
        try:
            self._attempt = self._opening(_parameters(self._url, self._name))
        except (ConfigError, AMQPError, OSError) as error:
            self._lost(error)

    def _opening(self, parameters: pika.ConnectionParameters, *, dials: bool = True) -> pika.SelectConnection:
        return pika.SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_closed,
            on_close_callback=self._on_closed,
            custom_ioloop=self._loop,
            internal_connection_workflow=dials,
        )

    def _dial(self, proxy: Proxy) -> None:
        try:
            sock = connect_through(proxy, self._url.host, self._url.port, _TCP_S)
        except HopError as error:
            self.call(partial(self._lost, error))
        else:
            self.call(partial(self._speak_over, sock))

    def _speak_over(self, sock: socket.socket) -> None:
        """Open the connection over a socket that stands; pika has no public way to be given one."""
        if self.closing:
            sock.close()
            self._loop.stop()
            return
        try:
            parameters = _parameters(self._url, self._name)
            self._attempt = connection = self._opening(parameters, dials=False)
        except (ConfigError, AMQPError, OSError) as error:
            sock.close()
            self._lost(error)
            return

        def linked(result: object) -> None:
            if isinstance(result, BaseException):
                self._on_closed(connection, result)

        def too_long() -> None:
            if linking.cancel():  # False once it was done, or cancelled by another caller
                self._on_closed(connection, TimeoutError(f"TLS was not there after {_STACK_S} s"))
            elif connection == self._attempt and not (connection.is_open or connection.is_closing):
                connection.close()

        sock.setblocking(False)
        linking = self._linking = SelectorIOServicesAdapter(self._loop).create_streaming_connection(
            partial(_StreamingProtocolShim, connection),
            sock,
            linked,
            ssl_context=parameters.ssl_options.context if parameters.ssl_options else None,
            server_hostname=parameters.ssl_options.server_hostname if parameters.ssl_options else None,
        )
        self.later(_STACK_S, too_long)

    def _on_open(self, connection: pika.SelectConnection) -> None:
        if connection != self._attempt or self.closing:
            self._abandon(connection)
            return
        self._connection, self.trouble = connection, None
        self._opened_at = time.monotonic()
        # The broker blocks only connections that publish.
        connection.add_on_connection_blocked_callback(lambda *_: self._on_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._on_blocked(False))
        log.info("broker.connected", link=self._name, broker=str(self._url))
        self._events.up()

    def _on_blocked(self, blocked: bool) -> None:
        # Nothing to do: what was sent stays unconfirmed, the window ends the sending, and after the timeout of
        # `_parameters` a new connection starts over.
        if blocked:
            log.warning("broker.blocked", link=self._name, broker=str(self._url))
        else:
            log.info("broker.unblocked", link=self._name, broker=str(self._url))

    def _on_closed(self, connection: pika.SelectConnection, reason: BaseException) -> None:
        if connection == self._attempt:
            self._attempt = None
            self._lost(_cause(reason))

    def _lost(self, cause: BaseException) -> None:
        self.trouble = trouble = _describe(cause, self._url, self._proxy)
        was_up, self._connection = self._connection is not None, None
        self._events.down()
        if isinstance(cause, ProbableAuthenticationError | ProbableAccessDeniedError):
            self._events.refused(LoginRefused(f"broker {self._url}: {trouble}"))
        if self.closing:
            self._loop.stop()
            return
        if was_up and time.monotonic() - self._opened_at > _SETTLED:
            self.progress()
        seconds = next(self._waits)
        log.warning("broker.lost", link=self._name, broker=str(self._url), reason=trouble, again_in_s=round(seconds, 2))
        self.later(seconds, self._connect)

    def _shut(self) -> None:
        self.later(_CLOSE_GRACE, self._loop.stop)
        if self._attempt is None or (self._linking is not None and self._linking.cancel()):
            self._loop.stop()
        else:
            self._abandon(self._attempt)

    def _abandon(self, connection: pika.SelectConnection | None) -> None:
        # One that is just being opened must not be closed: pika would fail on an assertion. `_on_open` does it then.
        if connection is not None and connection.is_open:
            try:
                connection.close()
            except Exception:
                # Closing is a courtesy to the broker; a connection too broken for it ends by its heartbeat.
                log.debug("broker.close_failed", link=self._name, exc_info=True)
