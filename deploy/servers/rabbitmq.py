"""A topology as RabbitMQ definitions, limits included: for the management API, a definitions file or GitOps. Pure.

Limits are policies, one for each family of queues (`in`, `down`, `inbox`, …: what stands before the first dot), so
that an operator changes a limit of all sites in one place. Only keys that every RabbitMQ from 3.10 on knows are used.
"""

from __future__ import annotations

import re
from typing import Any

from broker.transport.rabbitmq.amqp import queue_arguments
from protocol import topology as names
from protocol.errors import ConfigError
from protocol.topology import Queue, Topology

# A JSON object in the words of somebody else: RabbitMQ's management, S3's policies, SeaweedFS's identities.
Definition = dict[str, Any]


def limits_of(queue: Queue) -> Definition:
    """A queue's limits in the words of a policy definition."""
    limits: Definition = {
        "max-length": queue.max_length,
        "overflow": queue.overflow,
        "delivery-limit": queue.delivery_limit,
    }
    if queue.dead_letter:
        if queue.overflow != "reject-publish":
            raise ConfigError(f"queue {queue.name}: at-least-once dead letters need overflow reject-publish")
        limits |= {"dead-letter-exchange": names.DEAD, "dead-letter-strategy": "at-least-once"}
    return limits


def policies(topology: Topology) -> list[Definition]:
    """One policy for each family of queues, without a vhost.

    Raises:
        ConfigError: two queues of one family differ in their limits.
    """
    families: dict[str, Definition] = {}
    for queue in topology.queues:
        family = queue.name.split(".")[0]
        limits = limits_of(queue)
        if families.setdefault(family, limits) != limits:
            raise ConfigError(f"queue {queue.name}: all queues named {family}.* share one policy, so their limits too")
    return [
        {
            "name": f"fledge.{family}",
            "pattern": rf"^{re.escape(family)}\.",
            "apply-to": "queues",
            "priority": 0,
            "definition": limits,
        }
        for family, limits in families.items()
    ]


def definitions(topology: Topology) -> Definition:
    """Everything a vhost holds, as the body of `POST /api/definitions/VHOST` and of a vhost's definitions file."""
    return {
        "policies": policies(topology),
        "exchanges": [
            {
                "name": exchange.name,
                "type": exchange.type,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for exchange in topology.exchanges
        ],
        "queues": [
            {"name": queue.name, "durable": True, "auto_delete": False, "arguments": queue_arguments(queue)}
            for queue in topology.queues
        ],
        "bindings": [
            {
                "source": binding.exchange,
                "destination": binding.queue,
                "destination_type": "queue",
                "routing_key": binding.key,
                "arguments": {},
            }
            for binding in topology.bindings
        ],
    }


def site_permissions(site: str) -> dict[str, str]:
    """What one site's user may do: write to its two exchanges and read its two queues, nothing else."""
    # A checked name holds nothing that a pattern would read as anything but itself.
    name = names.check_site(site)
    return _permissions(write=rf"^(up|ev)\.{name}$", read=rf"^(down|inbox)\.{name}$")


def operator_permissions(operator: str) -> dict[str, str]:
    """What one operator's user may do: send to the aggregator's inbox, to no other, and read its own."""
    name = names.check_site(operator)
    return _permissions(write=f"^{names.COMMANDS}$", read=rf"^inbox\.{name}$")


def aggregator_permissions() -> dict[str, str]:
    """What the aggregator's user may do; it declares nothing, the operator applies the topology."""
    return _permissions(
        write=f"^({names.GLOBAL}|{names.DIRECT}|{names.DEAD})$",
        read=r"^(in|events)\.[a-z0-9-]+$|^inbox\.aggregator$|^dead\.letters$",
    )


def _permissions(*, write: str, read: str) -> dict[str, str]:
    """Patterns that are anchored at both ends: RabbitMQ looks for them anywhere in a name."""
    return {"configure": "^$", "write": write, "read": read}
