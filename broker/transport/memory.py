"""The transport within one process: real bytes through queues that behave like RabbitMQ's quorum queues.

What it shares with them: bounds (reject-publish, drop-head), counted deliveries and dead letters, single active
consumer, prefetch, give-back of unsettled deliveries. What it lacks: it forgets everything when its last handle is
closed. Dead letters are never refused: the bound of the queue they go to does not apply to them.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import structlog

from broker.transport.base import Delivery, Handler, Settlement, Verb, check_size
from broker.transport.dispatch import CallbackLane, HandlerLane
from protocol.errors import QueueFull, TransportError, Unroutable
from protocol.topology import DEAD, Exchange, Queue, Topology

log = structlog.get_logger()
_HANDLER_GRACE = 10.0


@dataclass(slots=True)
class _Message:
    body: bytes
    returns: int = 0
    """How often it was handed out and came back."""


@dataclass(slots=True)
class _Queue:
    limits: Queue
    ready: deque[_Message] = field(default_factory=deque)


class _Consumer:
    """One subscription; its fields belong to the broker's lock."""

    def __init__(self, broker: _Broker, owner: MemoryTransport, queue: str, handler: Handler, prefetch: int) -> None:
        self.owner = owner
        self.queue = queue
        self.prefetch = prefetch
        self.unsettled: dict[int, _Message] = {}
        self.lane = HandlerLane(queue, handler, random.Random())
        self._broker = broker
        self._tags = itertools.count()

    def hand(self, message: _Message) -> None:
        tag = next(self._tags)
        self.unsettled[tag] = message
        settle = _Settlement(self._broker, self, tag)
        self.lane.put(Delivery(queue=self.queue, body=message.body, redelivered=message.returns > 0, settle=settle))

    def cancel(self) -> None:
        self.end(timeout=None)

    def end(self, timeout: float | None) -> None:
        """Stop the handler (waiting at most `timeout` seconds), then give back what is unsettled."""
        if not self.lane.stop(timeout):
            log.warning("handler.still_running", queue=self.queue, waited_s=timeout)
        self._broker.leave(self)


@dataclass(frozen=True, slots=True)
class _Settlement(Settlement):
    broker: _Broker
    consumer: _Consumer
    tag: int

    def __call__(self, verb: Verb) -> None:
        self.broker.settle(self.consumer, self.tag, verb)


class _Broker:
    """Exchanges, queues and consumers of one name, shared by its handles; everything happens under one lock."""

    def __init__(self) -> None:
        self.handles = 0
        self._lock = threading.RLock()
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, _Queue] = {}
        self._bindings: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)
        self._consumers: defaultdict[str, list[_Consumer]] = defaultdict(list)

    def declare(self, topology: Topology) -> None:
        with self._lock:
            for exchange in topology.exchanges:
                if self._exchanges.setdefault(exchange.name, exchange).type != exchange.type:
                    raise TransportError(f"exchange {exchange.name} exists with another type; delete it first")
            for queue in topology.queues:
                held = self._queues.setdefault(queue.name, _Queue(queue))
                if held.limits.single_active_consumer != queue.single_active_consumer:
                    raise TransportError(f"queue {queue.name} exists with other arguments; delete it first")
                held.limits = queue
            for binding in topology.bindings:
                if binding.exchange not in self._exchanges or binding.queue not in self._queues:
                    raise TransportError(f"cannot bind {binding.queue} to {binding.exchange}: one of them is missing")
                self._bindings[binding.exchange][binding.key, binding.queue] = None
            for queue in topology.queues:
                self._pump(queue.name)

    def publish(self, exchange: str, key: str, body: bytes) -> TransportError | None:
        """Queue a message wherever it belongs and say what went wrong, if anything did."""
        with self._lock:
            found = self._exchanges.get(exchange)
            if found is None:
                return Unroutable(f"exchange {exchange} does not exist; declare the topology first")
            names = [queue for bound, queue in self._bindings[exchange] if found.type == "fanout" or bound == key]
            if not names:
                return Unroutable(
                    f"no queue is bound to exchange {exchange} for key {key!r}; is the topology declared?"
                )
            full = [name for name in names if not self._append(self._queues[name], body)]
            for name in names:
                self._pump(name)
        if full:
            return QueueFull(f"queue {', '.join(full)} is full; its consumer has to catch up first")
        return None

    def _append(self, queue: _Queue, body: bytes) -> bool:
        if len(queue.ready) >= queue.limits.max_length:
            if queue.limits.overflow == "reject-publish":
                return False
            queue.ready.popleft()
        queue.ready.append(_Message(body))
        return True

    def _pump(self, name: str) -> None:
        """Hand out what is ready to the consumers that have room, the least loaded first."""
        queue = self._queues.get(name)
        while queue is not None and queue.ready:
            served = self._consumers[name][: 1 if queue.limits.single_active_consumer else None]
            free = [consumer for consumer in served if len(consumer.unsettled) < consumer.prefetch]
            if not free:
                return
            min(free, key=lambda consumer: len(consumer.unsettled)).hand(queue.ready.popleft())

    def settle(self, consumer: _Consumer, tag: int, verb: Verb) -> None:
        with self._lock:
            message = consumer.unsettled.pop(tag, None)
            if message is None:
                return
            if verb == "retry":
                self._give_back(consumer.queue, [message])
            elif verb == "dead_letter":
                self._bury(self._queues[consumer.queue], message)
            self._pump(consumer.queue)

    def _give_back(self, name: str, messages: list[_Message]) -> None:
        """Put messages, oldest first, back where they came from: in front."""
        queue = self._queues[name]
        for message in reversed(messages):
            message.returns += 1
            if message.returns > queue.limits.delivery_limit:
                self._bury(queue, message)
            else:
                queue.ready.appendleft(message)

    def _bury(self, queue: _Queue, message: _Message) -> None:
        if not queue.limits.dead_letter:
            log.warning("message.dropped", queue=queue.limits.name, returns=message.returns)
            return
        log.warning("message.dead_lettered", queue=queue.limits.name, returns=message.returns)
        for _, name in self._bindings[DEAD]:
            self._queues[name].ready.append(_Message(message.body))
            self._pump(name)

    def join(self, consumer: _Consumer) -> None:
        with self._lock:
            self._consumers[consumer.queue].append(consumer)
            self._pump(consumer.queue)

    def leave(self, consumer: _Consumer) -> None:
        with self._lock:
            if consumer not in self._consumers[consumer.queue]:
                return
            self._consumers[consumer.queue].remove(consumer)
            if consumer.unsettled:
                self._give_back(consumer.queue, list(consumer.unsettled.values()))
                consumer.unsettled.clear()
            self._pump(consumer.queue)

    def consumers_of(self, owner: MemoryTransport) -> list[_Consumer]:
        with self._lock:
            return [found for consumers in self._consumers.values() for found in consumers if found.owner is owner]

    def depth(self, name: str) -> int:
        with self._lock:
            if name not in self._queues:
                raise TransportError(f"queue {name} does not exist; declare the topology first")
            return len(self._queues[name].ready)


_named: dict[str, _Broker] = {}
_named_lock = threading.Lock()


class MemoryTransport:
    """A handle onto a broker inside this process; see `Transport`."""

    def __init__(self, name: str = "") -> None:
        """Open a handle onto the broker called `name`, or onto a private one when the name is empty."""
        self._name = name
        self._lock = threading.Lock()
        self._callbacks = CallbackLane()
        self._closed = False
        with _named_lock:
            self._broker = _named.setdefault(name, _Broker()) if name else _Broker()
            self._broker.handles += 1

    @classmethod
    def named(cls, url: str) -> MemoryTransport:
        """Open `memory:` (a private broker) or `memory:NAME` (shared; it lives while any handle onto it is open)."""
        parts = urlsplit(url)
        return cls(f"{parts.netloc}{parts.path}".strip("/"))

    def declare(self, topology: Topology) -> None:
        self._check_open()
        self._broker.declare(topology)

    def publish(self, exchange: str, key: str, body: bytes) -> Future[None]:
        check_size(body)
        future: Future[None] = Future()
        error = TransportError("the transport is closed") if self._closed else self._broker.publish(exchange, key, body)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        return future

    def consume(self, queue: str, handler: Handler, *, prefetch: int = 8) -> _Consumer:
        consumer = _Consumer(self._broker, self, queue, handler, prefetch)
        with self._lock:
            self._check_open()
            self._broker.join(consumer)
        return consumer

    def depth(self, queue: str) -> int:
        self._check_open()
        return self._broker.depth(queue)

    def on_connected(self, callback: Callable[[], None]) -> None:
        self._callbacks.put(callback)

    def on_refused(self, callback: Callable[[], None]) -> None:
        pass  # every participant is let in

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._callbacks.stop(_HANDLER_GRACE)
        for consumer in self._broker.consumers_of(self):
            consumer.end(_HANDLER_GRACE)
        with _named_lock:
            self._broker.handles -= 1
            if self._name and self._broker.handles == 0:
                del _named[self._name]

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the transport is closed")
