"""Who of a federation logs in to its broker, and what each may do there. Pure.

A user is the common name of a participant's certificate; it has no password and no tags, so it gets in by nothing but
that certificate and never into the management interface.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.servers.rabbitmq import Definition, aggregator_permissions, operator_permissions, site_permissions
from protocol.keys import Role
from protocol.registry import Registry
from protocol.topology import Topology, topology

SITE_CONNECTIONS = 8
"""A worker holds two; the rest is for one that starts while the old one's still time out, and for its doctor."""
CENTRE_CONNECTIONS = 16
"""Of the aggregator, whose standby may be up as well, and of an operator with several consoles."""


@dataclass(frozen=True, slots=True)
class Login:
    """One user of the broker."""

    name: str
    permissions: dict[str, str]
    connections: int
    """The most it may have open at a time."""

    @property
    def user(self) -> Definition:
        """The user as definitions have it."""
        return {"name": self.name, "password_hash": "", "tags": "", "limits": {"max-connections": self.connections}}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerMembers:
    """The members of a federation as its broker sees them."""

    logins: tuple[Login, ...]
    sites: tuple[str, ...]
    operators: tuple[str, ...]
    gone: tuple[str, ...]
    """Who was a member once and is none now."""

    @property
    def topology(self) -> Topology:
        """What these members need on the vhost."""
        return topology(self.sites, self.operators)


def members_of(registry: Registry) -> BrokerMembers:
    """The members whose keys hold, in the registry's order, and who is gone.

    Raises:
        ConfigError: a name cannot stand in queue names and patterns.
    """
    centre = [member.name for member in registry.members(Role.AGGREGATOR)]
    sites = tuple(member.name for member in registry.members(Role.SITE))
    operators = tuple(member.name for member in registry.members(Role.OPERATOR))
    held = {*centre, *sites, *operators}
    return BrokerMembers(
        logins=(
            *(Login(name, aggregator_permissions(), CENTRE_CONNECTIONS) for name in centre),
            *(Login(name, site_permissions(name), SITE_CONNECTIONS) for name in sites),
            *(Login(name, operator_permissions(name), CENTRE_CONNECTIONS) for name in operators),
        ),
        sites=sites,
        operators=operators,
        gone=tuple(dict.fromkeys(entry.name for entry in registry.entries if entry.name not in held)),
    )
