"""What the broker says once it is reached: our certificate, the login, the vhost, our queues and our rights."""

from __future__ import annotations

import ssl

from broker.transport.rabbitmq.amqp import AmqpUrl
from broker.transport.rabbitmq.probe import NO_ANSWER, NOT_FOUND, Probe, mechanisms
from fledge.doctor.checks.network import Blocked, Way, last_words, walk
from fledge.doctor.checks.permissions import Own, needed
from fledge.doctor.findings import Finding, Server, bad, good, warning
from protocol.errors import Malformed, NotAllowed, TransportError

DEPLOY = "tell the hub to run: fledge deploy broker"
LEADERLESS = (
    "tell the hub: a queue without a leader is the usual reason (rabbitmq-queues quorum_status QUEUE); what does not"
    " come back has to be deleted, and deployed again"
)
_MOST_SILENT = 2
"""Operations without an answer after which no more are tried: each takes half a minute."""
_ALERTS = {
    "CERTIFICATE_REQUIRED": ("missing", "it wants a client certificate and we have none"),
    "UNKNOWN_CA": ("other_authority", "our certificate is not of the authority it believes"),
    "CERTIFICATE_EXPIRED": ("expired", "our certificate has ended, by its clock"),
    "BAD_CERTIFICATE": ("bad", "it does not accept our certificate"),
    "CERTIFICATE_UNKNOWN": ("bad", "it does not accept our certificate"),
    "CERTIFICATE_REVOKED": ("revoked", "our certificate is revoked"),
}


def check_broker(way: Way, url: AmqpUrl, mine: Own | None) -> list[Finding]:
    """Everything from the name of the broker to the rights of `mine`; what follows a failure is left out."""
    found: list[Finding] = []
    try:
        _greet(way, found)
        with _login(way, url, found) as probe:
            if mine is not None:
                _rights(probe, mine, way.server, found)
    except Blocked as blocked:
        found.append(blocked.finding)
    return found


def _greet(way: Way, found: list[Finding]) -> None:
    server = way.server
    try:
        with walk(way, found) as sock:
            offered = mechanisms(sock)
    except Malformed as error:
        raise Blocked(bad("broker.greeting", "no_broker", str(error), "check host and port", server=server)) from error
    except (OSError, EOFError) as error:
        raise Blocked(refused_certificate("broker.certificate", way, error)) from error
    found.append(good("broker.certificate", "our certificate is accepted" if server.encrypted else "not asked for"))
    passwords = sorted(set(offered) - {"EXTERNAL"})
    if passwords:
        advice = "auth_mechanisms.1 = EXTERNAL and nothing else in rabbitmq.conf: see fledge deploy files"
        found.append(warning("broker.greeting", "passwords", f"logins by {', '.join(passwords)} are offered", advice))
    else:
        found.append(good("broker.greeting", "certificates are the only login"))


def refused_certificate(check: str, way: Way, error: Exception) -> Finding:
    """What it means when a server hangs up right after TLS: with TLS 1.3 that is how it refuses a certificate."""
    server = way.server
    hung_up = server.encrypted and isinstance(error, ssl.SSLError | ConnectionError)
    said = " ".join(str(getattr(one, "reason", "")) for one in (error, last_words(way) if hung_up else None))
    for mark, (code, words) in _ALERTS.items():
        if mark in said:
            return bad(check, code, f"{server}: {words}", "ask for: fledge provision --renew", server=server)
    if hung_up:
        cause = f"{server} hung up after TLS, as when our certificate is refused ({type(error).__name__})"
        return bad(check, "refused", cause, "see the check `certificate`, then ask the hub for its log", server=server)
    cause = f"{server} was reached and gave no answer ({type(error).__name__})"
    return bad(check, "silent", cause, "check the port; if it is right, tell the hub", server=server)


def _login(way: Way, url: AmqpUrl, found: list[Finding]) -> Probe:
    server = way.server
    try:
        probe = Probe(url, proxy=way.proxy)
    except NotAllowed as error:
        if "vhost" in str(error).partition("(")[0]:
            found.append(good("broker.login", "known to the broker"))
            cause = f"vhost {url.vhost} does not exist or is not ours to use"
            raise Blocked(bad("broker.vhost", "refused", cause, DEPLOY, server=server)) from error
        advice = "the hub has to run fledge deploy broker, unless it has cut us off: ask it; at the hub, run it"
        cause = "the broker has no user of our certificate's name"
        raise Blocked(bad("broker.login", "refused", cause, advice, server=server)) from error
    except TransportError as error:
        raise Blocked(
            bad("broker.login", "failed", str(error), "try again; then ask the hub", server=server)
        ) from error
    found.append(good("broker.login", "known to the broker"))
    found.append(good("broker.vhost", f"{url.vhost} lets us in"))
    return probe


def _rights(probe: Probe, mine: Own, server: Server, found: list[Finding]) -> None:
    missing: list[str] = []
    silent: list[str] = []
    refused: list[str] = []
    for attempt in needed(mine):
        code = attempt.on(probe).code
        if code == NOT_FOUND:
            missing.append(attempt.operation.what)
        elif code == NO_ANSWER:
            silent.append(attempt.operation.what)
            if len(silent) == _MOST_SILENT:
                break
        elif code != attempt.answer:
            refused.append(f"{attempt.code} {attempt.operation.what}")
    if missing:
        cause = f"not there: {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        found.append(bad("broker.queues", "missing", cause, DEPLOY, server=server))
    elif silent:
        cause = f"the broker says nothing to: {', '.join(silent)}"
        found.append(bad("broker.queues", "silent", cause, LEADERLESS, server=server))
    else:
        found.append(good("broker.queues", f"{len(mine.reads)} to read, {len(mine.writes)} to send to"))
    if refused:
        cause = f"refused: {refused[0]}" + (f" and {len(refused) - 1} more" if refused[1:] else "")
        found.append(bad("broker.rights", "refused", cause, DEPLOY, server=server))
    elif not silent:
        found.append(good("broker.rights", "what this participant needs is allowed"))
