"""Whose machine this is: a kit's folder or a configuration file, of a site, an operator or the aggregator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregator.config import AggregatorConfig
from broker.net.urls import path_of
from broker.runtime.settings import given_urls, read_toml
from deploy.provision.kit_files import CONFIGURATION
from fledge.operator.config import OperatorConfig
from protocol.errors import ConfigError
from protocol.keys import Role
from worker.config import WorkerConfig, read_config

Config = AggregatorConfig | OperatorConfig | WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A participant's configuration and the folder its paths are relative to."""

    role: Role
    config: Config
    base: Path

    @property
    def vhost(self) -> str:
        """The vhost its broker URL names."""
        return path_of(self.config.broker) or "/"

    @property
    def store(self) -> str:
        """Its store URL; empty in operators' kits from before they needed one."""
        return self.config.store


def read_kit(folder: Path) -> Place:
    """Read the configuration in a kit's folder.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    for name in CONFIGURATION.values():
        if (folder / name).exists():
            return read_place(folder / name)
    raise ConfigError(f"{folder} holds none of {', '.join(CONFIGURATION.values())}; is it an unpacked kit?")


def read_place(path: Path, environment: Mapping[str, str] = os.environ) -> Place:
    """Read a configuration file; whose it is shows in its name, and if that was changed it is the aggregator's.

    What the participant's own commands take from the environment instead of the file is taken from there too.

    Raises:
        ConfigError: it is missing or wrong.
    """
    base = path.parent
    if path.name == CONFIGURATION[Role.SITE]:
        return Place(role=Role.SITE, config=read_config(path, environment), base=base)
    if path.name == CONFIGURATION[Role.OPERATOR]:
        return Place(role=Role.OPERATOR, config=read_toml(path, OperatorConfig, given_urls(environment)), base=base)
    return Place(role=Role.AGGREGATOR, config=read_toml(path, AggregatorConfig, given_urls(environment)), base=base)
