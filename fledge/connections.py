"""From what a configuration says about the line to open connections: certificates, proxy, credentials for the store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from aggregator.operators.admin_access import AdminAccess
from broker.blobs.base import BlobStore
from broker.blobs.open import open_blobs
from broker.blobs.s3.grants import Granter
from broker.blobs.s3.presigned import Ask, PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from broker.net.schemes import Connection
from broker.net.tls import Tls
from broker.net.urls import path_of, scheme_of, split_url, with_login
from broker.runtime.settings import parse_table
from broker.transport.base import Transport
from broker.transport.open import open_transport
from deploy.keyfiles import must_be_private, read_bounded
from deploy.servers.apply import Management, queue_depths
from deploy.servers.apply import cut_off as take_login
from protocol.errors import ConfigError

CREDENTIALS_TOML = "credentials.toml"
_LIMIT = 4096
_LOCAL = ("memory", "file")
"""Schemes of URLs that never hold a login."""
_PLAIN = (*_LOCAL, "amqp", "s3")
"""Schemes of connections without TLS."""


class TlsFiles(Protocol):
    """The `[tls]` table of a configuration."""

    ca: Path
    """The authorities that are believed."""
    cert: Path
    """Our own certificate."""
    key: Path
    """Its key."""


class ConnectionConfig(Protocol):
    """What every configuration says about its connections; paths are relative to `base`, the file's folder."""

    federation: str
    """Its name."""
    broker: str
    """The broker's URL, without a password."""
    insecure: bool
    """Whether plain text may go to other machines."""
    proxy: str | None
    """The proxy's URL; without it the environment counts."""

    @property
    def tls(self) -> TlsFiles | None:
        """The certificate files."""


def tls_of(line: ConnectionConfig, base: Path) -> Tls | None:
    """The certificate files, with their places made absolute."""
    if line.tls is None:
        return None
    ca, cert, key = (str((base / path).absolute()) for path in (line.tls.ca, line.tls.cert, line.tls.key))
    return Tls(ca=ca, cert=cert, key=key)


def _tls_to(url: str, line: ConnectionConfig, base: Path) -> Tls | None:
    """The certificate files, if this URL may be one that is reached by TLS; their key has to be ours alone."""
    tls = None if scheme_of(url) in _PLAIN else tls_of(line, base)
    if tls is not None and tls.key and (key := Path(tls.key)).exists():
        must_be_private(key, key.stat().st_mode)
    return tls


def days_left(line: ConnectionConfig, base: Path) -> float | None:
    """Days until our certificate ends, rounded; None without one."""
    tls = tls_of(line, base)
    end = None if tls is None else tls.ends()
    return None if end is None else round((end - datetime.now(UTC)) / timedelta(days=1), 1)


@contextmanager
def broker_of(line: ConnectionConfig, base: Path, name: str) -> Iterator[Transport]:
    """Open the broker a configuration names and close it at the end."""
    tls = _tls_to(line.broker, line, base)
    transport = open_transport(broker_url(line, base), name=name, insecure=line.insecure, tls=tls, proxy=line.proxy)
    try:
        yield transport
    finally:
        transport.close()


class StoreConfig(ConnectionConfig, Protocol):
    """A configuration that names a store, too."""

    store: str
    """The store's URL."""


@contextmanager
def store_of(line: StoreConfig, base: Path, environment: Mapping[str, str] = os.environ) -> Iterator[BlobStore]:
    """Open the store a configuration names and close it at the end; see `store_url`."""
    tls = _tls_to(line.store, line, base)
    blobs = open_blobs(store_url(line, base, environment), insecure=line.insecure, tls=tls, proxy=line.proxy)
    try:
        yield blobs
    finally:
        blobs.close()


def granted_store(line: StoreConfig, base: Path, name: str, ask: Ask, *, below: str = "up") -> PresignedBlobs:
    """The store for a member that has no credentials and asks the hub for URLs; the caller closes it.

    `below` is where the member's own prefix is: `up` for sites, `bundles` for operators.
    """
    tls = _tls_to(line.store, line, base)
    connection = Connection(name=name, insecure=line.insecure, tls=tls, proxy=line.proxy)
    return PresignedBlobs.from_url(line.store, ask, name, below=below, connection=connection)


def broker_url(line: ConnectionConfig, base: Path) -> str:
    """The broker's URL with the login there is, if its own certificate is not the login: it is a secret.

    It comes from the URL, or the table `[broker]` of `credentials.toml` beside the configuration.
    """
    local = scheme_of(line.broker) in _LOCAL or "://" not in line.broker
    if local or split_url(line.broker, "broker URL").user or "broker" not in (table := _credentials(base)):
        return line.broker
    login = _pair(table["broker"], "user", "password")
    if login is None:
        raise ConfigError(f"{base / CREDENTIALS_TOML}: [broker] has to hold user and password")
    return with_login(line.broker, *login)


def store_url(line: StoreConfig, base: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The store's URL with the credentials there are: it is a secret.

    They come from the environment (FLEDGE_S3_ACCESS_KEY, FLEDGE_S3_SECRET_KEY), the URL, or `credentials.toml` beside
    the configuration, in this order.
    """
    scheme = scheme_of(line.store)
    if scheme in _LOCAL or "://" not in line.store:
        return line.store
    given = scheme in ("s3", "s3s") and environment.get("FLEDGE_S3_ACCESS_KEY")
    if not split_url(line.store, "store URL").user and not given:
        own = _credentials(base)
        return _signed_in(line.store, own, base) if own.keys() - {"broker"} else line.store
    return line.store


def admin_access_of(line: StoreConfig, base: Path, environment: Mapping[str, str] = os.environ) -> AdminAccess:
    """What the aggregator may do besides: FLEDGE_MANAGEMENT holds the URL of the broker's management, with a login."""
    management, vhost = environment.get("FLEDGE_MANAGEMENT", ""), path_of(line.broker) or "/"
    signers = signers_of(line, base)
    granter = None if signers is None else Granter(*signers, line.federation)
    if not management:
        return AdminAccess(granter=granter)

    tls = tls_of(line, base)
    interface = partial(Management, management, ca=None if tls is None else tls.ca, insecure=line.insecure)

    def cut_off(site: str) -> None:
        with interface() as broker:
            take_login(broker, vhost, site)

    def depths() -> list[tuple[str, int | None, int | None]]:
        with interface() as broker:
            return queue_depths(broker, vhost)

    return AdminAccess(cut_off=cut_off, granter=granter, depths=depths)


def signers_of(line: StoreConfig, base: Path) -> tuple[S3Blobs, S3Blobs] | None:
    """Who signs upload and download URLs for sites, if `credentials.toml` holds identities that can only do that."""
    table = _credentials(base)
    if not {"upload", "download"} <= table.keys():
        return None
    tls = _tls_to(line.store, line, base)
    up, down = (
        S3Blobs.from_url(_signed_in(line.store, table[name], base), insecure=line.insecure, tls=tls, proxy=line.proxy)
        for name in ("upload", "download")
    )
    return up, down


def _signed_in(store: str, identity: object, base: Path) -> str:
    login = _pair(identity, "access_key", "secret_key")
    if login is None:
        raise ConfigError(f"{base / CREDENTIALS_TOML} has to hold access_key and secret_key, as the kit had")
    return with_login(store, *login)


def _pair(table: object, name: str, secret: str) -> tuple[str, str] | None:
    """Two texts of a table that a person may have edited; None if one is missing or no text."""
    found = [table.get(key) for key in (name, secret)] if isinstance(table, Mapping) else []
    match found:
        case [str() as user, str() as password]:
            return user, password
    return None


def _credentials(base: Path) -> Mapping[str, object]:
    """The logins that lie beside the configuration; nothing if there is no such file."""
    path = base / CREDENTIALS_TOML
    if not path.exists():
        return {}
    must_be_private(path, path.stat().st_mode)
    try:
        return parse_table(read_bounded(path, _LIMIT, "logins for broker and store"), path)
    except ConfigError as error:
        raise ConfigError(f"{error}; take it from the kit again") from None
