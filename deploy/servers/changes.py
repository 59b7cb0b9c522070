"""What has to change on a broker so that it is as a federation needs it: wanted and found compared. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from deploy.servers.members import BrokerMembers, Login
from deploy.servers.rabbitmq import Definition, definitions
from protocol.errors import TransportError
from protocol.topology import Topology, up_exchange

Verb = Literal["make", "change", "remove"]
_PARTS = {"exchange": "exchanges", "queue": "queues", "binding": "bindings"}
# What RabbitMQ means by a field that it leaves out, as newer ones do (4.3: exchanges' `internal`).
_DEFAULTS: dict[str, Definition] = {
    "policies": {"apply-to": "all", "priority": 0},
    "exchanges": {"durable": True, "auto_delete": False, "internal": False, "arguments": {}},
    "queues": {"durable": True, "auto_delete": False, "arguments": {}},
    "bindings": {"destination_type": "queue", "routing_key": "", "arguments": {}},
}
_BINDING = ("source", "destination", "destination_type", "routing_key", "arguments")
_RIGHTS = ("configure", "write", "read")
# What every row of an answer names, whatever else a broker leaves out.
_NAMES = {
    **dict.fromkeys(("policies", "exchanges", "queues", "users"), ("name",)),
    "bindings": ("source", "destination"),
    "permissions": ("user", "vhost"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerState:
    """What a broker holds now, in the words of its management API."""

    vhost: Definition | None
    """The vhost's definitions; None: there is no such vhost."""
    users: tuple[Definition, ...] = ()
    permissions: tuple[Definition, ...] = ()
    """Of all vhosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall:
    """One call of the management API; the parts of `path` are not quoted yet."""

    method: Literal["PUT", "POST", "DELETE"]
    path: tuple[str, ...]
    body: Definition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is not as it should be, for people."""

    verb: Verb
    what: str

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What differs, the calls that put it right, in order, and what the administrator should know."""

    changes: tuple[Change, ...]
    requests: tuple[ApiCall, ...]
    notes: tuple[str, ...] = ()


def plan(vhost: str, topology: Topology, members: BrokerMembers | None, found: BrokerState) -> Plan:
    """The way from `found` to a vhost with this topology and, if given, these members.

    Nothing is removed but users and exchanges of former members; limits set by policies of another name stay.

    Raises:
        TransportError: something exists that cannot be changed into what is wanted; nothing should be sent then.
    """
    found = replace(
        found,
        users=tuple(named("users", found.users)),
        permissions=tuple(named("permissions", found.permissions)),
    )
    steps: list[tuple[Change | None, ApiCall | None]] = []
    notes: list[str] = []
    if members is not None:
        # Who has to go goes first, whatever else may fail.
        steps += _removals(vhost, members, found, notes)
    if found.vhost is None:
        steps.append(
            (Change(verb="make", what=f"vhost {vhost}"), ApiCall(method="PUT", path=("vhosts", vhost), body={}))
        )
    wanted, held = definitions(topology), found.vhost or {}
    steps += _contents(vhost, wanted, held)
    notes += _overruled(wanted, held)
    if members is not None:
        for login in members.logins:
            steps += _login(vhost, login, found)
        notes += _strangers(vhost, members, found)
    return Plan(
        changes=tuple(change for change, _ in steps if change is not None),
        requests=tuple(request for _, request in steps if request is not None),
        notes=tuple(notes),
    )


def named(part: str, rows: object) -> list[Definition]:
    """The rows of a part of a broker's answer, each of which has a name; none where it has no such part.

    Raises:
        TransportError: it is not the answer of RabbitMQ.
    """
    found = [] if rows is None else rows
    if not isinstance(found, list | tuple) or not all(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in _NAMES[part]) for row in found
    ):
        raise TransportError(
            f"the broker's answer on its {part} is not that of RabbitMQ's management, or newer than this software;"
            " look whether the URL leads to it, and which RabbitMQ that is"
        )
    return list(found)


def _contents(vhost: str, wanted: Definition, held: Definition) -> Iterator[tuple[Change | None, ApiCall | None]]:
    """Policies first, so that no queue ever lives without its limits; then what is missing, in one import."""
    policies = {policy["name"]: policy for policy in _told("policies", held)}
    for policy in wanted["policies"]:
        known = policies.get(policy["name"])
        if known is None or any(known.get(field) != policy[field] for field in policy):
            verb: Verb = "make" if known is None else "change"
            path = ("policies", vhost, policy["name"])
            yield Change(verb=verb, what=f"policy {policy['name']}"), ApiCall(method="PUT", path=path, body=policy)
    missing: Definition = {"policies": []}
    for word, part in _PARTS.items():
        missing[part] = list(_missing(part, wanted[part], _told(part, held)))
        yield from ((Change(verb="make", what=f"{word} {_called(item)}"), None) for item in missing[part])
    if any(missing.values()):
        yield None, ApiCall(method="POST", path=("definitions", vhost), body=missing)


def _told(part: str, held: Definition) -> Iterator[Definition]:
    """What the broker holds, with the defaults of what it leaves out (or gives as null)."""
    for item in named(part, held.get(part)):
        yield _DEFAULTS[part] | {field: value for field, value in item.items() if value is not None}


def _missing(part: str, wanted: Iterable[Definition], held: Iterable[Definition]) -> Iterator[Definition]:
    """What is not there. An import keeps what exists, in silence, even where it differs; here that is an error."""
    known = {_identity(item): item for item in held}
    for item in wanted:
        there = known.get(_identity(item))
        if there is None:
            yield item
            continue
        for field in item:
            if there.get(field) != item[field]:
                raise TransportError(
                    f"{part} {_called(item)} exists with {field} {there.get(field)!r} instead of {item[field]!r};"
                    " nothing was changed: let it run empty and delete it, then deploy again"
                )


def _identity(item: Definition) -> str:
    """What makes it this one: its name; a binding is another as soon as any of its fields is."""
    return str(item["name"]) if "name" in item else json.dumps([item[field] for field in _BINDING], sort_keys=True)


def _called(item: Definition) -> str:
    if "name" in item:
        return str(item["name"])
    return f"{item['source']} -> {item['destination']} ({item['routing_key'] or 'all'})"


def _login(vhost: str, login: Login, found: BrokerState) -> Iterator[tuple[Change, ApiCall]]:
    user = next((user for user in found.users if user["name"] == login.name), None)
    if user is not None and (tags := _tags(user)):
        raise TransportError(
            f"user {login.name} exists with the tags {', '.join(tags)}: it is somebody's who looks after the broker,"
            " not a participant; nothing was changed: delete it or give the participant another name"
        )
    if user is None or user.get("password_hash"):
        change = Change(verb="make", what=f"user {login.name}") if user is None else _changed(login, "password to none")
        body = {"password_hash": "", "tags": ""}
        yield change, ApiCall(method="PUT", path=("users", login.name), body=body)
    rights = _rights(vhost, login.name, found)
    if rights != login.permissions:
        path = ("permissions", vhost, login.name)
        yield _changed(login, "permissions"), ApiCall(method="PUT", path=path, body=dict(login.permissions))
    limits = (user or {}).get("limits")
    if not isinstance(limits, dict) or limits.get("max-connections") != login.connections:
        path = ("user-limits", login.name, "max-connections")
        change = _changed(login, f"limit to {login.connections} connections")
        yield change, ApiCall(method="PUT", path=path, body={"value": login.connections})


def _changed(login: Login, what: str) -> Change:
    return Change(verb="change", what=f"{login.name}'s {what}")


def _rights(vhost: str, name: str, found: BrokerState) -> Definition | None:
    for entry in found.permissions:
        if entry["user"] == name and entry["vhost"] == vhost:
            return {kind: entry.get(kind) or "" for kind in _RIGHTS}
    return None


def _removals(
    vhost: str, members: BrokerMembers, found: BrokerState, notes: list[str]
) -> Iterator[tuple[Change, ApiCall]]:
    users = {user["name"]: user for user in found.users}
    exchanges = {exchange["name"] for exchange in _told("exchanges", found.vhost or {})}
    for name in members.gone:
        works_on = {entry["vhost"] for entry in found.permissions if entry["user"] == name}
        if name in users and _tags(users[name]):
            notes.append(f"user {name} has tags, so it is not the former member's and stays")
        elif name in users and not works_on - {vhost}:
            # Its connections end with it; without its permissions alone they would go on.
            yield Change(verb="remove", what=f"user {name}"), ApiCall(method="DELETE", path=("users", name))
        elif vhost in works_on:
            notes.append(f"user {name} works on other vhosts too and stays there; close its connections to this one")
            path = ("permissions", vhost, name)
            yield Change(verb="remove", what=f"{name}'s permissions"), ApiCall(method="DELETE", path=path)
        if up_exchange(name) in exchanges:
            path = ("exchanges", vhost, up_exchange(name))
            yield Change(verb="remove", what=f"exchange {up_exchange(name)}"), ApiCall(method="DELETE", path=path)


def _overruled(wanted: Definition, held: Definition) -> Iterator[str]:
    """Policies of other names that hold for queues of ours: a queue follows one, and the limits of no other."""
    for policy in _told("policies", held):
        if policy["name"] in (ours["name"] for ours in wanted["policies"]) or policy["apply-to"] == "exchanges":
            continue
        try:
            pattern = re.compile(str(policy.get("pattern")))
        except re.error:  # RabbitMQ's patterns know a little more than Python's
            continue
        names = [queue["name"] for queue in wanted["queues"] if pattern.search(queue["name"])]
        if names and not str(policy["priority"]).startswith("-"):
            more = f" and {len(names) - 1} more" if names[1:] else ""
            yield (
                f"policy {policy['name']} (priority {policy['priority']}) also fits queue {names[0]}{more}; a queue"
                " follows one policy alone, so fledge's limits may not hold there: unless that is meant, remove it or"
                " give it a priority below 0"
            )


def _strangers(vhost: str, members: BrokerMembers, found: BrokerState) -> Iterator[str]:
    """Who may work on the vhost besides members and those who may everything anyhow."""
    expected = {*(login.name for login in members.logins), *members.gone}
    expected |= {user["name"] for user in found.users if "administrator" in _tags(user)}
    for entry in found.permissions:
        if entry["vhost"] == vhost and entry["user"] not in expected:
            yield (
                f"user {entry['user']} is no member in this registry but may work on vhost {vhost}; "
                "remove it, unless it has to or a newer registry lists it (--registry)"
            )


def _tags(user: Definition) -> list[str]:
    """A user's tags; a list since RabbitMQ 3.9, words with commas before."""
    tags = user.get("tags") or []
    if not isinstance(tags, str | list):
        return [str(tags)]
    return [str(tag) for tag in (tags.split(",") if isinstance(tags, str) else tags) if tag]
