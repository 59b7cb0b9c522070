"""Every exchange, queue, routing key and object key, as pure functions: the only place where names are made.

One vhost per federation; all queues are durable quorum queues; limits are set by policy, so that an operator can
change them without deleting a queue (arguments are frozen for a queue's life).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from protocol.errors import ConfigError

GLOBAL = "global"
DIRECT = "direct"
COMMANDS = "orders"
DEAD = "dead"
DEAD_LETTERS = "dead.letters"
AGGREGATOR = "aggregator"

_SITE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_site(site: str) -> str:
    """Return `site` if it may name a site or operator (1 to 32 of a-z, 0-9, inner hyphens; not the aggregator's)."""
    if not _SITE.fullmatch(site) or site == AGGREGATOR:
        raise ConfigError(
            f"{site!r} cannot name a site or operator: use 1 to 32 of a-z, 0-9 and hyphens inside, not 'aggregator'"
        )
    return site


def up_exchange(site: str) -> str:
    """Where a site publishes updates, evaluations and replies."""
    return f"up.{site}"


def in_queue(site: str) -> str:
    """Where the aggregator reads what one site sent."""
    return f"in.{site}"


def event_exchange(site: str) -> str:
    """Where a site publishes heartbeats and progress (display only)."""
    return f"ev.{site}"


def event_queue(site: str) -> str:
    """Where the aggregator reads one site's events."""
    return f"events.{site}"


def down_queue(site: str) -> str:
    """Where a site reads announcements."""
    return f"down.{site}"


def inbox_queue(name: str) -> str:
    """Where a site, an operator or `aggregator` reads what is meant for it alone."""
    return f"inbox.{name}"


def queues_of(site: str) -> tuple[str, ...]:
    """Every queue that belongs to a site."""
    return in_queue(site), event_queue(site), down_queue(site), inbox_queue(site)


def update_chunk(site: str, sha256: str) -> str:
    """Object key of one chunk of a site's update."""
    return f"up/{check_site(site)}/{_hex(sha256)}"


def model_chunk(sha256: str) -> str:
    """Object key of one chunk of what the aggregator publishes: models, their specifications, code."""
    return f"models/{_hex(sha256)}"


def state_chunk(sha256: str) -> str:
    """Object key of one chunk of the aggregator's own state (optimizer moments, released average)."""
    return f"state/{_hex(sha256)}"


def bundle_key(operator: str, sha256: str) -> str:
    """Object key of a record or chunk that an operator brings; once the aggregator has read it, it is of no use."""
    return f"bundles/{check_site(operator)}/{_hex(sha256)}"


def record_key(sha256: str) -> str:
    """Object key of a signed record (of a version, a specification, code, a published model; the registry)."""
    return f"records/{_hex(sha256)}"


def head_key(federation: str) -> str:
    """Object key of a federation's head, the only object that is ever overwritten."""
    return f"heads/{federation}"


def _hex(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{sha256!r} is not a SHA-256 in lower-case hex")
    return sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable quorum queue and the limits its policy sets."""

    name: str
    max_length: int
    overflow: Literal["reject-publish", "drop-head"]
    single_active_consumer: bool = False
    dead_letter: bool = False
    """Deliveries over the limit go to `dead` (at least once); only with reject-publish."""
    delivery_limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: Literal["fanout", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A queue bound to an exchange; `key` matters for direct exchanges only."""

    exchange: str
    queue: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What has to exist on the broker; declaring it again changes nothing."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


def inbox(name: str) -> Queue:
    """The queue of what is meant for one participant alone."""
    return Queue(name=inbox_queue(name), max_length=1024, overflow="reject-publish", dead_letter=True)


def topology(sites: Iterable[str], operators: Iterable[str] = ()) -> Topology:
    """Everything a federation of these sites and operators needs on its vhost."""
    exchanges = [
        Exchange(name=GLOBAL, type="fanout"),
        Exchange(name=DIRECT, type="direct"),
        Exchange(name=COMMANDS, type="fanout"),
        Exchange(name=DEAD, type="fanout"),
    ]
    queues = [Queue(name=DEAD_LETTERS, max_length=10_000, overflow="reject-publish"), inbox(AGGREGATOR)]
    bindings = [Binding(exchange=DEAD, queue=DEAD_LETTERS), Binding(exchange=COMMANDS, queue=inbox_queue(AGGREGATOR))]
    for operator in operators:
        queues.append(inbox(check_site(operator)))
        bindings.append(Binding(exchange=DIRECT, queue=inbox_queue(operator), key=operator))
    for site in sites:
        check_site(site)
        exchanges += [Exchange(name=name, type="fanout") for name in (up_exchange(site), event_exchange(site))]
        queues += [
            Queue(
                name=in_queue(site),
                max_length=256,
                overflow="reject-publish",
                single_active_consumer=True,
                dead_letter=True,
            ),
            Queue(name=event_queue(site), max_length=64, overflow="drop-head"),
            Queue(name=down_queue(site), max_length=64, overflow="drop-head"),
            inbox(site),
        ]
        bindings += [
            Binding(exchange=up_exchange(site), queue=in_queue(site)),
            Binding(exchange=event_exchange(site), queue=event_queue(site)),
            Binding(exchange=GLOBAL, queue=down_queue(site)),
            Binding(exchange=DIRECT, queue=inbox_queue(site), key=site),
        ]
    return Topology(exchanges=tuple(exchanges), queues=tuple(queues), bindings=tuple(bindings))
