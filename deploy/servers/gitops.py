"""The same deployment as files, for who keeps servers by GitOps: definitions and settings of RabbitMQ, policies of S3.

They are a pure function of the members, so the same registry gives the same bytes; none of them holds a secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from deploy.servers.members import BrokerMembers
from deploy.servers.rabbitmq import Definition, definitions
from deploy.servers.s3_policies import (
    aggregator_policy,
    download_signer_policy,
    operator_policy,
    site_policy,
    upload_signer_policy,
)
from protocol.errors import ConfigError

TLS_DIRECTORY = "/etc/rabbitmq/tls"
"""Where the server's `ca.pem`, `server.pem` and `server.key` lie unless something else is said."""
AMQPS_PORT = 5671
"""Where the server listens unless something else is said."""
CONSUMER_TIMEOUT_MS = 1_800_000
"""Nothing of fledge holds a delivery for longer than it takes to write it down; this is for consumers that hang."""
_PEOPLE = ("site-*.json", "operator-*.json")

_SETTINGS = """\
# RabbitMQ for a federation: client certificates are the only way in.
listeners.tcp = none
listeners.ssl.default = {port}
{security}
# The management interface has passwords: keep it off the network (reach it by ssh or from the same host).
management.tcp.ip = 127.0.0.1
management.tcp.port = 15672

vm_memory_high_watermark.relative = 0.6
disk_free_limit.absolute = 5GB
consumer_timeout = {timeout}
"""


def security_settings(tls: str) -> list[str]:
    """The lines of `rabbitmq.conf` that say who gets in; `tls` is the folder of the server's certificates."""
    return [
        f"ssl_options.cacertfile = {tls}/ca.pem",
        f"ssl_options.certfile = {tls}/server.pem",
        f"ssl_options.keyfile = {tls}/server.key",
        "ssl_options.versions.1 = tlsv1.3",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
        "auth_mechanisms.1 = EXTERNAL",
        "ssl_cert_login_from = common_name",
    ]


def broker_definitions(vhost: str, members: BrokerMembers) -> Definition:
    """Everything `fledge deploy broker` makes, as a definitions file for a whole broker."""
    contents = definitions(members.topology)
    return {
        "users": [login.user for login in members.logins],
        "vhosts": [{"name": vhost}],
        "permissions": [{"user": login.name, "vhost": vhost} | login.permissions for login in members.logins],
        **{part: [{"vhost": vhost} | item for item in items] for part, items in contents.items()},
    }


def deployment_files(
    vhost: str, place: str, members: BrokerMembers, *, tls: str = TLS_DIRECTORY, port: int = AMQPS_PORT
) -> dict[str, bytes]:
    """All files by name; `place` is the bucket, or `bucket/prefix`, where the federation's objects are."""
    policies = {
        "aggregator": aggregator_policy(place),
        "sign-uploads": upload_signer_policy(place),
        "sign-downloads": download_signer_policy(place),
        **{f"site-{site}": site_policy(place, site) for site in members.sites},
        **{f"operator-{operator}": operator_policy(place, operator) for operator in members.operators},
    }
    settings = _SETTINGS.format(port=port, security="\n".join(security_settings(tls)), timeout=CONSUMER_TIMEOUT_MS)
    return {
        "rabbitmq/definitions.json": _json(broker_definitions(vhost, members)),
        "rabbitmq/rabbitmq.conf": settings.encode(),
        "rabbitmq/enabled_plugins": b"[rabbitmq_auth_mechanism_ssl,rabbitmq_management].\n",
        **{f"s3/{name}.json": _json(policy) for name, policy in policies.items()},
    }


def write_files(directory: Path, files: dict[str, bytes]) -> tuple[str, ...]:
    """Write what differs and remove policies of members who are gone; return the names of what changed.

    Raises:
        ConfigError: a file cannot be written.
    """
    changed = []
    try:
        for name, data in files.items():
            path = directory / name
            if path.is_file() and path.read_bytes() == data:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            changed.append(name)
        for path in _stale(directory, files):
            path.unlink()
            changed.append(str(path.relative_to(directory)))
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be written ({error.strerror}); choose another directory"
        ) from error
    return tuple(changed)


def _stale(directory: Path, files: Iterable[str]) -> list[Path]:
    wanted = {directory / name for name in files}
    return sorted(path for names in _PEOPLE for path in (directory / "s3").glob(names) if path not in wanted)


def _json(value: Definition) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
