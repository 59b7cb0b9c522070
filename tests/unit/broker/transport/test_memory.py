"""What only the transport within one process promises."""

from __future__ import annotations

import pytest

from broker.transport.memory import MemoryTransport
from broker.transport.open import open_transport
from protocol.errors import TransportError
from protocol.topology import AGGREGATOR, COMMANDS, inbox_queue, topology

QUEUE = inbox_queue(AGGREGATOR)


def test_handles_of_one_name_share_a_broker_until_the_last_is_closed() -> None:
    first, second = open_transport("memory:shared"), open_transport("memory://shared")
    first.declare(topology([]))
    first.publish(COMMANDS, "", b"1").result(0)
    first.close()
    assert second.depth(QUEUE) == 1
    second.close()
    third = open_transport("memory:shared")
    with pytest.raises(TransportError, match="does not exist"):
        third.depth(QUEUE)
    third.close()


def test_handles_without_a_name_share_nothing() -> None:
    first, second = open_transport("memory:"), MemoryTransport()
    first.declare(topology([]))
    with pytest.raises(TransportError, match="does not exist"):
        second.depth(QUEUE)
    first.close()
    second.close()
