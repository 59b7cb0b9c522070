"""The provisioner's own folder: the root's keys, the TLS authority's, and what was issued to whom. It belongs offline.

`state.json` is the one thing that decides: it is replaced in one step, and `registry.bin` and `store.json` are written
from it. Secret keys of participants are never kept; a lost kit is answered with new keys.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import nacl.utils
from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.keyfiles import (
    private_directory,
    read_bounded,
    read_identity,
    replace_private,
    write_identity,
    write_private,
)
from deploy.provision.kit_files import StoreIdentity
from deploy.provision.pki import Authority, new_authority
from deploy.provision.project import Project
from protocol.errors import ConfigError
from protocol.keys import Identity, Role
from protocol.registry import Registry, open_registry, sign_registry

ROOT_KEYS, AUTHORITY_KEY, AUTHORITY_CERTIFICATE = "root.keys", "ca.key", "ca.pem"
STATE, REGISTRY, STORE = "state.json", "registry.bin", "store.json"
KITS, PASSWORDS, RENEWED = "kits", "passwords", "renewed"
SIGNING = {"upload": "sign-uploads", "download": "sign-downloads"}
"""Identities at the store that only sign URLs, each for one purpose, and the names of their policies."""
_FIRST = {ROOT_KEYS, AUTHORITY_KEY, AUTHORITY_CERTIFICATE}
_STATE_LIMIT = 64 * 1024**2
_KEY_LIMIT = 16 * 1024


class CustodyState(BaseModel):
    """What has been issued."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    v: Literal[1] = 1
    project: Project
    root: str
    """The root's verify key, in hex."""
    registry: str = ""
    """The signed record, in base64."""
    certificates: dict[str, str] = {}
    """PEM, by participant."""
    servers: dict[str, str] = {}
    """PEM, by server."""
    hub: dict[str, StoreIdentity] = {}
    """Identities at the store: the aggregator's, and those that sign URLs."""
    sites: dict[str, StoreIdentity] = {}
    """Identities at the store, by site."""
    operators: dict[str, StoreIdentity] = {}
    """Identities at the store, by operator."""


@dataclass(slots=True)
class Custody:
    """An open provisioner's folder; no other process has it open."""

    directory: Path
    state: CustodyState

    def registry(self) -> Registry:
        """The newest registry, empty before the first was signed."""
        if not self.state.registry:
            return Registry(version=0, entries=())
        record = base64.b64decode(self.state.registry)
        return open_registry(record, bytes.fromhex(self.state.root), self.state.project.name)

    def root(self) -> Identity:
        """The root's keys, which may be kept elsewhere between uses.

        Raises:
            ConfigError: they are not here, or belong to another federation.
        """
        path = self.directory / ROOT_KEYS
        if not path.exists():
            raise ConfigError(f"{path} is not here, and this needs the root's signature; bring the file back for it")
        root = read_identity(path)
        if bytes(root.sign.verify_key).hex() != self.state.root:
            raise ConfigError(f"{path} are keys of another federation; bring back those of {self.state.project.name}")
        return root

    def authority(self) -> Authority:
        """Who issues certificates.

        Raises:
            ConfigError: its key is not here.
        """
        certificate, key = (
            read_bounded(self.directory / name, _KEY_LIMIT, f"the TLS authority of {self.state.project.name}")
            for name in (AUTHORITY_CERTIFICATE, AUTHORITY_KEY)
        )
        return Authority(certificate=certificate, key=key)

    def sign(self, registry: Registry) -> bytes:
        """The record of a registry, signed by the root."""
        name = self.state.project.name
        record = sign_registry(registry, self.root(), name, nacl.utils.random(16))
        open_registry(record, bytes.fromhex(self.state.root), name)  # a record that no member takes is not given out
        return record

    def save(self, state: CustodyState) -> None:
        """Make a state the one that counts."""
        replace_private(self.directory / STATE, state.model_dump_json(indent=1).encode())
        self.state = state
        self.publish()

    def publish(self) -> None:
        """Write what others read of the state, where it differs."""
        for name, data in ((REGISTRY, base64.b64decode(self.state.registry)), (STORE, _store(self.state).encode())):
            path = self.directory / name
            if not path.exists() or path.read_bytes() != data:
                replace_private(path, data)


def _store(state: CustodyState) -> str:
    """Every identity that the store has to know, each under the name of its policy."""
    hub = [{"name": SIGNING.get(name, name), **each.model_dump()} for name, each in state.hub.items()]
    sites = [{"name": f"site-{name}", **each.model_dump()} for name, each in state.sites.items()]
    operators = [{"name": f"operator-{name}", **each.model_dump()} for name, each in state.operators.items()]
    return json.dumps({"identities": hub + sites + operators}, indent=1)


def new_credentials() -> StoreIdentity:
    """A random identity at the store, in letters that every S3 server takes."""
    letters = string.ascii_letters + string.digits
    return StoreIdentity(
        access_key="".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(20)),
        secret_key="".join(secrets.choice(letters) for _ in range(40)),
    )


@contextmanager
def open_custody(directory: Path, project: Project | None, now: datetime) -> Iterator[Custody]:
    """Open a provisioner's folder alone; with a project it is made if it is not there yet.

    Raises:
        ConfigError: there is none, it belongs to another federation, or another provisioner is at work in it.
    """
    if project is None and not (directory / STATE).exists():
        raise ConfigError(f"{directory} is not a provisioner's folder; make one: fledge provision project.yml -o DIR")
    if not (directory / STATE).exists():
        _check_new(directory)
    private_directory(directory)
    with _locked(directory):
        if not (directory / STATE).exists() and project is not None:
            _found(directory, project, now)
        custody = Custody(directory, _read(directory / STATE))
        if project is not None and project.name != custody.state.project.name:
            raise ConfigError(
                f"{directory} is the folder of {custody.state.project.name}, the project is {project.name}; "
                "a federation keeps its name, and every one has a folder of its own"
            )
        if custody.state.registry:
            custody.publish()
        yield custody


def _check_new(directory: Path) -> None:
    try:
        held = {path.name for path in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror or error}; name a new folder") from error
    if strange := sorted(name for name in held - _FIRST if not name.endswith((".yml", ".yaml"))):
        raise ConfigError(
            f"{directory} holds other things ({strange[0]}) and no {STATE}; name a new folder, "
            f"or bring {STATE} back if this is the provisioner's"
        )


def _found(directory: Path, project: Project, now: datetime) -> None:
    """Make root and authority; whatever an interrupted first try left is used."""
    if not (directory / ROOT_KEYS).exists():
        write_identity(directory / ROOT_KEYS, Identity.generate("root", Role.ROOT))
    if not (directory / AUTHORITY_CERTIFICATE).exists():
        authority = new_authority(project.name, now)
        replace_private(directory / AUTHORITY_KEY, authority.key)
        replace_private(directory / AUTHORITY_CERTIFICATE, authority.certificate)
    root = read_identity(directory / ROOT_KEYS)
    state = CustodyState(project=project, root=bytes(root.sign.verify_key).hex())
    write_private(directory / STATE, state.model_dump_json(indent=1).encode())


def _read(path: Path) -> CustodyState:
    raw = read_bounded(path, _STATE_LIMIT, "the provisioner's state")
    try:
        return CustodyState.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}; bring the file back from a copy") from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another `fledge provision` is at work in {directory}; wait until it has ended"
            ) from None
        yield
    finally:
        os.close(descriptor)
