"""Through an HTTP proxy by CONNECT: a connected socket, as if there were no proxy.

Both clients then speak their own TLS over it, end to end. A proxy that is itself reached by TLS would mean TLS
within TLS, which neither client can do over one socket: a thread carries the bytes between, and the client has one
end of a socket pair.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote

from broker.net.redact import basic_login
from broker.net.tls import is_local, joined
from broker.net.urls import split_url
from protocol.errors import ConfigError

_MOST_HEADERS = 16 * 1024
_PIECE = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")
_SCHEMES = re.compile(rb"^proxy-authenticate: *([A-Za-z]{1,32})", re.IGNORECASE | re.MULTILINE)
_SILENT_MS = 60_000


class HopError(OSError):
    """A connection through a proxy was not made; the text names the hop that failed, and holds no credentials."""


def connect_through(proxy: Proxy, host: str, port: int, timeout: float) -> socket.socket:
    """A socket to `host`, which the proxy resolves; it must be there within `timeout` seconds.

    Raises:
        HopError: the proxy cannot be reached, wants credentials, or refuses.
    """
    deadline = time.monotonic() + timeout
    sock = _reach(proxy, timeout)
    try:
        if proxy.tls:
            sock = _secured(sock, proxy)
        _ask(sock, proxy, joined(host, port), deadline)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(timeout)
    return _relayed(sock, timeout) if isinstance(sock, ssl.SSLSocket) else sock


def _reach(proxy: Proxy, timeout: float) -> socket.socket:
    try:
        sock = socket.create_connection((proxy.host, proxy.port), timeout)
    except socket.gaierror as error:
        raise HopError(f"proxy {proxy}: its name is not known here ({error}); check how it is written") from error
    except OSError as error:
        raise HopError(
            f"proxy {proxy} cannot be reached ({error}); check its address and whether this machine may use it"
        ) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
    return sock


def _secured(raw: socket.socket, proxy: Proxy) -> ssl.SSLSocket:
    try:
        # No TLS 1.3 demanded: what matters is the TLS inside.
        return ssl.create_default_context(cafile=proxy.ca).wrap_socket(raw, server_hostname=proxy.host)
    except (OSError, ValueError) as error:
        raise HopError(
            f"proxy {proxy}: TLS to the proxy itself failed ({error}); name its authority by ?cacertfile=FILE"
        ) from error


def _ask(sock: socket.socket, proxy: Proxy, target: str, deadline: float) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user is not None:
        lines.append(f"Proxy-Authorization: Basic {basic_login(proxy.user, proxy.password)}")
    answer = bytearray()
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in answer and len(answer) <= _MOST_HEADERS:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            piece = sock.recv(4096)
            if not piece:
                raise HopError(f"proxy {proxy} hung up when asked for {target}; check that it is an HTTP proxy")
            answer += piece
    except HopError:
        raise
    except OSError as error:
        raise HopError(f"proxy {proxy} gave no answer when asked for {target} ({error})") from error
    status = _STATUS.match(answer)
    if status is None:
        raise HopError(f"proxy {proxy}: what answers there is no HTTP proxy; check address, port and http or https")
    _judge(int(status[1]), bytes(answer), proxy, target)
    if not answer.endswith(b"\r\n\r\n") or answer.index(b"\r\n\r\n") != len(answer) - 4:
        raise HopError(f"proxy {proxy}: something speaks before it was spoken to behind it; {target} is not reached")


def _judge(status: int, answer: bytes, proxy: Proxy, target: str) -> None:
    """Say what an answer other than 200 means; the proxy's own words are not repeated."""
    if status == 200:
        return
    if status == 407:
        offered = ", ".join(sorted({scheme.decode() for scheme in _SCHEMES.findall(answer)})) or "nothing"
        gave = "refuses the credentials" if proxy.user is not None else "wants credentials (user:password@ in its URL)"
        raise HopError(f"proxy {proxy} {gave}: 407; it takes {offered}, fledge speaks Basic")
    if status in (502, 503, 504):
        raise HopError(f"proxy {proxy} could not reach {target}: {status}; check that address, then ask its operator")
    raise HopError(f"proxy {proxy} refuses CONNECT to {target}: {status}; ask its operator to allow exactly that")


def _relayed(outer: ssl.SSLSocket, timeout: float) -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.settimeout(timeout)
    threading.Thread(target=_relay, args=(ours, outer), name="proxy tunnel", daemon=True).start()
    return theirs


def _relay(inner: socket.socket, outer: ssl.SSLSocket) -> None:
    """Carry bytes until either side ends; one thread for both ways, because two must not use one TLS object."""
    with inner, outer, contextlib.suppress(OSError):
        inner.setblocking(False)
        outer.setblocking(False)
        up, down, both = bytearray(), bytearray(), True
        while both or up or down:
            both = both and _take(inner, up) and _take(outer, down)
            _give(outer, up)
            _give(inner, down)
            if both and outer.pending() and not down:
                continue  # decrypted already: the socket would not become readable for it
            with selectors.DefaultSelector() as ready:
                for sock, hungry, waiting in ((inner, not up, down), (outer, not down, up)):
                    mask = (selectors.EVENT_READ if both and hungry else 0) | (selectors.EVENT_WRITE if waiting else 0)
                    if mask:
                        ready.register(sock, mask)
                if ready.get_map():
                    ready.select()


def _take(source: socket.socket, buffer: bytearray) -> bool:
    """Read what is there unless something is still waiting to be sent; False at the end of the stream."""
    if buffer:
        return True
    try:
        piece = source.recv(_PIECE)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return True
    buffer += piece
    return bool(piece)


def _give(sink: socket.socket, buffer: bytearray) -> None:
    if buffer:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            del buffer[: sink.send(buffer)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy that makes tunnels by CONNECT; its text and repr hold no credentials."""

    host: str
    port: int
    tls: bool = False
    """TLS to the proxy itself, outside the TLS of what goes through it."""
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)
    ca: str | None = None
    """A PEM file of authorities for the proxy's own certificate; None: the system's."""

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{joined(self.host, self.port)}"


def parse_proxy(url: str, named: str = "proxy") -> Proxy:
    """Take apart `http(s)://[user:password@]host[:port][?cacertfile=…]`; `named` says in errors where it was given.

    Raises:
        ConfigError: says what is wrong without repeating the URL, which may hold a password.
    """
    parts = split_url(url if "://" in url else f"http://{url}", named)
    option, _, ca = parts.query.partition("=")
    if parts.scheme not in ("http", "https") or not parts.host or parts.path not in ("", "/"):
        raise ConfigError(f"{named}: expected http(s)://user:password@host:port")
    if parts.query and (option != "cacertfile" or not ca or parts.scheme != "https"):
        raise ConfigError(f"{named}: the only option is cacertfile=FILE, and it needs https://")
    tls = parts.scheme == "https"
    return Proxy(
        host=parts.host,
        port=parts.port or (443 if tls else 80),
        tls=tls,
        user=parts.user,
        password=parts.password or "",
        ca=unquote(ca) or None,
    )


def proxy_for(
    host: str, port: int, *, encrypted: bool, explicit: str | None, environ: Mapping[str, str]
) -> Proxy | None:
    """The proxy on the way to `host`, or None: the explicit one, else that of HTTPS_PROXY; NO_PROXY wins over both.

    What the environment says is for TLS to other machines only; an explicit proxy is for every connection.

    Raises:
        ConfigError: the proxy's URL is wrong.
    """
    if any(_spares(entry, host, port) for entry in re.split(r"[\s,]+", _either(environ, "no_proxy")) if entry):
        return None
    if explicit:
        return parse_proxy(explicit)
    given = _either(environ, "https_proxy")
    if not given or not encrypted or is_local(host):
        return None
    return parse_proxy(given, "HTTPS_PROXY")


def _either(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _spares(entry: str, host: str, port: int) -> bool:
    """Whether one word of NO_PROXY means `host`: `*`, a domain and what is below it, an address or a network."""
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass  # one of the two is a name
    name, _, only = entry.lower().rpartition(":") if re.search(r"[^:]:\d+$", entry) else (entry.lower(), "", "")
    if only and int(only) != port:
        return False
    name = name.strip("[]").removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
