"""Newer registries: checked, declared at the broker, and told to the rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from aggregator.domain.events import Event, RegistryChanged
from aggregator.intake import Intake
from aggregator.pipeline.records import Records
from aggregator.rules.federation import AggregatorRules
from broker.transport.base import Transport
from protocol import topology
from protocol.envelope import NO_RUN
from protocol.errors import LoginRefused, NotAllowed, WrongContext
from protocol.keys import Role
from protocol.registry import Registry, open_registry

log = structlog.get_logger("aggregator")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryUpdates:
    """Puts newer registries in force; safe from any thread."""

    federation: str
    root: bytes
    transport: Transport
    intake: Intake
    rules: AggregatorRules
    records_of: Callable[[str], Records]
    forget: Callable[[], None]
    """Drops what was opened under the registry before."""
    tell: Callable[[Event], None]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, record: bytes) -> None:
        """Put a newer registry in force: new sites get the current version, revoked ones are cut off.

        Raises:
            WireError: it is not signed by the root or not newer.
        """
        registry = open_registry(record, self.root, self.federation)
        known = self.intake.registry.version
        if registry.version <= known:
            raise WrongContext(f"registry version {registry.version} is not newer than version {known}, in force")
        self.records_of(NO_RUN).put_record(record)
        self.declare(registry)
        with self.lock:
            if registry.version <= self.intake.registry.version:
                raise WrongContext(f"registry version {registry.version} has been overtaken by a newer one")
            # At once for what arrives, not only once the rules have heard of it: whom it revokes says nothing more.
            self.intake.registry = self.rules.commands.narrowed(registry)
        self.forget()
        self.tell(RegistryChanged(registry=registry, record=record))

    def follow(self, registry: Registry) -> None:
        """Read by the registry that the rules have decided on, unless a newer one is on its way to them already."""
        with self.lock:
            if registry.version >= self.intake.registry.version:
                self.intake.registry = registry
        self.forget()

    def declare(self, registry: Registry) -> None:
        """Make the queues of all members, where this aggregator may."""
        members = {role: sorted(p.name for p in registry.members(role)) for role in (Role.SITE, Role.OPERATOR)}
        try:
            self.transport.declare(topology.topology(members[Role.SITE], members[Role.OPERATOR]))
        except LoginRefused as error:  # which the transport goes on trying
            log.warning("topology.login_refused", registry=registry.version, error=str(error))
        except NotAllowed:  # as it should be: whoever runs the broker declares, by `fledge deploy broker`
            log.info("topology.declared_by_others", registry=registry.version)
