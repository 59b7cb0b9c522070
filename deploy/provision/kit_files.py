"""What is in a kit: configuration, scripts and explanations, made from the files in `templates`."""

from __future__ import annotations

import json
import string
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from deploy.provision.project import Project
from protocol.keys import Role

REGISTRY = "registry.bin"
CREDENTIALS = "credentials.toml"
AUTHORITY, CERTIFICATE, TLS_KEY = "tls/ca.pem", "tls/client.pem", "tls/client.key"
SERVERS = ("broker", "store")
"""What the hub's kit holds server certificates for, as `servers/NAME.pem` and `servers/NAME.key`."""
KEYS = {Role.SITE: "site.keys", Role.AGGREGATOR: "aggregator.keys", Role.OPERATOR: "operator.keys"}
CONFIGURATION = {Role.SITE: "worker.toml", Role.AGGREGATOR: "aggregator.toml", Role.OPERATOR: "operator.toml"}

_TEMPLATES = Path(__file__).parents[1] / "templates"
_TEXTS = {
    Role.SITE: {
        "worker.toml": "worker.toml",
        "policy.toml": "policy.toml",
        "start.sh": "start-worker.sh",
        "docker-compose.yml": "compose-worker.yml",
        "fledge-worker.service": "fledge-worker.service",
        "README.md": "readme-site.md",
    },
    Role.AGGREGATOR: {
        "aggregator.toml": "aggregator.toml",
        "start.sh": "start-aggregator.sh",
        "docker-compose.yml": "compose-aggregator.yml",
        "fledge-aggregator.service": "fledge-aggregator.service",
        "README.md": "readme-aggregator.md",
    },
    Role.OPERATOR: {"operator.toml": "operator.toml", "README.md": "readme-operator.md"},
}
ALLOWED = frozenset(
    {
        *(name for texts in _TEXTS.values() for name in texts),
        *KEYS.values(),
        *(f"servers/{server}.{kind}" for server in SERVERS for kind in ("pem", "key")),
        *(REGISTRY, CREDENTIALS, AUTHORITY, CERTIFICATE, TLS_KEY),
    }
)
"""Every name that may stand in a kit; nothing else is ever unpacked."""


class StoreIdentity(BaseModel):
    """The identity of a member at the object store."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    access_key: str
    secret_key: str = Field(repr=False)


class _Text(string.Template):
    """`@{name}` stands for a value, so that `$` stays the shell's and compose's."""

    delimiter = "@"


def texts(project: Project, role: Role, name: str, root: bytes) -> dict[str, bytes]:
    """The files of a kit that hold no secrets, by name.

    Args:
        root: the federation root's verify key.
    """
    broker, store = urlsplit(project.broker_url), urlsplit(project.store_url)
    values = {
        "name": name,
        "federation": project.name,
        "broker_host": broker.hostname,
        "broker_port": broker.port,
        "store_host": store.hostname,
        "store_port": store.port,
        "name_toml": quoted(name),
        "federation_toml": quoted(project.name),
        "broker_toml": quoted(project.broker_url),
        "store_toml": quoted(project.store_url),
        "access_toml": quoted(project.access),
        "root_toml": quoted(root.hex()),
        "insecure_toml": "true" if project.insecure else "false",
        "trainer_line": _trainer(project.trainer),
    }
    return {
        file: _Text((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values).encode()
        for file, template in _TEXTS[role].items()
    }


def example_project() -> str:
    """A `project.yml` to start from."""
    return (_TEMPLATES / "project.yml").read_text(encoding="utf-8")


def credentials(own: StoreIdentity, signing: dict[str, StoreIdentity]) -> bytes:
    """`credentials.toml`: an identity at the store, and in tables of their own those that only sign URLs."""
    lines = ["# Who this is at the object store; mode 0600, and in no other place.", *_lines(own)]
    for name, identity in signing.items():
        lines += ["", f"# Signs URLs for {name}s and can do nothing else.", f"[{name}]", *_lines(identity)]
    return "\n".join([*lines, ""]).encode()


def quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False)


def _trainer(name: str | None) -> str:
    return f"trainer = {quoted(name)}" if name is not None else '# trainer = "mytask:trainer"'


def _lines(identity: StoreIdentity) -> list[str]:
    return [f"access_key = {quoted(identity.access_key)}", f"secret_key = {quoted(identity.secret_key)}"]
