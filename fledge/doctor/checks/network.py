"""The way to a server, hop by hop: name, proxy, TCP, TLS. The first that fails is named, and what fails it."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

from broker.net.proxy import HopError, Proxy, connect_through
from broker.net.tls import Tls, is_local
from fledge.doctor.findings import Finding, Server, bad, good
from protocol.errors import ConfigError

WAIT_S = 10.0
_LISTEN_S = 3.0
_EXPIRED, _NOT_YET = 10, 9
_WRONG_NAME = (62, 64)
_NOT_TO_STANDARD = range(80, 94)
"""What OpenSSL finds against RFC 5280 if it is asked to be strict, as Python asks it from 3.13 on."""
_MOST_ISSUER = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """To which server, by which certificates, through which proxy."""

    server: Server
    tls: Tls
    proxy: Proxy | None = None


class Blocked(Exception):
    """A hop failed; nothing behind it can be tried."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.cause)
        self.finding = finding


def walk(way: Way, found: list[Finding]) -> socket.socket:
    """Go to the server, note in `found` what went well, and return the socket, inside TLS if it is used.

    Raises:
        Blocked: with the hop that failed.
    """
    server = way.server
    for step in (_name(way), _tcp(way)):
        found.extend(step)
    try:
        sock = _open(way)
    except OSError as error:
        raise Blocked(_no_way(way, error)) from error
    if way.proxy is not None:
        found.append(good(f"{server.name}.proxy", f"{way.proxy} lets us through", server=server))
    if not server.encrypted:
        return sock
    try:
        inside = way.tls.context(f"{server.name} {server}").wrap_socket(sock, server_hostname=server.host)
    except ConfigError as error:
        sock.close()
        raise Blocked(
            bad(f"{server.name}.tls", "files", str(error), "take the files from the kit again", server=server)
        ) from error
    except OSError as error:
        sock.close()
        raise Blocked(_no_tls(way, error)) from error
    found.append(good(f"{server.name}.tls", f"{inside.version()}, the certificate is our authority's", server=server))
    return inside


def last_words(way: Way) -> Exception | None:
    """Why a server that hung up right after TLS did so, if it says: connect once more, say nothing and listen.

    A client that speaks at once may lose what the server said before it closed.
    """
    try:
        with walk(way, []) as sock:
            sock.settimeout(_LISTEN_S)
            sock.recv(1)
    except (OSError, Blocked) as error:
        return error
    return None


def _name(way: Way) -> Iterator[Finding]:
    """The name that this machine has to resolve: the proxy's, if there is one."""
    server, check = way.server, f"{way.server.name}.dns"
    host, port = (server.host, server.port) if way.proxy is None else (way.proxy.host, way.proxy.port)
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        silent = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        cause = f"the name {host} is not known here ({error})"
        advice = (
            "the name server does not answer: look at this machine's network first"
            if silent
            else f"check how {host} is written; a hospital's name server may have to be told to resolve it"
        )
        raise Blocked(bad(check, "silent" if silent else "unknown", cause, advice, server=server)) from error
    behind = "" if way.proxy is None else f" (the proxy; it resolves {server.host} itself)"
    yield good(check, f"{host} is {', '.join(sorted(addresses))}{behind}", server=server)


def _tcp(way: Way) -> Iterator[Finding]:
    server, proxy = way.server, way.proxy
    host, port = (server.host, server.port) if proxy is None else (proxy.host, proxy.port)
    check = f"{server.name}.{'tcp' if proxy is None else 'proxy'}"
    try:
        socket.create_connection((host, port), WAIT_S).close()
    except OSError as error:
        code, words = _dial_trouble(error)
        who = f"{host} port {port}" if proxy is None else f"the proxy {proxy}"
        advice = (
            "ask the firewall team, see below" if not is_local(host) else "nothing listens on this machine: start it"
        )
        raise Blocked(bad(check, code, f"{who}: {words}", advice, server=server)) from error
    if proxy is None:
        yield good(check, f"{host} port {port} takes connections", server=server)


def _dial_trouble(error: OSError) -> tuple[str, str]:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return "no_answer", f"no answer in {WAIT_S:.0f} s, as where a firewall drops packets"
    if isinstance(error, ConnectionRefusedError):
        return "refused", "refused: nothing listens there, or a firewall says so"
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "no_route", "there is no route: this machine may have no way out, or only by a proxy"
    return "failed", f"failed ({error})"


def _open(way: Way) -> socket.socket:
    server = way.server
    if way.proxy is not None:
        return connect_through(way.proxy, server.host, server.port, WAIT_S)
    return socket.create_connection((server.host, server.port), WAIT_S)


def _no_way(way: Way, error: OSError) -> Finding:
    server = way.server
    if not isinstance(error, HopError):
        code, words = _dial_trouble(error)
        return bad(f"{server.name}.tcp", code, f"{server}: {words}", "ask the firewall team, see below", server=server)
    text = str(error)
    marks = {"407": "login", "could not reach": "no_answer", "refuses CONNECT": "refused", "TLS to the proxy": "tls"}
    code = next((code for mark, code in marks.items() if mark in text), "failed")
    advice = {
        "login": "put user and password into the proxy's URL (`proxy` in the configuration, or HTTPS_PROXY)",
        "tls": "name the proxy's own authority: https://proxy.example:3129?cacertfile=FILE",
    }.get(code, "ask whoever looks after the proxy, see below")
    return bad(f"{server.name}.proxy", code, text, advice, server=server)


def _no_tls(way: Way, error: OSError) -> Finding:
    server, check = way.server, f"{way.server.name}.tls"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(way, error)
    reason = getattr(error, "reason", "") or ""
    if reason in ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"):
        cause, advice = "what answers there does not speak TLS", "check the port, and whether the scheme should be TLS"
        return bad(check, "no_tls", cause, advice, server=server)
    if reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"):
        cause = "the other end does not speak TLS 1.3, as some inspecting firewalls do not"
        return bad(check, "version", cause, "ask for an exemption from TLS inspection, see below", server=server)
    if isinstance(error, ssl.SSLEOFError | ConnectionError | TimeoutError):
        cause = f"the connection is cut while TLS begins ({type(error).__name__}), as firewalls do that look at names"
        return bad(check, "cut", cause, f"ask whether {server.host} is allowed on port {server.port}", server=server)
    return bad(check, "failed", f"TLS failed ({reason or error})", "ask the hub what its servers say", server=server)


def _untrusted(way: Way, error: ssl.SSLCertVerificationError) -> Finding:
    server, check = way.server, f"{way.server.name}.tls"
    if error.verify_code == _EXPIRED:
        advice = "look at this machine's clock; if it is right, tell the hub to renew its server's certificate"
        return bad(
            check, "expired", "the server's certificate has ended, by this machine's clock", advice, server=server
        )
    if error.verify_code == _NOT_YET:
        advice = "look at this machine's clock: it is probably behind"
        return bad(check, "not_yet", "the server's certificate does not hold yet, by this clock", advice, server=server)
    if error.verify_code in _WRONG_NAME:
        cause = f"the server there is certified under another name than {server.host}"
        return bad(check, "other_name", cause, "check the host in the configuration, or tell the hub", server=server)
    if error.verify_code in _NOT_TO_STANDARD:
        cause = f"the server's certificate or its authority's is not made by the rules: {error.verify_message}"
        advice = "tell the hub: Python takes such certificates up to 3.12 alone, so it needs ones made by RFC 5280"
        return bad(check, "not_to_standard", cause, advice, server=server)
    issuer, ours = _issuer(way), _subjects(way.tls.ca)
    if issuer and issuer in ours:
        cause = f"the certificate says it is issued by {issuer}, but not by the one we have"
        return bad(check, "other_authority", cause, "ask the hub for its newest tls/ca.pem", server=server)
    cause = f"the certificate that came is issued by {issuer or 'somebody unknown'}, not by the federation's authority"
    advice = "something on the way reads along (TLS inspection): ask for an exemption, see below"
    return bad(check, "intercepted", cause, advice, server=server)


def _issuer(way: Way) -> str:
    """Who issued the certificate that comes; nothing is believed or sent on this connection."""
    from cryptography import x509

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, ValueError), closing(_open(way)) as sock:
        inside = context.wrap_socket(sock, server_hostname=way.server.host)
        with inside:
            der = inside.getpeercert(binary_form=True)
        return _shown(x509.load_der_x509_certificate(der or b"").issuer)
    return ""


def _subjects(path: str | None) -> set[str]:
    from cryptography import x509

    if path is None:
        return set()
    with suppress(OSError, ValueError), open(path, "rb") as file:
        return {_shown(one.subject) for one in x509.load_pem_x509_certificates(file.read(256 * 1024))}
    return set()


def _shown(name: object) -> str:
    rfc4514 = getattr(name, "rfc4514_string", lambda: "")
    return str(rfc4514())[:_MOST_ISSUER]
