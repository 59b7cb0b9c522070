"""What a connection may be: where plain text is allowed, whom TLS believes, which proxy is on the way.

Rules about text, without I/O; only `Tls.context` and `Tls.expired` read files.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from protocol.errors import ConfigError

FILES = {"cacertfile": "ca", "certfile": "cert", "keyfile": "key"}
"""The options of URLs that name certificate files, and the field of `Tls` each is."""
_MOST_PEM = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Where the certificates lie; they are read anew for every connection, so that a renewed one is simply used."""

    ca: str | None = None
    """A PEM file of authorities; None: the system's."""
    cert: str | None = None
    """Our own certificate, with what links it to its authority."""
    key: str | None = None
    """Its key; None: it stands in `cert`."""

    def context(self, what: str) -> ssl.SSLContext:
        """Read the files and return the settings of a TLS 1.3 client; `what` names the connection in errors.

        Raises:
            ConfigError: a file is missing or not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{what}: cacertfile {self.ca!r} cannot be used: {error}; it has to be a readable PEM file"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self.cert is not None:
            try:
                # Without a password given here, a locked key would make OpenSSL ask for one on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"{what}: certfile {self.cert!r} and keyfile {self.key!r} cannot be used: {error};"
                    " both have to be readable PEM files without a password, and the key has to fit"
                ) from error
        return context

    def ends(self) -> datetime | None:
        """When our own certificate ends; None without one, or if its file cannot be read."""
        if self.cert is None:
            return None
        from cryptography import x509

        try:
            with Path(self.cert).open("rb") as file:
                return x509.load_pem_x509_certificate(file.read(_MOST_PEM)).not_valid_after_utc
        except (OSError, ValueError):
            return None

    def expired(self, now: float) -> datetime | None:
        """When our certificate ended, if that is over at `now` (seconds since the epoch) and the file can be read."""
        end = self.ends()
        return end if end is not None and end <= datetime.fromtimestamp(now, UTC) else None


def joined(host: str, port: int) -> str:
    """Host and port in one word, as URLs and CONNECT have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(host: str) -> bool:
    """Whether `host` is this machine, by its name alone: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_plain(what: str, host: str, *, encrypted: bool, insecure: bool) -> None:
    """Refuse a connection in plain text to another machine, unless that was asked for.

    Raises:
        ConfigError: it is refused; `what` stands at the beginning of the text.
    """
    if not (encrypted or insecure or is_local(host)):
        raise ConfigError(
            f"{what}: plain text is only for localhost; use amqps:// and s3s://,"
            " or write insecure = true if nobody between here and there can listen"
        )
