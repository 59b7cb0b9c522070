"""A running aggregator with a transport and a store in memory, the sites' inboxes, and an operator's console."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from aggregator.audit.replay import Replay
from aggregator.config import RunConfig
from aggregator.journal.history import History
from aggregator.operators.admin_access import AdminAccess
from aggregator.pipeline.genesis import Genesis
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.service import AggregatorService
from aggregator.service.settings import FirstRun
from broker.blobs.base import BlobStore
from broker.blobs.memory import MemoryBlobs
from broker.transport.base import Delivery
from broker.transport.memory import MemoryTransport
from fledge.operator.console import Answer, Console, KitAccess
from protocol import limits, topology
from protocol.codec import unpack
from protocol.envelope import body, seal, unlock, verify
from protocol.errors import FledgeError
from protocol.keys import Identity
from protocol.messages import Command, Head, Kind, Outcome, Receipt, Reply
from protocol.registry import Registry
from tests.support.bodies import typed_body
from tests.support.chunks import cut
from tests.support.federation import FEDERATION, RUN, SMALL, Federation, Site, payload

ONE = {t.name: np.ones(t.shape, np.float32) for t in SMALL.tensors if t.dtype == "F32"}


ZERO = {name: np.zeros_like(value) for name, value in ONE.items()}


class Bench:
    """A running aggregator, the sites' inboxes, and ways to wait for what should happen."""

    def __init__(self, state: Path, sites: int = 3) -> None:
        self.state = state
        self.federation = Federation(sites)
        self.store: BlobStore = MemoryBlobs()
        self.network = f"memory:{id(self)}"
        self.transport = MemoryTransport.named(self.network)
        self.arrived = threading.Condition()
        self.inbox: dict[str, list[bytes]] = {}
        self.happened: list[str] = []
        self.services: list[AggregatorService] = []
        self.access = AdminAccess()
        self.sites = {name: Site(self.federation, name, self.store) for name in self.federation.members}

    def start(self, **config: Any) -> AggregatorService:
        config.setdefault("strategy", {"name": "fedbuff", "buffer": 2, "rate": 1.0})
        genesis = Genesis(SMALL, lambda: cut(payload(SMALL, ZERO, update=False)))
        service = assemble_aggregator(
            self.federation.aggregator_settings(observer=self._happened, access=self.access),
            transport=MemoryTransport.named(self.network),
            store=self.store,
            state=self.state,
            first=FirstRun(config=RunConfig(name=RUN, **config), genesis=genesis),
        )
        service.start()
        if not self.services:
            for queue in (
                topology.DEAD_LETTERS,
                *(topology.inbox_queue(site) for site in self.sites),
                *(topology.down_queue(site) for site in self.sites),
            ):
                self.inbox[queue] = []
                self.transport.consume(queue, self._take)
        self.services.append(service)
        return service

    def _take(self, delivery: Delivery) -> None:
        with self.arrived:
            self.inbox[delivery.queue].append(delivery.body)
            self.arrived.notify_all()
        delivery.ack()

    def _happened(self, event: str, fields: Mapping[str, Any]) -> None:
        with self.arrived:
            self.happened.append(fields.get("state", event))
            self.arrived.notify_all()

    def send(self, site: str, raw: bytes) -> bytes:
        self.transport.publish(topology.up_exchange(site), "", raw).result(10)
        return raw

    def command(self, name: str, counter: int, by: Identity | None = None) -> None:
        order = Command(counter=counter, expires=int(time.time()) + 60, command=name, arguments={})
        raw = seal(
            by or self.federation.operator,
            Kind.COMMAND,
            order,
            [self.federation.aggregator.public],
            federation=FEDERATION,
            message_id=bytes([counter]) * 16,
        )
        self.transport.publish(topology.COMMANDS, "", raw).result(10)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, 20), {q: len(m) for q, m in self.inbox.items()}

    def receipts(self, site: str) -> list[Receipt]:
        result = []
        for raw in self.inbox[topology.inbox_queue(site)]:
            verified = verify(raw, self.federation.registry, federation=FEDERATION, kinds={Kind.RECEIPT})
            result.append(typed_body(verified, unlock(verified, self.federation.members[site])))
        return result

    def outcomes(self, site: str) -> list[tuple[Outcome, str]]:
        return [(receipt.outcome, receipt.reason) for receipt in self.receipts(site)]

    def wait_outcome(self, site: str, outcome: Outcome, reason: str = "ok", count: int = 1) -> None:
        self.wait(lambda: self.outcomes(site).count((outcome, reason)) >= count)

    def dead(self) -> list[str]:
        return [unpack(raw, limits.MESSAGE)["reason"] for raw in self.inbox[topology.DEAD_LETTERS]]

    def head(self) -> Head:
        raw = self.store.get_head(FEDERATION, limits.STORED_RECORD)
        assert raw is not None
        verified = verify(raw, self.federation.registry, federation=FEDERATION, kinds={Kind.HEAD})
        head: Head = typed_body(verified)
        return head

    def stop(self) -> None:
        for service in self.services:
            service.stop()
            service.join(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end of each service, whatever ended it: one that still ends writes its log into other tests."""
        for service in self.services:
            service.stop()
            with suppress(FledgeError):
                service.join(20)

    def replay(self) -> Replay:
        return Replay(
            federation=FEDERATION,
            run=RUN,
            identity=self.federation.aggregator,
            registry=self.federation.registry,
            history=History.open(self.state / "aggregator.db"),
            store=self.store,
        )


class Hub(Bench):
    """The bench with an operator's console, and sites that obey."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.cut: list[str] = []
        self.handlers: dict[str, Callable[[bytes], None]] = {}
        self.access = AdminAccess(cut_off=self.cut.append, depths=lambda: [("in.site-0", 3, 1)])

    def console(
        self, identity: Identity | None = None, registry: Registry | None = None, kit: KitAccess | None = None
    ) -> Console:
        return Console(
            identity or self.federation.operator,
            FEDERATION,
            self.federation.root_key,
            registry or self.federation.registry,
            MemoryTransport.named(self.network),
            kit,
        )

    def obey(self, site: str, *, ok: bool = True) -> None:
        """Let a site answer every command in its inbox."""

        def take(raw: bytes) -> None:
            identity = self.federation.members[site]
            verified = verify(raw, self.federation.registry, federation=FEDERATION, kinds={Kind.COMMAND})
            order = body(verified, Command, unlock(verified, identity))
            assert site in order.targets
            reply = Reply(message=verified.core.id, ok=ok, reason="ok", text=f"{site} obeys", values={})
            to = [self.federation.aggregator.public, self.federation.operator.public]
            raw = seal(identity, Kind.REPLY, reply, to, federation=FEDERATION, message_id=os.urandom(16))
            self.transport.publish(topology.up_exchange(site), "", raw)

        self.handlers[topology.inbox_queue(site)] = take
        if site not in self.sites:
            self.transport.consume(topology.inbox_queue(site), self._take)

    def _take(self, delivery: Delivery) -> None:
        self.inbox.setdefault(delivery.queue, [])
        super()._take(delivery)
        if delivery.queue in self.handlers:
            self.handlers[delivery.queue](delivery.body)


def one(said: list[Answer]) -> Answer:
    [only] = said
    return only
