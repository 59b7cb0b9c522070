"""Bring a broker to what a federation needs over its management API, and cut a member off."""

from __future__ import annotations

import json
from urllib.parse import quote

import urllib3

from broker.net.redact import basic_login
from broker.net.tls import Tls, is_local
from broker.net.urls import split_url
from deploy.servers.changes import BrokerState, Plan, named, plan
from deploy.servers.members import BrokerMembers
from deploy.servers.rabbitmq import Definition
from protocol.errors import ConfigError, NotAllowed, TransportError
from protocol.topology import Topology, check_site, up_exchange

_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)


class Management:
    """The management API of one broker; credentials stay out of every message."""

    def __init__(self, url: str, *, ca: str | None = None, insecure: bool = False) -> None:
        """Open `http(s)://user:password@host:port[/prefix]`; nothing is sent yet.

        Args:
            ca: a PEM file of authorities to believe for https; None: the system's.
            insecure: allow http to another machine.

        Raises:
            ConfigError: the URL or the file is wrong, or the password would travel in the clear.
        """
        parts = split_url(url, "the management URL")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError("the management URL has to look like http(s)://user:password@host:15672")
        if parts.scheme == "http" and not (insecure or is_local(parts.host)):
            raise ConfigError(
                f"the management URL: http would send the password to {parts.host} in the clear; use https, or a"
                " tunnel to localhost, or allow it by --insecure if nobody between here and there can listen"
            )
        self._base = f"{parts.scheme}://{parts.endpoint}{parts.path.rstrip('/')}/api/"
        login = basic_login(parts.user or "", parts.password or "")
        self._headers = {"authorization": f"Basic {login}", "content-type": "application/json"}
        # A repeated PUT, GET or import changes nothing, so a lost answer is simply asked for again.
        self._pool = urllib3.PoolManager(
            timeout=_TIMEOUT,
            retries=urllib3.Retry(2, backoff_factor=0.2, redirect=0),
            ssl_context=Tls(ca=ca).context("the management URL") if parts.scheme == "https" else None,
        )

    def __enter__(self) -> Management:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def call(
        self, method: str, *path: str, body: Definition | None = None, missing_ok: bool = False, query: str = ""
    ) -> object:
        """Send one request (path parts are quoted here) and return the decoded answer, None when it is empty.

        Args:
            missing_ok: also return None when there is no such thing.
            query: what stands behind the question mark, quoted.

        Raises:
            NotAllowed: the user is unknown or may not do this.
            TransportError: not reached, or refused; says with what reason.
        """
        what = f"{method} {self._base}{'/'.join(quote(part, safe='') for part in path)}{'?' if query else ''}{query}"
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._pool.request(method, what.split(" ", 1)[1], body=data, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise TransportError(
                f"{what}: not reached ({type(error).__name__}); is the management plugin on?"
            ) from error
        if answer.status == 401:  # RabbitMQ's answer also to a user who may not use the management at all
            raise NotAllowed(f"{what}: 401; user or password is wrong, or the user lacks the administrator tag")
        if answer.status == 403:
            raise NotAllowed(f"{what}: 403; the user needs the administrator tag")
        if answer.status == 404 and missing_ok:
            return None
        if answer.status >= 400:
            raise TransportError(f"{what}: {answer.status} {answer.data[:300].decode(errors='replace')}")
        try:
            return json.loads(answer.data) if answer.data else None
        except (ValueError, RecursionError) as error:
            raise _stranger(what) from error

    def table(self, *path: str) -> Definition:
        """What a GET tells of one thing.

        Raises:
            TransportError: as `call`, or the answer is not that of RabbitMQ.
        """
        found = self.call("GET", *path)
        if not isinstance(found, dict):
            raise _stranger(f"GET {self._base}{'/'.join(path)}")
        return found

    def rows(self, *path: str, query: str = "") -> tuple[Definition, ...]:
        """What a GET lists.

        Raises:
            TransportError: as `call`, or the answer is not that of RabbitMQ.
        """
        found = self.call("GET", *path, query=query)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise _stranger(f"GET {self._base}{'/'.join(path)}")
        return tuple(found)


def _stranger(what: str) -> TransportError:
    return TransportError(f"{what}: the answer is not that of RabbitMQ's management; does the URL lead to it?")


def apply_topology(management_url: str, vhost: str, topology: Topology) -> None:
    """Make what is missing on a vhost, the vhost included, and set the limits; nothing is deleted. Idempotent.

    Raises:
        ConfigError: the URL or the topology's limits are wrong.
        TransportError: the broker was not reached or refused, or holds a queue or exchange of another kind.
    """
    with Management(management_url) as management:
        _bring(management, vhost, topology, None, dry_run=False)


def apply_members(management: Management, vhost: str, members: BrokerMembers, *, dry_run: bool = False) -> Plan:
    """Bring a vhost and its users to what a federation's members need, and say what that took. Idempotent.

    Former members lose their user, with it every connection, and their exchange; nothing else is removed.

    Args:
        dry_run: only find out.

    Raises:
        TransportError: the broker was not reached or refused, or holds something that cannot be changed into what is
            wanted; in the last case nothing was changed.
    """
    return _bring(management, vhost, members.topology, members, dry_run=dry_run)


def cut_off(management: Management, vhost: str, site: str) -> None:
    """End a site's connections at once and let it make no new ones, whatever certificate it holds. Idempotent.

    Its user goes, and the exchange it sends to; what waits in its queues stays. A later deployment from a registry that
    does not yet name the revocation would let it in again.

    Raises:
        TransportError: the broker was not reached or refused.
    """
    check_site(site)
    management.call("DELETE", "users", site, missing_ok=True)
    management.call("DELETE", "exchanges", vhost, up_exchange(site), missing_ok=True)


def queue_depths(management: Management, vhost: str) -> list[tuple[str, int | None, int | None]]:
    """Every queue of a vhost with its waiting messages and its consumers; None where the broker does not know.

    The messages come from the queues themselves. The consumers come from the statistics, which lag behind by seconds,
    are missing of new queues, and which a broker may be told not to gather (from 4.3 on they are deprecated).

    Raises:
        TransportError: the broker was not reached or refused.
    """
    totals = named("queues", management.rows("queues", vhost, query="disable_stats=true&enable_queue_totals=true"))
    gathered = {queue["name"]: queue for queue in named("queues", management.rows("queues", vhost))}

    def number(queue: Definition, field: str) -> int | None:
        value = queue.get(field)
        return value if isinstance(value, int) else None

    return [
        (queue["name"], number(queue, "messages_ready"), number(gathered.get(queue["name"], {}), "consumers"))
        for queue in totals
    ]


def _bring(
    management: Management, vhost: str, topology: Topology, members: BrokerMembers | None, *, dry_run: bool
) -> Plan:
    todo = plan(vhost, topology, members, _found(management, vhost, users=members is not None))
    if dry_run or not todo.requests:
        return todo
    for request in todo.requests:
        management.call(request.method, *request.path, body=request.body, missing_ok=request.method == "DELETE")
    left = plan(vhost, topology, members, _found(management, vhost, users=members is not None))
    if left.changes:
        raise TransportError(
            f"vhost {vhost}: the broker took every change, but it still has to: {left.changes[0]};"
            " see the broker's log, and whether somebody else changes it at the same time"
        )
    return todo


def _found(management: Management, vhost: str, *, users: bool) -> BrokerState:
    there = management.call("GET", "vhosts", vhost, missing_ok=True)
    # The definitions come straight from the broker's database; the lists of the other calls are cached for a while.
    held = None if there is None else management.table("definitions", vhost)
    if not users:
        return BrokerState(vhost=held)
    return BrokerState(vhost=held, users=management.rows("users"), permissions=management.rows("permissions"))
