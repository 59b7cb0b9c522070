"""Unpacked kits of a small federation for tests that need certificates, keys and a registry, but no provisioner."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nacl.utils

from deploy.keyfiles import write_identity, write_private
from deploy.provision import pki
from protocol.keys import Identity, Role
from protocol.registry import Registry, sign_registry
from protocol.topology import AGGREGATOR

FILES = {
    Role.SITE: ("worker.toml", "site.keys"),
    Role.AGGREGATOR: ("aggregator.toml", "aggregator.keys"),
    Role.OPERATOR: ("operator.toml", "operator.keys"),
}
PEOPLE = {
    AGGREGATOR: Role.AGGREGATOR,
    "site-a": Role.SITE,
    "site-b": Role.SITE,
    "ada": Role.OPERATOR,
}


class Kits:
    """A federation called `fl`: its certificates, its registry, and a kit for everybody on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tls = folder / "certificates"
        self.tls.mkdir()
        self.now = datetime.now(UTC)
        self.authorities = {"ca": pki.new_authority("fl", self.now), "other": pki.new_authority("inspector", self.now)}
        for name, authority in self.authorities.items():
            (self.tls / f"{name}.pem").write_bytes(authority.certificate)
        for name, issuer in (("server", "ca"), ("inspector", "other")):
            key = pki.new_key()
            hosts = ("localhost", "127.0.0.1")
            public = pki.public_key(key)
            certificate = pki.issue_server(self.authorities[issuer], name, public, hosts, days=90, now=self.now)
            self._write(name, key, certificate)
        self.root = Identity.generate("root", Role.ROOT)
        self.identities = {name: Identity.generate(name, role) for name, role in PEOPLE.items()}
        self.registry = Registry(version=0, entries=())
        for name, identity in self.identities.items():
            self.registry = self.registry.with_entry(identity.public)
            self.certify(name)

    def certify(self, name: str, *, file: str = "", authority: str = "ca", days: int = 90, age_days: int = 0) -> None:
        """Write a client's certificate and key, `FILE.pem` and `FILE.key`."""
        key, now = pki.new_key(), self.now - timedelta(days=age_days)
        certificate = pki.issue_client(self.authorities[authority], name, pki.public_key(key), days=days, now=now)
        self._write(file or name, key, certificate)

    def _write(self, name: str, key: bytes, certificate: bytes) -> None:
        (self.tls / f"{name}.key").write_bytes(key)
        (self.tls / f"{name}.pem").write_bytes(certificate)

    def make(self, name: str, folder: Path, *, broker: str, store: str, certificate: str = "", extra: str = "") -> Path:
        """Write a kit into a new folder; `certificate` is another one than its own, `extra` goes before the tables."""
        role = PEOPLE[name]
        configuration, keys = FILES[role]
        (folder / "tls").mkdir(parents=True)
        lines = {"federation": "fl", "broker": broker, "root": bytes(self.root.sign.verify_key).hex()}
        lines |= {"keys": keys, "registry": "registry.bin"}
        lines |= {"store": store} if store else {}
        lines |= {"trainer": "mytask:trainer"} if role == Role.SITE else {}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
        text += 'filters = [{ name = "unsafe-none" }]\n' if role == Role.SITE else ""
        text += f'{extra}\n[tls]\nca = "tls/ca.pem"\ncert = "tls/client.pem"\nkey = "tls/client.key"\n'
        (folder / configuration).write_text(text)
        write_identity(folder / keys, self.identities[name])
        record = sign_registry(self.registry, self.root, "fl", nacl.utils.random(16))
        (folder / "registry.bin").write_bytes(record)
        shutil.copy(self.tls / "ca.pem", folder / "tls" / "ca.pem")
        for kind in ("pem", "key"):
            shutil.copy(self.tls / f"{certificate or name}.{kind}", folder / "tls" / f"client.{kind}")
        (folder / "tls" / "client.key").chmod(0o600)
        return folder

    def credentials(self, kit: Path, key: str, secret: str, *, signers: bool = False) -> None:
        """Write `credentials.toml`, with two identities for signing if wanted."""
        own = f'access_key = "{key}"\nsecret_key = "{secret}"\n'
        tables = f"[upload]\n{own}[download]\n{own}" if signers else ""
        (kit / "credentials.toml").unlink(missing_ok=True)
        write_private(kit / "credentials.toml", (own + tables).encode())
