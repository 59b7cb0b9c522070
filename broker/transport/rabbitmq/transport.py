"""The transport over RabbitMQ.

Two connections, each owned by one thread that does nothing else, so that heartbeats go on whatever handlers and
trainers do: one publishes, one consumes (an alarm on the broker blocks the publishing one alone).
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait

import structlog

from broker.net.proxy import proxy_for
from broker.net.schemes import Connection
from broker.net.tls import check_plain
from broker.transport.base import Handler, check_size
from broker.transport.dispatch import CallbackLane, HandlerLane
from broker.transport.rabbitmq.amqp import parse_amqp_url, queue_arguments
from broker.transport.rabbitmq.channels import Ask, Inlet, Outlet, Question
from broker.transport.rabbitmq.confirms import Message
from broker.transport.rabbitmq.connection import Channel, Link, LinkEvents, Method
from protocol.errors import LoginRefused, TransportError
from protocol.topology import Topology

log = structlog.get_logger()

_ANSWER_DEADLINE = 30.0
"""Seconds `declare` and `depth` wait for a connection and its answer."""
_SECONDS_PER_QUEUE = 0.2
"""What declaring takes longer for each queue: a quorum queue is a Raft cluster of its own."""
_CONFIRM_GRACE = 5.0
_HANDLER_GRACE = 10.0


class RabbitTransport:
    """Moves messages through RabbitMQ; see `Transport`. Connects when first used."""

    def __init__(
        self,
        url: str,
        connection: Connection | None = None,
        *,
        dice: random.Random | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Take the broker's URL (see `parse_amqp_url`); `dice` draws the waits between attempts.

        Raises:
            ConfigError: the URL or a certificate file is wrong, or plain text is not allowed.
        """
        connection = connection or Connection()
        self._url = parse_amqp_url(url, connection.tls)
        check_plain(f"broker {self._url}", self._url.host, encrypted=self._url.tls, insecure=connection.insecure)
        self._url.tls_context()  # a wrong certificate file is told now, not in a log hours later
        host, port, encrypted = self._url.host, self._url.port, self._url.tls
        way = proxy_for(host, port, encrypted=encrypted, explicit=connection.proxy, environ=environ)
        self._dice = dice or random.Random()
        self._lock = threading.Lock()
        self._closed = False
        self._outstanding: set[Future[None]] = set()
        self._handed: deque[Message] = deque()
        self._outlets: dict[str, Outlet] = {}
        self._inlets: list[Inlet] = []
        self._questions: list[Question] = []
        self._listeners: list[Callable[[], None]] = []
        self._refusals: list[Callable[[], None]] = []
        self._callbacks = CallbackLane()
        self._publishing = Link(
            self._url,
            f"{connection.name} publish",
            self._dice,
            events=LinkEvents(
                up=self._publishing_up,
                down=self._publishing_down,
                refused=lambda _: None,  # what was published waits in its future, and in the sender's outbox
            ),
            proxy=way,
        )
        self._consuming = Link(
            self._url,
            f"{connection.name} consume",
            self._dice,
            events=LinkEvents(up=self._consuming_up, down=self._consuming_down, refused=self._consuming_refused),
            proxy=way,
        )

    def __repr__(self) -> str:
        return f"RabbitTransport({self._url})"

    def declare(self, topology: Topology) -> None:
        """Make what is missing, without limits: those are policies, which only `deploy.servers.apply` can set.

        A broker without them works, but holds messages without bound and dead-letters nothing (from RabbitMQ 4.0 on it
        drops a message that was given back twenty times).
        """

        def ask(channel: Channel, done: Callable[[Method], None]) -> None:
            # Nothing of this waits for its answer: the broker works in order and closes the channel at the first
            # mistake, so the answer to the last request answers for all.
            for exchange in topology.exchanges:
                channel.exchange_declare(exchange.name, exchange.type, durable=True)
            for queue in topology.queues:
                channel.queue_declare(queue.name, durable=True, arguments=queue_arguments(queue))
            for binding in topology.bindings:
                channel.queue_bind(binding.queue, binding.exchange, binding.key)
            channel.basic_qos(prefetch_count=1, callback=done)

        self._ask("declaring the topology", ask, _SECONDS_PER_QUEUE * len(topology.queues))

    def publish(self, exchange: str, key: str, body: bytes) -> Future[None]:
        check_size(body)
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            closed, idle = self._closed, not self._handed
            if not closed:
                self._outstanding.add(future)
                self._handed.append(Message(exchange=exchange, key=key, body=body, future=future))
        if closed:
            future.set_exception(TransportError("the transport is closed"))
            return future
        future.add_done_callback(self._settled)
        if idle:
            self._publishing.start()
            self._publishing.call(self._take)
        return future

    def consume(self, queue: str, handler: Handler, *, prefetch: int = 8) -> Inlet:
        lane = HandlerLane(queue, handler, self._dice)
        inlet = Inlet(self._consuming, queue, lane, prefetch=prefetch, dice=self._dice, forget=self._forget)
        with self._lock:
            self._check_open()
            self._inlets.append(inlet)
        self._consuming.start()
        self._consuming.call(inlet.open)
        return inlet

    def depth(self, queue: str) -> int:
        def ask(channel: Channel, done: Callable[[Method], None]) -> None:
            channel.queue_declare(queue, passive=True, callback=done)

        return int(self._ask(f"counting queue {queue}", ask).method.message_count)

    def on_connected(self, callback: Callable[[], None]) -> None:
        def add() -> None:
            self._listeners.append(callback)
            if self._consuming.up:
                self._callbacks.put(callback)

        self._consuming.start()
        self._consuming.call(add)

    def on_refused(self, callback: Callable[[], None]) -> None:
        self._refusals.append(callback)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            inlets = list(self._inlets)
        self._callbacks.stop(_HANDLER_GRACE)
        for inlet in inlets:
            if not inlet.lane.stop(_HANDLER_GRACE):
                log.warning("handler.still_running", queue=inlet.queue, waited_s=_HANDLER_GRACE)
        self._consuming.close()
        if self._publishing.trouble is None:
            with self._lock:
                outstanding = set(self._outstanding)
            wait(outstanding, _CONFIRM_GRACE)
        self._publishing.close()
        self._give_up()  # the link's thread has ended, what was its own may be touched here

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the transport is closed")

    def _ask(self, what: str, ask: Ask, extra: float = 0.0) -> Method:
        self._check_open()
        question = Question(what, ask)
        deadline = _ANSWER_DEADLINE + extra

        def put() -> None:
            self._questions.append(question)
            question.put(self._consuming)

        self._consuming.start()
        self._consuming.call(put)
        try:
            return question.answer.result(deadline)
        except TimeoutError as error:
            trouble = self._consuming.trouble or "it may be overloaded"
            raise TransportError(f"{what}: {self._url} gave no answer in {deadline:.0f} s; {trouble}") from error
        finally:
            self._consuming.call(lambda: self._questions.remove(question))

    def _settled(self, future: Future[None]) -> None:
        with self._lock:
            self._outstanding.discard(future)

    def _forget(self, inlet: Inlet) -> None:
        with self._lock:
            if inlet in self._inlets:
                self._inlets.remove(inlet)

    def _current_inlets(self) -> list[Inlet]:
        with self._lock:
            return list(self._inlets)

    # On the publishing link's thread:

    def _take(self) -> None:
        with self._lock:
            handed, self._handed = self._handed, deque()
        for message in handed:
            outlet = self._outlets.get(message.exchange)
            if outlet is None:
                outlet = self._outlets[message.exchange] = Outlet(self._publishing, message.exchange, self._dice)
            outlet.pending.waiting.append(message)
        for exchange in {message.exchange for message in handed}:
            self._outlets[exchange].pump()

    def _publishing_up(self) -> None:
        for outlet in self._outlets.values():
            outlet.pump()

    def _publishing_down(self) -> None:
        for outlet in self._outlets.values():
            outlet.down()
        if self._closed:
            self._give_up()

    def _give_up(self) -> None:
        self._take()
        for outlet in self._outlets.values():
            outlet.pending.close(TransportError("the transport was closed before the broker confirmed"))

    # On the consuming link's thread:

    def _consuming_up(self) -> None:
        for inlet in self._current_inlets():
            inlet.open()
        for question in self._questions:
            question.put(self._consuming)
        for callback in self._listeners:
            self._callbacks.put(callback)

    def _consuming_down(self) -> None:
        for inlet in self._current_inlets():
            inlet.down()

    def _consuming_refused(self, error: LoginRefused) -> None:
        for question in self._questions:
            question.fail(error)
        for callback in self._refusals:
            self._callbacks.put(callback)
