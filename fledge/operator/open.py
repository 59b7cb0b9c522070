"""Opens the console of an operator's kit."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from broker.runtime.settings import given_urls, read_toml
from deploy.keyfiles import read_bounded, read_identity, replace_private
from fledge.connections import broker_of
from fledge.operator.config import OPERATOR_TOML, OperatorConfig
from fledge.operator.console import Console, KitAccess
from fledge.operator.store import open_store
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.limits import STORED_RECORD
from protocol.registry import open_registry

_LOOK_AGAIN_S = 0.05


@contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock that every console of this kit takes."""
    with path.open("a") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ConfigError(f"another console uses this kit ({path}); end it first") from None
                time.sleep(_LOOK_AGAIN_S)  # a lock of another process cannot be waited for with a deadline
        yield


@contextmanager
def open_console(kit: Path) -> Iterator[Console]:
    """Open an operator's kit: a folder that holds operator.toml; FLEDGE_BROKER and FLEDGE_STORE win over its URLs.

    Raises:
        ConfigError: a file is missing, readable by others, or of another role.
        WireError: the registry is not signed by the federation's root.
    """
    path = kit / OPERATOR_TOML if kit.is_dir() else kit
    config, base = read_toml(path, OperatorConfig, given_urls()), path.parent
    identity = read_identity(base / config.keys)
    if identity.role != Role.OPERATOR:
        raise ConfigError(f"{base / config.keys} are keys of the role {identity.role.value}, not of an operator")
    root = bytes.fromhex(config.root)
    record = read_bounded(base / config.registry, STORED_RECORD, "the signed registry")
    registry = open_registry(record, root, config.federation)
    alone = partial(_locked, base / "console.lock")

    def keep(newer: bytes) -> None:
        with suppress(ConfigError):  # it is asked for again next time
            replace_private(base / config.registry, newer)

    with broker_of(config, base, identity.name) as transport:
        access = KitAccess(opened=partial(open_store, config, base), keep_registry=keep, alone=alone)
        yield Console(identity, config.federation, root, registry, transport, access)
