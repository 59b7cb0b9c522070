"""A console takes nothing for granted of what the members say: a value of another kind is no value."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from broker.transport.base import Delivery
from broker.transport.memory import MemoryTransport
from fledge.operator.console import Console
from protocol import topology
from protocol.codec import Value
from protocol.envelope import body, seal, unlock, verify
from protocol.errors import Malformed
from protocol.keys import Identity, Role
from protocol.messages import Command, Kind, Reply
from protocol.registry import Registry

FEDERATION = "clinics"
AGGREGATOR, OPERATOR, SITE, ROOT = (
    Identity.generate(name, role)
    for name, role in (
        (topology.AGGREGATOR, Role.AGGREGATOR),
        ("alice", Role.OPERATOR),
        ("site-a", Role.SITE),
        ("root", Role.ROOT),
    )
)
REGISTRY = Registry(version=0, entries=())
for _identity in (AGGREGATOR, OPERATOR, SITE):
    REGISTRY = REGISTRY.with_entry(_identity.public)


@dataclass
class Hub:
    """An aggregator that answers each command with the values it was told."""

    transport: MemoryTransport
    values: Mapping[str, Mapping[str, Value]]
    reasons: Mapping[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def take(self, delivery: Delivery) -> None:
        verified = verify(delivery.body, REGISTRY, federation=FEDERATION, kinds={Kind.COMMAND})
        name = body(verified, Command, unlock(verified, AGGREGATOR)).command
        self.asked.append(name)
        reason = self.reasons.get(name, "ok")
        reply = Reply(
            message=verified.core.id, ok=reason == "ok", reason=reason, text="", values=dict(self.values.get(name, {}))
        )
        raw = seal(AGGREGATOR, Kind.ANSWER, reply, [OPERATOR.public], federation=FEDERATION, message_id=os.urandom(16))
        self.transport.publish(topology.DIRECT, OPERATOR.name, raw)
        delivery.ack()


@pytest.fixture
def transport() -> Iterator[MemoryTransport]:
    opened = MemoryTransport.named(f"memory:{secrets.token_hex(8)}")
    opened.declare(topology.topology([SITE.name], [OPERATOR.name]))
    yield opened
    opened.close()


def answered(transport: MemoryTransport, hub: Hub) -> Console:
    transport.consume(topology.inbox_queue(topology.AGGREGATOR), hub.take)
    return Console(OPERATOR, FEDERATION, bytes(ROOT.sign.verify_key), REGISTRY, transport)


@pytest.mark.parametrize("value", [3, "site-a", None, True])
def test_a_table_that_is_none_has_no_rows(transport: MemoryTransport, value: Value) -> None:
    hub = Hub(transport, {"site.drain": {"site": value, "seen": value}})
    [silent] = answered(transport, hub).ask("site.drain", {}, [SITE.name], timeout=0.5)
    assert (silent.sender, silent.reason) == (SITE.name, "no_answer")
    assert "since the aggregator started" in silent.text


def test_a_time_that_is_none_is_not_told(transport: MemoryTransport) -> None:
    hub = Hub(transport, {"site.drain": {"site": (SITE.name,), "seen": ("yesterday",)}})
    [silent] = answered(transport, hub).ask("site.drain", {}, [SITE.name], timeout=0.5)
    assert "since the aggregator started" in silent.text


def test_a_counter_that_is_no_number_is_passed_over(transport: MemoryTransport) -> None:
    hub = Hub(transport, {"status": {"counter": "many"}}, {"status": "replayed"})
    [refused] = answered(transport, hub).ask("status", {}, timeout=5.0)
    assert (refused.ok, refused.reason, hub.asked) == (False, "replayed", ["status", "status"])


@pytest.mark.parametrize("record", [("§§§",), (3, None), ("A",)])
def test_a_registry_that_cannot_be_read_is_said_to_be_none(
    transport: MemoryTransport, record: tuple[str | int | None, ...]
) -> None:
    console = answered(transport, Hub(transport, {"registry": {"record": record}}))
    with pytest.raises(Malformed):
        console.ask("site.drain", {}, ["site-z"], timeout=5.0)
    assert console.registry == REGISTRY
