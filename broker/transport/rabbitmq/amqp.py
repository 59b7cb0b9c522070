"""How fledge speaks to an AMQP broker, as pure functions: the URL taken apart, and what queues are declared with."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote

from broker.net.tls import FILES, Tls
from broker.net.urls import split_url
from protocol.errors import ConfigError
from protocol.topology import Queue

_MAX_HEARTBEAT = 30
"""Seconds; no answer of the broker is waited for with another deadline, so a dead link must be noticed by this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AmqpUrl:
    """Where the broker is and how to log in; its text and repr hold no secret."""

    host: str
    port: int
    vhost: str
    user: str | None
    """None: log in by the client certificate (SASL EXTERNAL)."""
    password: str = field(repr=False)
    tls: bool
    heartbeat: int
    """Seconds."""
    files: Tls

    def __str__(self) -> str:
        return f"{'amqps' if self.tls else 'amqp'}://{self.host}:{self.port}/{quote(self.vhost, safe='')}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Read the certificate files and return the TLS settings, None for a plain connection.

        Raises:
            ConfigError: a file is missing or not what it should be.
        """
        return self.files.context(f"broker {self}") if self.tls else None


def parse_amqp_url(url: str, tls: Tls | None = None) -> AmqpUrl:
    """Take apart `amqp(s)://[user:password@]host[:port][/vhost][?option=value&…]`.

    Options: `heartbeat` (1 to 30 seconds) and, for amqps, `cacertfile` (default: the system's authorities), `certfile`
    and `keyfile`; if the URL names no file, those of `tls` are taken. With a client certificate and no user the login
    is by certificate; without either it is guest's.

    Raises:
        ConfigError: says what is wrong without repeating the URL, which may hold a password.
    """
    parts = split_url(url, "broker URL")
    try:
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        heartbeat = int(options.pop("heartbeat", _MAX_HEARTBEAT))
    except ValueError:
        raise ConfigError("broker URL: heartbeat has to be a number, and options name=value pairs") from None
    if parts.scheme not in ("amqp", "amqps") or not parts.host:
        raise ConfigError("broker URL: expected amqp(s)://user:password@host:port/vhost")
    if "/" in parts.path[1:]:
        raise ConfigError("broker URL: more than one part in the vhost; write a slash inside its name as %2F")
    if unknown := set(options) - set(FILES):
        raise ConfigError(f"broker URL: unknown options {sorted(unknown)}; known: heartbeat, {', '.join(FILES)}")
    if not 1 <= heartbeat <= _MAX_HEARTBEAT:
        raise ConfigError(f"broker URL: heartbeat={heartbeat} is not between 1 and {_MAX_HEARTBEAT} seconds")
    encrypted = parts.scheme == "amqps"
    if options and not encrypted:
        raise ConfigError(f"broker URL: {sorted(options)} need amqps://")
    if "keyfile" in options and "certfile" not in options:
        raise ConfigError("broker URL: keyfile without certfile")
    files = Tls(**{FILES[name]: path for name, path in options.items()}) if options else tls or Tls()
    by_certificate = encrypted and files.cert is not None and parts.user is None
    return AmqpUrl(
        host=parts.host,
        port=parts.port or (5671 if encrypted else 5672),
        vhost=unquote(parts.path[1:]) or "/",
        user=None if by_certificate else parts.user or "guest",
        password=parts.password or ("guest" if parts.user is None else ""),
        tls=encrypted,
        heartbeat=heartbeat,
        files=files,
    )


def queue_arguments(queue: Queue) -> dict[str, str | bool]:
    """Return the arguments a queue is declared with: only what never changes in its life, the limits are policies."""
    arguments: dict[str, str | bool] = {"x-queue-type": "quorum"}
    if queue.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    return arguments
