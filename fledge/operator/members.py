"""The kit's own copy of the signed registry: who is a member and who may do what, without asking a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import FledgeError

if TYPE_CHECKING:
    from protocol.registry import Registry


@dataclass(frozen=True, slots=True)
class KnownMembers:
    """The federation's name and its registry."""

    federation: str
    registry: Registry

    def sites(self) -> list[str]:
        """Every site whose keys hold."""
        from protocol.keys import Role

        return [member.name for member in self.registry.members(Role.SITE)]


def read_members(kit: Path) -> KnownMembers:
    """Read the registry that a kit names, and check the root's signature.

    Raises:
        ConfigError: a file of the kit is missing or wrong.
        WireError: the root has not signed the registry.
    """
    from broker.runtime.settings import read_toml
    from deploy.keyfiles import read_bounded
    from fledge.operator.config import OPERATOR_TOML, OperatorConfig
    from protocol.limits import STORED_RECORD
    from protocol.registry import open_registry

    folder = folder_of(kit)
    config = read_toml(folder / OPERATOR_TOML, OperatorConfig)
    record = read_bounded(folder / config.registry, STORED_RECORD, "the signed registry; unpack the kit again")
    return KnownMembers(config.federation, open_registry(record, bytes.fromhex(config.root), config.federation))


def folder_of(kit: Path) -> Path:
    """The kit's folder, also where its operator.toml was named."""
    return kit.parent if kit.is_file() else kit


def site_names(kit: Path) -> list[str]:
    """The sites that a kit knows of, for completion: none if the kit cannot be read."""
    try:
        return read_members(kit).sites()
    except FledgeError:
        return []
