"""A site's doctor tells the hub what it found: the part that may leave the hospital, in a signed sign of life."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import nacl.utils

from broker.net.urls import scheme_of
from broker.transport.base import Transport
from deploy.keyfiles import read_bounded, read_identity
from fledge.connections import broker_of
from fledge.doctor.findings import Verdict
from fledge.doctor.place import Config, Place
from fledge.doctor.report import DoctorReport
from protocol import topology
from protocol.envelope import seal
from protocol.errors import FledgeError
from protocol.keys import Role
from protocol.limits import STORED_RECORD
from protocol.messages import DOCTOR, DOCTOR_AT, EXAMINED, Event, Kind
from protocol.registry import open_registry
from worker.service.status import software

_WAIT_S = 15.0
_WORD = 64
_WORTH = {Verdict.GOOD: 1.0, Verdict.WARNING: 0.5, Verdict.BAD: 0.0}
Opened = Callable[[Config, Path, str], AbstractContextManager[Transport]]


def sign_of(report: DoctorReport, now: float) -> Event:
    """What the report says in numbers and fixed words; `now` is in seconds since the epoch."""
    made: dict[str, float] = {}
    for finding in report.findings:
        if finding.verdict in _WORTH:  # a check with several findings is as good as its worst
            made[finding.check] = min(made.get(finding.check, 1.0), _WORTH[finding.verdict])
    blocked = report.blocked
    return Event(
        state=EXAMINED,
        progress=0.0,
        metrics={f"{DOCTOR}{check}"[:_WORD]: worth for check, worth in made.items()} | {DOCTOR_AT: float(int(now))},
        software=software(),
        code="-" if blocked is None else f"{blocked.check}:{blocked.code}"[:_WORD],
    )


def tell_hub(place: Place, report: DoctorReport, opened: Opened = broker_of) -> tuple[bool, str]:
    """Send it by a connection of its own, beside a worker that may run; whether that was done, and a sentence."""
    if place.role == Role.AGGREGATOR:
        return False, ""
    if place.role != Role.SITE:
        return False, "not sent to the hub: operators have no queue for it; show it what you see here"
    if not _reached(place, report):
        return False, "not sent to the hub: the broker does not let us in, see above; show it what you see here"
    config, base = place.config, place.base
    try:
        identity = read_identity(base / config.keys)
        record = read_bounded(base / config.registry, STORED_RECORD, "the signed registry")
        registry = open_registry(record, bytes.fromhex(config.root), config.federation)
        raw = seal(
            identity,
            Kind.EVENT,
            sign_of(report, time.time()),
            registry.members(Role.AGGREGATOR),
            federation=config.federation,
            message_id=nacl.utils.random(16),
        )
        with opened(config, base, f"{identity.name} doctor") as transport:
            transport.publish(topology.event_exchange(identity.name), "", raw).result(_WAIT_S)
    except TimeoutError:
        return False, f"not sent to the hub: the broker did not take it within {_WAIT_S:.0f} s; try again later"
    except FledgeError as error:
        return False, f"not sent to the hub: {error}"
    return True, "sent to the hub: the checks' names and how they went, no words of this machine"


def _reached(place: Place, report: DoctorReport) -> bool:
    if scheme_of(place.config.broker) not in ("amqp", "amqps"):  # nothing was looked at
        return True
    return any(finding.check == "broker.vhost" and finding.verdict == Verdict.GOOD for finding in report.findings)
