"""Opens a transport by its URL."""

from __future__ import annotations

from broker.net.schemes import Connection, Scheme, Schemes
from broker.net.tls import Tls, check_plain
from broker.transport.base import Transport


class _Memory(Scheme[Transport]):
    """This process only."""

    example = "memory:"

    def open(self, url: str, connection: Connection) -> Transport:
        from broker.transport.memory import MemoryTransport

        return MemoryTransport.named(url)


class _Amqp(Scheme[Transport]):
    """RabbitMQ."""

    def check(self, url: str, *, insecure: bool) -> None:
        from broker.transport.rabbitmq.amqp import parse_amqp_url

        parsed = parse_amqp_url(url)
        check_plain(f"broker {parsed}", parsed.host, encrypted=parsed.tls, insecure=insecure)

    def open(self, url: str, connection: Connection) -> Transport:
        from broker.transport.rabbitmq.transport import RabbitTransport

        return RabbitTransport(url, connection)


TRANSPORTS = Schemes[Transport](
    "fledge.transports", "broker", {"memory": _Memory, "amqp": _Amqp, "amqps": _Amqp}, Transport
)


def open_transport(
    url: str, *, name: str = "fledge", insecure: bool = False, tls: Tls | None = None, proxy: str | None = None
) -> Transport:
    """Open the transport a URL names: `memory:` (this process only; `memory:NAME` shares one), `amqp(s)://…`.

    Third parties register a `Scheme` in `fledge.transports`; the arguments are those of `Connection`.

    Raises:
        ConfigError: the scheme is unknown, a file unusable, or plain text not allowed.
    """
    return TRANSPORTS.open(url, Connection(name=name, insecure=insecure, tls=tls, proxy=proxy))


def check_broker_url(url: str, *, insecure: bool = False) -> None:
    """Object to a URL that `open_transport` would not take; nothing is opened.

    Raises:
        ConfigError: the scheme is unknown, the URL wrong, or plain text not allowed.
    """
    TRANSPORTS.check(url, insecure=insecure)
