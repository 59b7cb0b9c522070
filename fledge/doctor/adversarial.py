"""`fledge doctor --adversarial`: does what is forbidden, by this participant's own credentials, and sees it refused."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from urllib3.exceptions import HTTPError

from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import S3Url
from broker.transport.rabbitmq.amqp import AmqpUrl
from broker.transport.rabbitmq.probe import Probe, mechanisms
from fledge.connections import signers_of
from fledge.doctor.checks import store_attacks
from fledge.doctor.checks.local import check_keys, check_registry
from fledge.doctor.checks.network import Blocked, Way, walk
from fledge.doctor.checks.permissions import forbidden, own
from fledge.doctor.checks.store import CALL_S
from fledge.doctor.checks.store_attacks import Attack, AttackOutcome
from fledge.doctor.examine import presigned, read_line
from fledge.doctor.findings import Finding, bad, good, skipped, warning
from fledge.doctor.place import Place
from fledge.doctor.report import DoctorReport
from fledge.operator.config import OperatorConfig
from protocol.errors import ConfigError, Malformed, TransportError
from protocol.keys import Identity, Role
from protocol.registry import Registry
from protocol.topology import topology

OTHERS = 12
"""Other members of each kind that are tried; each has the same rights as the rest."""
_SHOWN = 20
_STOP = "do not go on before this is closed: fledge deploy broker puts permissions right"
_POLICIES = "apply the policies of: fledge deploy files; do not go on with credentials on a server that ignores them"


def attack(place: Place, environ: Mapping[str, str] = os.environ) -> DoctorReport:
    """Try everything that must be refused, on the real broker and the real store."""
    keys, identity = check_keys(place)
    registered, registry = check_registry(place, identity)
    line = read_line(place, environ)
    if identity is None or registry is None or registered.code != "ok":
        found = [keys, registered]
        return DoctorReport(participant=identity.name if identity else "this participant", findings=tuple(found))
    findings = list(line.findings)
    if line.broker is not None:
        findings += _broker(*line.broker, identity, registry)
    if line.store is not None:
        findings += _store(place, *line.store, identity, registry)
    return DoctorReport(participant=identity.name, findings=tuple(findings), servers=line.servers)


def _broker(way: Way, url: AmqpUrl, identity: Identity, registry: Registry) -> list[Finding]:
    try:
        with walk(way, []) as sock:
            offered = mechanisms(sock)
    except (Blocked, Malformed, OSError) as error:
        return [bad("attack.broker", "not_tried", str(error), "run fledge doctor without --adversarial first")]
    passwords = sorted(set(offered) - {"EXTERNAL"})
    findings = [
        bad("attack.passwords", "offered", f"the broker takes logins by {', '.join(passwords)}", _STOP)
        if passwords
        else good("attack.passwords", "certificates are the only login")
    ]
    tried, through = defaultdict[str, int](int), defaultdict[str, list[str]](list)
    whole = topology(_some(registry, Role.SITE, identity), _some(registry, Role.OPERATOR, identity))
    try:
        with Probe(url, proxy=way.proxy) as probe:
            for attempt in forbidden(own(identity.role, identity.name, whole), whole):
                tried[attempt.code] += 1
                reply = attempt.on(probe)
                if reply.code != attempt.answer:
                    through[attempt.code].append(f"{attempt.operation.what} ({reply.code})")
    except TransportError as error:
        return [*findings, bad("attack.broker", "not_tried", str(error), "run fledge doctor first")]
    return [*findings, *(_counted(f"attack.{code}", count, through[code], _STOP) for code, count in tried.items())]


def _some(registry: Registry, role: Role, identity: Identity) -> list[str]:
    """Members of a role: oneself if one is, and some others."""
    names = [member.name for member in registry.members(role)]
    others = [name for name in names if name != identity.name]
    return ([identity.name] if identity.name in names else []) + others[:OTHERS]


def _store(place: Place, way: Way, url: S3Url, identity: Identity, registry: Registry) -> list[Finding]:
    site = identity.name if identity.role == Role.SITE else "fledge-probe"
    others = [member.name for member in registry.members(Role.SITE) if member.name != site]
    other = others[0] if others else "fledge-other"
    pool = BoundedPool(tls=way.tls, proxy=way.proxy)
    try:
        rclone = _like_rclone(pool, url)
        findings = [_summed("attack.unsigned", store_attacks.without_signature(pool, url, site), "set keys there")]
        if identity.role == Role.SITE:
            findings += _as_site(place, pool, url, site, other)
        elif identity.role == Role.AGGREGATOR:
            findings += _as_hub(place, pool, url, site, other, rclone=rclone)
    except (HTTPError, OSError, ConfigError) as error:
        return [bad("attack.store", "not_tried", f"{type(error).__name__}: {error}", "run fledge doctor first")]
    finally:
        pool.clear()
    return findings


def _like_rclone(pool: BoundedPool, url: S3Url) -> bool:
    """Whether the store answers unsigned requests as `rclone serve s3` does, which has keys but no rights."""
    with pool.until(time.monotonic() + CALL_S):
        pool.urlopen("GET", url.http)
        return pool.answer is not None and pool.answer.code == "UnsupportedAlgorithm"


def _as_site(place: Place, pool: BoundedPool, url: S3Url, site: str, other: str) -> list[Finding]:
    if presigned(place):
        safe = "this site has no credentials; that its URLs are good for nothing else is tried at the hub"
        return [skipped("attack.credentials", "presigned", safe)]
    config = place.config
    store = S3Blobs(replace(url, deadline=CALL_S), insecure=config.insecure, proxy=config.proxy)
    targets = store_attacks.Targets(place=url.place, federation=config.federation, site=site, other=other)
    try:
        tried = list(store_attacks.with_credentials(store, site, other, config.federation))
        copies = list(store_attacks.own_copies(pool, store, targets))
    finally:
        store.close()
    found = [_summed("attack.credentials", [*tried, *copies], _POLICIES)]
    if all(one.outcome == AttackOutcome.WORKED for one in tried):
        found.append(_unsafe("every key sees everything on this store"))
    return found


def _as_hub(place: Place, pool: BoundedPool, url: S3Url, site: str, other: str, *, rclone: bool) -> list[Finding]:
    config = place.config
    signers = None if isinstance(config, OperatorConfig) else signers_of(config, place.base)
    if signers is None:
        if rclone:
            return [_unsafe("no identities sign URLs here, so sites have keys, and the store answers like rclone's")]
        return [skipped("attack.credentials", "at_sites", "whose rights are tried at each site")]
    up, down = signers
    try:
        targets = store_attacks.Targets(place=url.place, federation=config.federation, site=site, other=other)
        urls = _summed(
            "attack.urls",
            store_attacks.with_urls(pool, up, down, targets),
            "do not use signed URLs on this store: update it, or take another",
        )
        return [urls, _signers(list(store_attacks.of_signers(pool, up, down, site)), safe=urls.code == "ok")]
    finally:
        up.close()
        down.close()


def _signers(tried: list[Attack], *, safe: bool) -> Finding:
    """Identities that may too much are only dangerous where a URL can be made to do something else."""
    finding = _summed("attack.signers", tried, _POLICIES)
    if finding.code != "allowed" or not safe:
        return finding
    cause = f"{finding.cause}; no URL can be turned into that here, so signed URLs are safe"
    return warning("attack.signers", "allowed", cause, "give the two identities the policies of: fledge deploy files")


def _unsafe(what: str) -> Finding:
    cause = f"{what}: `rclone serve s3` and its like are safe with signed URLs only"
    advice = 'use access = "presigned" for every site, or a server that has identities with rights'
    return bad("attack.every_key", "unsafe", cause, advice)


def _summed(check: str, attacks: Iterable[Attack], advice: str) -> Finding:
    tried = list(attacks)
    unclear = [f"{one.what} ({one.detail})" for one in tried if one.outcome == AttackOutcome.UNCLEAR]
    through = [f"{one.what} ({one.detail})".replace(" ()", "") for one in tried if one.outcome == AttackOutcome.WORKED]
    if unclear and not through:
        return bad(check, "unclear", f"no clear answer to: {'; '.join(unclear)}", "try again")
    return _counted(check, len(tried), through, advice)


def _counted(check: str, tried: int, through: list[str], advice: str) -> Finding:
    if not through:
        return replace(good(check, f"{tried} tried, all refused"), number=tried)
    shown = "; ".join(through[:_SHOWN]) + ("; …" if through[_SHOWN:] else "")
    return replace(bad(check, "allowed", f"{len(through)} of {tried} WORKED: {shown}", advice), number=len(through))
