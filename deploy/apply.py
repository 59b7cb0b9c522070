"""Bring a broker to a topology over its management API: vhost, limits, exchanges, queues, bindings, users."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import urllib3

from deploy.topology import definitions, policies
from protocol.errors import ConfigError, NotAllowed, TransportError
from protocol.topology import Topology

_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)


class Management:
    """The management API of one broker; credentials stay out of every message."""

    def __init__(self, url: str) -> None:
        """Open `http(s)://user:password@host:port[/prefix]`; nothing is sent yet."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the management URL has to look like http(s)://user:password@host:15672")
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._base = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}/api/"
        credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        self._headers = urllib3.make_headers(basic_auth=credentials) | {"content-type": "application/json"}
        # A repeated PUT, GET or import changes nothing, so a lost answer is simply asked for again.
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=urllib3.Retry(2, backoff_factor=0.2, redirect=0))

    def __enter__(self) -> Management:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def call(self, method: str, *path: str, body: Any = None) -> Any:
        """Send one request (path parts are quoted here) and return the decoded answer, None when it is empty.

        Raises:
            NotAllowed: the user is unknown or may not do this.
            TransportError: not reached, or refused; says with what reason.
        """
        what = f"{method} {self._base}{'/'.join(quote(part, safe='') for part in path)}"
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._pool.request(method, what.split(" ", 1)[1], body=data, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise TransportError(
                f"{what}: not reached ({type(error).__name__}); is the management plugin on?"
            ) from error
        if answer.status in (401, 403):
            raise NotAllowed(f"{what}: {answer.status}; the user needs the administrator tag")
        if answer.status >= 400:
            raise TransportError(f"{what}: {answer.status} {answer.data[:300].decode(errors='replace')}")
        return json.loads(answer.data) if answer.data else None

    def declare_user(self, name: str, password: str, vhost: str, permissions: dict[str, str]) -> None:
        """Make or update a user without tags and set what it may do on one vhost."""
        self.call("PUT", "users", name, body={"password": password, "tags": ""})
        self.call("PUT", "permissions", vhost, name, body=permissions)


def apply_topology(management_url: str, vhost: str, topology: Topology) -> None:
    """Make what is missing on a vhost, the vhost included, and set the limits; nothing is deleted. Idempotent.

    Raises:
        ConfigError: the URL or the topology's limits are wrong.
        TransportError: the broker was not reached or refused, or holds a queue or exchange of another kind.
    """
    wanted = definitions(topology)
    with Management(management_url) as management:
        management.call("PUT", "vhosts", vhost, body={})
        # Before the queues, so that no queue ever lives without its limits.
        for policy in policies(topology):
            management.call("PUT", "policies", vhost, policy["name"], body=policy)
        management.call("POST", "definitions", vhost, body=wanted | {"policies": []})
        for kind in ("queues", "exchanges"):
            _compare(kind, wanted[kind], management.call("GET", kind, vhost))


def _compare(kind: str, wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """An import keeps what exists, in silence, even where it differs; here that is an error."""
    held = {item["name"]: item for item in found}
    for item in wanted:
        name = item["name"]
        if name not in held:
            raise TransportError(f"{kind} {name} is missing after the import; see the broker's log")
        for field in ("type", "durable", "arguments"):
            if field in item and item[field] != held[name].get(field):
                raise TransportError(
                    f"{kind} {name} exists with {field} {held[name].get(field)!r} instead of {item[field]!r}; "
                    "drain and delete it, then apply again"
                )
