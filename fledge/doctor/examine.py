"""All checks, in the order in which things have to work; what depends on something that failed is left out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from broker.blobs.s3.url import S3Url, parse_s3_url
from broker.net.proxy import proxy_for
from broker.net.tls import Tls, check_plain
from broker.net.urls import scheme_of
from broker.transport.rabbitmq.amqp import AmqpUrl, parse_amqp_url
from deploy.servers.members import members_of
from fledge.connections import broker_url, signers_of, store_url, tls_of
from fledge.doctor.checks.broker import check_broker
from fledge.doctor.checks.local import (
    check_certificate,
    check_cipher,
    check_filters,
    check_keys,
    check_machine,
    check_private,
    check_registry,
    check_service,
)
from fledge.doctor.checks.network import Way
from fledge.doctor.checks.permissions import Own, own
from fledge.doctor.checks.store import check_signed_urls, check_store_rights, check_store_way
from fledge.doctor.findings import Finding, Server, bad, good, skipped, warning
from fledge.doctor.members import newest_registry
from fledge.doctor.place import Place
from fledge.doctor.report import DoctorReport
from fledge.operator.config import OperatorConfig
from protocol.errors import ConfigError, FledgeError
from protocol.keys import Identity, Role
from protocol.registry import Registry
from worker.config import WorkerConfig

_WHY = {
    "broker": "messages of the federated training (notices, receipts, commands; no patient data)",
    "store": "models and updates of the federated training, encrypted before they leave",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorTargets:
    """The two connections as they are configured, each None where there is none of that kind."""

    broker: tuple[Way, AmqpUrl] | None
    store: tuple[Way, S3Url] | None
    findings: tuple[Finding, ...]

    @property
    def servers(self) -> tuple[Server, ...]:
        """Both ends."""
        ways = [found[0] for found in (self.broker, self.store) if found is not None]
        return tuple(way.server for way in ways)


def examine(place: Place, environ: Mapping[str, str] = os.environ, *, machine: bool = True) -> DoctorReport:
    """Look at everything between this participant and its federation.

    Args:
        machine: also look at disk, memory and accelerators, which takes seconds where torch is installed.
    """
    now = datetime.now(UTC)
    keys, identity = check_keys(place)
    registry_found, registry = check_registry(place, identity)
    name = identity.name if identity is not None else None
    findings = [keys, registry_found, *check_private(place), *check_filters(place)]
    if registry is not None:
        findings.append(check_cipher(_in_force(place, registry)))
    findings.append(check_certificate(tls_of(place.config, place.base), name, now))
    line = read_line(place, environ)
    findings += line.findings
    if line.broker is not None:
        findings += check_broker(*line.broker, owned(place, identity, registry))
    if line.store is not None:
        findings += _store(place, *line.store, identity)
    findings += check_service(place, now.timestamp())
    if machine:
        findings += check_machine(place)
    return DoctorReport(participant=name or "this participant", findings=tuple(findings), servers=line.servers)


def read_line(place: Place, environ: Mapping[str, str]) -> DoctorTargets:
    """Both connections, and what is wrong with how they are configured."""
    findings: list[Finding] = []
    broker = store = None
    config, tls = place.config, tls_of(place.config, place.base)
    if scheme_of(config.broker) in ("amqp", "amqps"):
        try:
            amqp = parse_amqp_url(broker_url(config, place.base), tls)
            broker = _way(_server("broker", amqp.host, amqp.port, amqp.tls), amqp.files, place, environ), amqp
        except ConfigError as error:
            findings.append(bad("files.broker", "url", str(error), "take the line from the kit again"))
    else:
        findings.append(skipped("files.broker", "none", "the configuration names no RabbitMQ"))
    if scheme_of(place.store) in ("s3", "s3s"):
        try:
            s3 = parse_s3_url(_signed_in(place, environ), tls, environ=environ)
            store = _way(_server("store", s3.host, s3.port, s3.encrypted), s3.files, place, environ), s3
        except ConfigError as error:
            findings.append(bad("files.store", "url", str(error), "take it from the kit again"))
    elif place.store:
        findings.append(skipped("files.store", "none", "the configuration names no S3 store"))
    elif place.role == Role.OPERATOR:
        advice = "ask the hub for a new kit (fledge provision --reissue) to send runs and fetch models"
        findings.append(warning("files.store", "old_kit", "the kit names no store, as older ones did not", advice))
    if not any(finding.check.startswith("files.") and finding.code == "url" for finding in findings):
        findings.insert(0, good("files.config", "can be read"))
    return DoctorTargets(broker=broker, store=store, findings=tuple(findings))


def _in_force(place: Place, registry: Registry) -> Registry:
    """The newest registry that is here; the kit's where the service's own journal cannot be read."""
    try:
        return newest_registry(place)
    except FledgeError:
        return registry


def owned(place: Place, identity: Identity | None, registry: Registry | None) -> Own | None:
    """What belongs to this participant on the broker, if its own files say who that is."""
    if identity is None or registry is None or identity.role != place.role:
        return None
    members = members_of(registry)
    return own(identity.role, identity.name, members.topology)


def presigned(place: Place) -> bool:
    """Whether the store is reached by URLs that the aggregator signs."""
    config = place.config
    if isinstance(config, OperatorConfig):  # who may have brought a URL of their own
        return config.access == "presigned" and "@" not in config.store
    return isinstance(config, WorkerConfig) and config.access == "presigned"


def _signed_in(place: Place, environ: Mapping[str, str]) -> str:
    if presigned(place):
        return place.store
    return store_url(place.config, place.base, environ)


def _server(name: str, host: str, port: int, encrypted: bool) -> Server:
    return Server(name=name, host=host, port=port, encrypted=encrypted, purpose=_WHY[name])


def _way(server: Server, tls: Tls, place: Place, environ: Mapping[str, str]) -> Way:
    config, host, encrypted = place.config, server.host, server.encrypted
    check_plain(f"{server.name} {host}", host, encrypted=encrypted, insecure=config.insecure)
    proxy = proxy_for(host, server.port, encrypted=encrypted, explicit=config.proxy, environ=environ)
    return Way(server=server, tls=tls, proxy=proxy)


def _store(place: Place, way: Way, url: S3Url, identity: Identity | None) -> list[Finding]:
    found, reached = check_store_way(way, url)
    if not reached or identity is None:
        return found
    if presigned(place):
        return [*found, skipped("store.read", "presigned", "the aggregator signs each request when it is asked")]
    found += check_store_rights(url, way.server, place, identity.name)
    signers = signers_of(place.config, place.base) if place.role == Role.AGGREGATOR else None
    if signers is not None:
        try:
            found.append(check_signed_urls(url, place, signers))
        finally:
            for signer in signers:
                signer.close()
    return found
