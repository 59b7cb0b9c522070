"""Registries of members whose keys nobody needs."""

from __future__ import annotations

from protocol.keys import Identity, Role
from protocol.registry import Registry
from protocol.topology import AGGREGATOR


def registry(*sites: str, operators: tuple[str, ...] = ("ada",)) -> Registry:
    """A registry with an aggregator, these sites and operators."""
    found = Registry(version=0, entries=())
    for name, role in [
        (AGGREGATOR, Role.AGGREGATOR),
        *((site, Role.SITE) for site in sites),
        *((operator, Role.OPERATOR) for operator in operators),
    ]:
        found = found.with_entry(Identity.generate(name, role).public)
    return found
