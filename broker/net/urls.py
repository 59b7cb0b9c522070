"""URLs of servers, which may hold a login: taken apart in one place, where a wrong one is explained and never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import quote, unquote, urlsplit

from broker.net.redact import basic_login, remember
from protocol.errors import ConfigError

_HOST = re.compile(r"\[.*\]|[\w.~-]+")
_ENDS = 8
_PORT = re.compile(r"[0-9]{0,5}")
_PORT_WORDS = "the port has to be a number up to 65535; write host:port, with a login user:password@host:port"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUrl:
    """Where a server is and how to log in; its text and repr hold no login."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without its brackets."""
    port: int | None
    endpoint: str
    """Host and port as they were written."""
    path: str
    query: str
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.endpoint}{self.path}"


def split_url(url: str, named: str) -> ServerUrl:
    """Take apart `scheme://[user[:password]@]host[:port][/path][?query]`; `named` is what errors call it.

    Raises:
        ConfigError: it cannot be read, or not without guessing where the login ends; says what to write instead.
    """
    scheme, found, rest = url.strip().partition("://")
    login, at, _ = rest.rpartition("@")
    user, colon, password = login.partition(":")
    _remember(rest)
    if wrong := _wrong(rest, login) if found else "it has no ://":
        raise ConfigError(f"{named}: {wrong}")
    endpoint = re.split("[/?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    try:
        parts = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")
        host, port = parts.hostname or "", parts.port
        who = unquote(user, errors="strict"), unquote(password, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(f"{named}: the escapes (%..) in user or password are no UTF-8; encode them again") from None
    except ValueError:  # its text may repeat what was wrong
        raise ConfigError(f"{named}: {_PORT_WORDS}") from None
    return ServerUrl(
        scheme=parts.scheme,
        host=host,
        port=port,
        endpoint=endpoint,
        path=parts.path,
        query=parts.query,
        user=who[0] if at else None,
        password=who[1] if colon else None,
    )


def scheme_of(url: str) -> str:
    """The scheme that a URL begins with, in lower case; empty without one."""
    return url.partition(":")[0].lower() if ":" in url else ""


def path_of(url: str) -> str:
    """The path of a URL without its first slash, decoded; empty for one that names no server.

    Raises:
        ConfigError: the URL cannot be read.
    """
    return unquote(split_url(url, f"{scheme_of(url)} URL").path[1:]) if "://" in url else ""


def with_login(url: str, user: str, password: str) -> str:
    """The URL with this login, instead of its own if it has one: a secret."""
    scheme, _, rest = url.partition("://")
    remember(password)
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"


def without_login(url: str, named: str) -> tuple[str, tuple[str, str] | None]:
    """A URL as it may stand anywhere, and the user and password that were in it.

    Raises:
        ConfigError: the URL cannot be read.
    """
    if "://" not in url or scheme_of(url) == "file":
        return url, None
    parts = split_url(url, named)
    if not parts.user or parts.password is None:
        return url, None
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}", (parts.user, parts.password)


def _remember(rest: str) -> None:
    """Every login that this may have been meant to hold: which @ ends it is not known while the URL may be wrong."""
    for end in [match.start() for match in re.finditer("@", rest)][:_ENDS]:
        user, colon, password = rest[:end].partition(":")
        if colon:
            plain = unquote(user), unquote(password)
            remember(password, plain[1], basic_login(user, password), basic_login(*plain))


def _wrong(rest: str, login: str) -> str:
    """What keeps a URL from being read in one way only, and what to write."""
    if not rest.isprintable() or " " in rest:
        return (
            "a blank, a line break or another invisible character stands in it; take it out, or write a space that"
            " belongs there as %20"
        )
    for char in "/?#":
        if char in login:
            return (
                f"a {char} stands before its last @, so that the login ends too early; within user and password write"
                f" {char} as {quote(char, safe='')} (@ as %40, % as %25), and an @ behind the host as %40"
            )
    for char in "[]":
        if char in login:
            return f"within user and password write {char} as {quote(char)} (and / as %2F, @ as %40, % as %25)"
    if re.search("%(?![0-9A-Fa-f]{2})", login):
        return "a % in user or password begins no escape; write it as %25 (and / as %2F, @ as %40)"
    host, colon, port = _host_and_port(re.split("[/?#]", rest.rpartition("@")[2], maxsplit=1)[0])
    if colon and not _PORT.fullmatch(port):
        return _PORT_WORDS
    if host.startswith("[") and not (host.endswith("]") and _is_ipv6(host[1:-1])):
        return "what stands in brackets is not an IPv6 address"
    if host and not _HOST.fullmatch(host):
        return "its host has to be a name of letters, digits, '.', '_' and '-', or an address, IPv6 in brackets"
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


def _host_and_port(endpoint: str) -> tuple[str, str, str]:
    if endpoint.startswith("["):
        host, bracket, rest = endpoint.partition("]")
        return host + bracket, rest[:1], rest[1:] if rest.startswith(":") else rest
    return endpoint.partition(":")
