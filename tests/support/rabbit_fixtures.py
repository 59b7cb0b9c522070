"""Fixtures of a private RabbitMQ node: one node for each test process, started when first asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.rabbit import INSTALL, RabbitNode, RabbitVhost, installed


def require_rabbit() -> None:
    """Skip when RabbitMQ is not installed; where everything has to be tested, fail."""
    if not installed():
        missing = f"RabbitMQ is not installed. Run: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def rabbit_node() -> Iterator[RabbitNode]:
    """A node of this test process alone; it is gone afterwards, whatever happens to the process."""
    require_rabbit()
    node = RabbitNode()
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture
def rabbit_broker(rabbit_node: RabbitNode) -> Iterator[RabbitVhost]:
    """A vhost of this test alone, behind a fault proxy."""
    vhost = RabbitVhost(rabbit_node)
    try:
        yield vhost
    finally:
        vhost.close()
