"""Opens a transport by its URL."""

from __future__ import annotations

from broker.net.tls import Tls, check_plain
from broker.transport.base import Transport
from protocol.errors import ConfigError


def open_transport(
    url: str, *, name: str = "fledge", insecure: bool = False, tls: Tls | None = None, proxy: str | None = None
) -> Transport:
    """Open the transport a URL names: `memory:` (this process only; `memory:NAME` shares one), `amqp(s)://…`.

    Args:
        name: shown on the broker's list of connections.
        insecure: allow plain text to other machines than this one.
        tls: the certificate files, where the URL names none; with a certificate and no user that is the login.
        proxy: the proxy's URL; without it HTTPS_PROXY counts. NO_PROXY counts always.

    Raises:
        ConfigError: the scheme is unknown, a file unusable, or plain text not allowed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        from broker.transport.memory import MemoryTransport

        return MemoryTransport.named(url)
    if scheme in ("amqp", "amqps"):
        from broker.transport.rabbitmq.transport import RabbitTransport

        return RabbitTransport(url, name=name, insecure=insecure, tls=tls, proxy=proxy)
    raise _unknown(url)


def check_broker_url(url: str, *, insecure: bool = False) -> None:
    """Object to a URL that `open_transport` would not take; nothing is opened.

    Raises:
        ConfigError: the scheme is unknown, the URL wrong, or plain text not allowed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in ("amqp", "amqps"):
        from broker.transport.rabbitmq.amqp import parse_amqp_url

        parsed = parse_amqp_url(url)
        check_plain(f"broker {parsed}", parsed.host, encrypted=parsed.tls, insecure=insecure)
    elif scheme != "memory":
        raise _unknown(url)


def _unknown(url: str) -> ConfigError:
    # Everything before the last @ may be a password.
    return ConfigError(f"broker URL {url.split('@')[-1]!r}: unknown scheme; known: memory:, amqp://, amqps://")
