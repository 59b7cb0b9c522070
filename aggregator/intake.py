"""Intake: from a delivery's bytes to an event, or to the reason why not. No I/O; safe from any thread."""

from __future__ import annotations

from typing import Any

from aggregator import events
from aggregator.opened import OpenBlob, OpenBlobs
from protocol import topology
from protocol.envelope import ContentKey, Verified, typed_body, unlock, verify
from protocol.errors import WireError
from protocol.keys import Identity
from protocol.messages import Event, Kind
from protocol.registry import Registry

FROM_SITES = frozenset({Kind.UPDATE, Kind.EVALUATION})
LIVE_EVENTS = frozenset({Kind.EVENT})
COMMANDS = frozenset({Kind.COMMAND})


class Intake:
    """Reads messages under the registry in force."""

    def __init__(
        self, federation: str, identity: Identity, registry: Registry, opened: OpenBlobs | None = None
    ) -> None:
        """`opened` is told of every update's blob, for those who will read it."""
        self._federation = federation
        self._identity = identity
        self._opened = opened
        self.registry = registry
        """Replaced as a whole when a newer one comes."""

    def update(self, site: str, delivery: Any, raw: bytes) -> Any:
        """What arrived in `in.<site>`: an `UpdateArrived`, an `EvaluationArrived`, or `Refused`."""
        return self._read(site, topology.in_queue(site), delivery, raw, FROM_SITES)

    def live(self, site: str, delivery: Any, raw: bytes) -> tuple[Any, Event | None]:
        """What arrived in `events.<site>`: `SiteSeen` and the sign of life, or `Refused` and None."""
        queue = topology.event_queue(site)
        try:
            verified, key = self._open(site, raw, LIVE_EVENTS)
            return events.SiteSeen(delivery=delivery, site=site), typed_body(verified, key)
        except WireError as error:
            return events.Refused(delivery=delivery, site=site, queue=queue, reason=error.reason, raw=raw), None

    def command(self, delivery: Any, raw: bytes, now: float) -> Any:
        """What arrived in the aggregator's inbox: a `CommandArrived` or `Refused`; `now` is the wall clock."""
        queue = topology.inbox_queue(topology.AGGREGATOR)
        try:
            verified, key = self._open(None, raw, COMMANDS)
            order = typed_body(verified, key)
        except WireError as error:
            return events.Refused(delivery=delivery, site="", queue=queue, reason=error.reason, raw=raw)
        if order.expires < now:
            return events.Refused(delivery=delivery, site="", queue=queue, reason="expired", raw=raw)
        return events.CommandArrived(
            delivery=delivery, operator=verified.sender.name, counter=order.counter, command=order.command
        )

    def _read(self, site: str, queue: str, delivery: Any, raw: bytes, kinds: frozenset[Kind]) -> Any:
        try:
            verified, key = self._open(site, raw, kinds)
            body = typed_body(verified, key)
        except WireError as error:
            return events.Refused(delivery=delivery, site=site, queue=queue, reason=error.reason, raw=raw)
        if verified.kind == Kind.EVALUATION:
            return events.EvaluationArrived(
                delivery=delivery, site=site, version=verified.core.version, evaluation=body
            )
        return events.UpdateArrived(delivery=delivery, notice=_notice(site, verified, body))

    def _open(self, site: str | None, raw: bytes, kinds: frozenset[Kind]) -> tuple[Verified, ContentKey]:
        verified = verify(raw, self.registry, federation=self._federation, kinds=kinds)
        if site is not None and verified.sender.name != site:
            raise WireError(f"{verified.sender.name} wrote into the queue of {site}", "wrong_site")
        key = unlock(verified, self._identity)
        if verified.manifest is not None and self._opened is not None:
            self._opened.put(raw, OpenBlob(verified.sender.name, verified.manifest, key))
        return verified, key


def _notice(site: str, verified: Verified, body: Any) -> events.UpdateNotice:
    core = verified.core
    return events.UpdateNotice(
        id=core.id,
        site=site,
        run=core.run,
        epoch=core.epoch,
        sequence=core.sequence,
        base_version=core.version,
        spec=core.spec,
        length=core.length,
        encoding=body.encoding.name,
        examples=body.examples,
        seconds=body.seconds,
        absent=body.absent,
        envelope=verified.raw,
    )
