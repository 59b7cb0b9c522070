"""What surrounds the processes: a broker, an object store, databases that outlive a crash, and how one process lives.

Nothing here is clever: a queue is a list, the store a dict, a database an in-memory SQLite that a killed process leaves
behind as its last commit made it. What the real ones may do to their users (deliver twice, deliver out of order, push
back, confirm nothing, be away), these do when the world's dice say so.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, MetaData

from broker.runtime.actor import Actor
from broker.runtime.database import open_database
from protocol import limits
from protocol.codec import encode, unpack
from protocol.errors import Fenced
from protocol.topology import DEAD_LETTERS, Topology

if TYPE_CHECKING:
    from tests.simulation.world import World

PREFETCH = 12


class Crash(BaseException):
    """The process is killed here; nothing may catch this but the world."""


class Violation(AssertionError):
    """The simulated system broke a promise."""


def require(holds: bool, *promise: object) -> None:
    """Say which promise was broken, unless it holds."""
    if not holds:
        raise Violation(" ".join(str(part) for part in promise))


def write_down(message: Mapping[str, Any]) -> bytes:
    """The bytes of a simulated message or record."""
    return encode(dict(message))


def read_back(raw: bytes) -> dict[str, Any]:
    """What `write_down` wrote."""
    plain: dict[str, Any] = unpack(raw, limits.STORED_RECORD)
    return plain


def sha256(*parts: bytes) -> bytes:
    """One digest over several byte strings."""
    return hashlib.sha256(b"|".join(parts)).digest()


# ---- databases


class Database:
    """An in-memory database that keeps its content over the lives of the processes that use it."""

    def __init__(self, metadata: MetaData, schema: int, *, change: Callable[[str], str] | None = None) -> None:
        """`change` rewrites each table's definition: how a mutant loses its unique keys."""
        self.engine: Engine = open_database(None, metadata, schema)
        if change is not None:
            self._redefine(change)
        self._empty = self.copy()

    def _redefine(self, change: Callable[[str], str]) -> None:
        connection = self._connection()
        tables = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE%'")
        for name, sql in tables.fetchall():
            if change(sql) != sql:
                connection.execute(f'DROP TABLE "{name}"')
                connection.execute(change(sql))

    def _connection(self) -> sqlite3.Connection:
        connection = self.engine.raw_connection().driver_connection
        if not isinstance(connection, sqlite3.Connection):
            raise TypeError("the simulation needs SQLite")
        return connection

    def copy(self) -> bytes:
        """A backup."""
        return self._connection().serialize()

    def restore(self, backup: bytes | None = None) -> None:
        """Put a backup in place; without one, forget everything."""
        self._connection().deserialize(self._empty if backup is None else backup)


# ---- the broker


@dataclass(eq=False, slots=True)
class Delivery:
    """A message in a process's hands; void once the connection it came over is gone."""

    queue: str
    body: bytes
    process: Process
    void: bool = False

    def ack(self) -> None:
        """Let the broker forget the message; an ack over a dead connection does nothing."""
        if not self.void:
            self.void = True
            self.process.unacked.remove(self)
            self.process.world.witness.acked(self)


class Broker:
    """Bounded queues behind exchanges; a publish is accepted by all bound queues or refused."""

    def __init__(self, limit: int) -> None:
        self.queues: dict[str, list[bytes]] = {}
        self.unbounded = {DEAD_LETTERS}
        self._dropping: set[str] = set()
        self._bindings: list[tuple[str, str, str]] = []
        self._limit = limit

    def declare(self, topology: Topology) -> None:
        """Make what is missing."""
        for queue in topology.queues:
            self.queues.setdefault(queue.name, [])
            if queue.overflow == "drop-head":
                self._dropping.add(queue.name)
        for binding in topology.bindings:
            bound = (binding.exchange, binding.key, binding.queue)
            if bound not in self._bindings:
                self._bindings.append(bound)

    def publish(self, exchange: str, key: str, body: bytes) -> bool:
        """Whether the broker took the message: False when nothing is bound or a queue is full."""
        queues = [name for bound, with_key, name in self._bindings if (bound, with_key) == (exchange, key)]
        bounded = [name for name in queues if name not in self._dropping and name not in self.unbounded]
        if not queues or any(len(self.queues[name]) >= self._limit for name in bounded):
            return False
        for name in queues:
            self.queues[name].append(body)
            if name in self._dropping and len(self.queues[name]) > self._limit:
                del self.queues[name][0]
        return True


# ---- the store


@dataclass
class Store:
    """Chunks (their presence is all that matters), signed records, and the head."""

    chunks: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    records: dict[bytes, bytes] = field(default_factory=dict)
    head: bytes | None = None

    def put_record(self, raw: bytes) -> bytes:
        """Keep a record under its digest."""
        digest = hashlib.sha256(raw).digest()
        self.records[digest] = raw
        return digest


# ---- processes


@dataclass(eq=False, slots=True)
class Job:
    """Something slow that a process has under way; `run` says whether it is over."""

    label: str
    run: Callable[[], bool]


class Process:
    """One life of a program: an actor, its mailbox, what it has under way, and when it is going to be killed."""

    queues: tuple[str, ...] = ()

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.mailbox: list[Any] = []
        self.jobs: list[Job] = []
        self.unacked: list[Delivery] = []
        self.flying: set[int] = set()
        self.alive = True
        self.fuse: int | None = None
        """Crash points left until the process is killed; None: it is not."""
        self.actor: Actor

    def point(self, label: str) -> None:
        """A place at which the process may be killed."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Crash(label)

    def slow_writes(self, journal: Any) -> None:
        """Make every single write of a transaction a place to be killed at."""
        write = journal._write

        def watched(value: Any, db: Any) -> Any:
            self.point(f"in the transaction, at {type(value).__name__}")
            return write(value, db)

        journal._write = watched

    def perform(self, effect: Any) -> None:
        """Carry out one effect."""
        self.point(f"before {type(effect).__name__}")
        self.effect(effect)

    def effect(self, effect: Any) -> None:
        """What the shell does about an effect."""
        raise NotImplementedError

    def take(self, delivery: Delivery) -> None:
        """What the shell does with a delivery: one event."""
        raise NotImplementedError

    def turn(self, events: int | None = None) -> None:
        """Let the actor take the first `events` events (None: all) and see it die if it has to."""
        count = len(self.mailbox) if events is None else events
        batch, self.mailbox = self.mailbox[:count], self.mailbox[count:]
        self.guarded(lambda: self.actor.turn(batch))

    def guarded(self, work: Callable[[], object]) -> bool:
        """Whether the process lives on after `work`."""
        try:
            work()
        except Crash as crash:
            self.world.tell(f"  {self.name} is killed {crash}")
            self.world.saw(f"killed {crash}")
            self.die()
        except Fenced:
            self.world.tell(f"  {self.name} is fenced")
            self.world.saw("fenced")
            self.die()
        return self.alive

    def die(self) -> None:
        """The end of this life: connections break, everything in memory is gone."""
        self.alive = False
        self.fuse = None
        self.jobs.clear()
        self.mailbox.clear()
        self.reconnect()

    def reconnect(self) -> None:
        """The connection breaks: what was not acked goes back to the head of its queue."""
        for delivery in reversed(self.unacked):
            delivery.void = True
            self.world.broker.queues[delivery.queue].insert(0, delivery.body)
        self.unacked.clear()

    def job(self, label: str, run: Callable[[], bool]) -> None:
        """Begin something slow."""
        self.jobs.append(Job(label, run))

    def answer(self, label: str, work: Callable[[], Any]) -> None:
        """Begin something slow that ends with one event (None: no event)."""

        def run() -> bool:
            event = work()
            if event is not None:
                self.mailbox.append(event)
            return True

        self.job(label, run)

    def relay(self, row: int, exchange: str, key: str, body: bytes, confirmed: Callable[[], Any]) -> None:
        """Publish an outbox row until it is confirmed, like `Relay`; `confirmed` gives the event.

        The broker may have a message whose confirm never comes; then it gets the message again.
        """
        if row in self.flying:
            return
        self.flying.add(row)
        accepted = False

        def run() -> bool:
            nonlocal accepted
            if not accepted:
                if self.world.chance(0.15) or not self.world.broker.publish(exchange, key, body):
                    return False
                accepted = True
                self.world.witness.published(self, row, exchange, key, body)
                if self.world.chance(0.5):
                    return False  # the confirm is still under way
            if self.world.chance(0.15):
                accepted = False
                self.world.saw("published again")
                return False  # the confirm is lost with the connection
            self.flying.discard(row)
            self.mailbox.append(confirmed())
            return True

        self.job(f"publish {row} to {exchange}", run)
