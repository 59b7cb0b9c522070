"""What a participant must not be able to do on the broker, and what it must, as tables of operations. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from broker.transport.rabbitmq import probe
from broker.transport.rabbitmq.probe import FAILED, REFUSED, Operation, Probe, ProbeReply
from protocol import topology as names
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.topology import Topology

BUILT_IN = ("amq.direct", "amq.fanout", "amq.headers", "amq.topic")
"""Exchanges that every vhost has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """An operation and the broker's right answer to it."""

    code: str
    """A fixed word for what is tried."""
    operation: Operation
    answer: int
    """The AMQP reply code it has to give."""
    guard: Operation | None = None
    """Needs the same right and does no harm; unless this is refused the operation itself is not tried."""

    def on(self, connection: Probe) -> ProbeReply:
        """Try it and return the answer that counts."""
        if self.guard is not None:
            first = connection.attempt(self.guard)
            if first.code != REFUSED:
                return first
        return connection.attempt(self.operation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What belongs to a participant."""

    name: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]


def own(role: Role, name: str, topology: Topology) -> Own:
    """What of a topology belongs to this participant."""
    if role == Role.SITE:
        writes: tuple[str, ...] = (names.up_exchange(name), names.event_exchange(name))
        return Own(name=name, writes=writes, reads=(names.down_queue(name), names.inbox_queue(name)))
    if role == Role.OPERATOR:
        return Own(name=name, writes=(names.COMMANDS,), reads=(names.inbox_queue(name),))
    if role != Role.AGGREGATOR:
        raise ConfigError(f"{name} has the role {role.value}, which has no business at the broker")
    centre = (names.inbox_queue(names.AGGREGATOR), names.DEAD_LETTERS)
    arriving = tuple(q.name for q in topology.queues if q.name.startswith(("in.", "events.")))
    return Own(name=name, writes=(names.GLOBAL, names.DIRECT, names.DEAD), reads=(*centre, *arriving))


def needed(mine: Own) -> Iterator[Try]:
    """What has to work. Sending is tried under another's name, which the broker checks after the right to send."""
    for queue in mine.reads:
        yield _works("queue", f"queue {queue}", probe.find_queue(queue), probe.DONE)
        # Queues with a single active consumer cannot be read one message at a time.
        if not queue.startswith(("in.", "events.")):
            yield _works("receive", f"queue {queue}", probe.read(queue), probe.DONE)
    for exchange in mine.writes:
        yield _works("send", f"exchange {exchange}", _spoof(exchange, mine), FAILED)


def forbidden(mine: Own, topology: Topology) -> Iterator[Try]:
    """What must be refused: everything that is not `mine`, and making, binding and deleting anything at all."""
    exchanges = [exchange.name for exchange in topology.exchanges]
    queues = [queue.name for queue in topology.queues]
    keys = [binding.key for binding in topology.bindings if binding.exchange == names.DIRECT]
    others = [queue for queue in queues if queue not in mine.reads]
    yield from (_refused("read", probe.read(queue)) for queue in others)
    for exchange in (*exchanges, *BUILT_IN):
        if exchange not in mine.writes:
            for key in keys if exchange == names.DIRECT else [""]:
                yield _refused("publish", probe.publish(exchange, key))
    yield from (_refused("publish_default", probe.publish("", queue)) for queue in queues)
    yield from (_refused("publish_copies", probe.publish("", keys[0], copies=tuple(queues[:8]))) for _ in keys[:1])
    for exchange in mine.writes:
        yield Try(code="user_id", operation=_spoof(exchange, mine), answer=FAILED)
    yield from _changes(mine, exchanges, queues, keys)


def _changes(mine: Own, exchanges: Sequence[str], queues: Sequence[str], keys: Sequence[str]) -> Iterator[Try]:
    for queue in (f"fledge.probe.{mine.name}", "", mine.reads[0]):
        yield _refused("declare", probe.declare_queue(queue))
    yield _refused("declare", probe.declare_exchange(f"fledge.probe.{mine.name}"))
    for queue in queues:
        yield _refused("delete", probe.delete_queue(queue), probe.declare_queue(queue))
    for exchange in exchanges:
        yield _refused("delete", probe.delete_exchange(exchange), probe.declare_exchange(exchange))
    key = next((key for key in keys if key != mine.name), "")
    for exchange in exchanges:
        yield _refused("bind", probe.bind(mine.reads[0], exchange, key if exchange == names.DIRECT else ""))
        yield _refused("unbind", probe.unbind(mine.reads[0], exchange))
        if exchange not in mine.writes:
            yield _refused("bind", probe.bind_exchange(mine.writes[0], exchange))
    for queue in queues:
        if queue not in mine.reads:
            yield _refused("bind", probe.bind(queue, mine.writes[0]))


def _works(code: str, what: str, operation: Operation, answer: int) -> Try:
    return Try(code=code, operation=replace(operation, what=what), answer=answer)


def _refused(code: str, operation: Operation, guard: Operation | None = None) -> Try:
    return Try(code=code, operation=operation, answer=REFUSED, guard=guard)


def _spoof(exchange: str, mine: Own) -> Operation:
    return probe.publish(exchange, names.AGGREGATOR, user=f"{mine.name}-not")
