"""Who may do what on the broker, what has to change for it, and the same as files."""

from __future__ import annotations

import copy
import json
import re
import ssl
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from deploy.servers.apply import Management, queue_depths
from deploy.servers.changes import BrokerState, Plan, plan
from deploy.servers.gitops import broker_definitions, deployment_files, write_files
from deploy.servers.members import CENTRE_CONNECTIONS, SITE_CONNECTIONS, BrokerMembers, members_of
from deploy.servers.rabbitmq import definitions
from protocol.errors import ConfigError, TransportError
from protocol.keys import Identity, Role
from tests.support.kits import Kits
from tests.support.members import registry

MEMBERS = members_of(registry("site-a", "site-ab"))


def as_found(members: BrokerMembers, **other: Any) -> BrokerState:
    """What a broker holds after a deployment."""
    held = broker_definitions("fl", members)
    known: dict[str, Any] = {
        "vhost": definitions(members.topology),
        "users": tuple(held["users"]),
        "permissions": tuple(held["permissions"]),
    }
    return BrokerState(**(known | other))


def todo(found: BrokerState, members: BrokerMembers = MEMBERS) -> Plan:
    return plan("fl", members.topology, members, found)


def words(done: Plan) -> list[str]:
    return [str(change) for change in done.changes]


def test_the_permissions_are_the_designs() -> None:
    assert {login.name: (login.permissions, login.connections) for login in MEMBERS.logins} == {
        "aggregator": (
            {
                "configure": "^$",
                "write": "^(global|direct|dead)$",
                "read": r"^(in|events)\.[a-z0-9-]+$|^inbox\.aggregator$|^dead\.letters$",
            },
            CENTRE_CONNECTIONS,
        ),
        "site-a": (
            {"configure": "^$", "write": r"^(up|ev)\.site-a$", "read": r"^(down|inbox)\.site-a$"},
            SITE_CONNECTIONS,
        ),
        "site-ab": (
            {"configure": "^$", "write": r"^(up|ev)\.site-ab$", "read": r"^(down|inbox)\.site-ab$"},
            SITE_CONNECTIONS,
        ),
        "ada": ({"configure": "^$", "write": "^orders$", "read": r"^inbox\.ada$"}, CENTRE_CONNECTIONS),
    }


def test_nothing_is_written_or_read_by_two_sites() -> None:
    names = [exchange.name for exchange in MEMBERS.topology.exchanges] + [q.name for q in MEMBERS.topology.queues]
    sites = [login for login in MEMBERS.logins if login.name in MEMBERS.sites]
    for name, kind in product(names, ("write", "read")):
        assert len([login for login in sites if re.search(login.permissions[kind], name)]) <= 1


def test_users_have_neither_passwords_nor_tags() -> None:
    assert all(login.user["password_hash"] == "" and login.user["tags"] == "" for login in MEMBERS.logins)


def test_whoever_is_revoked_is_gone_and_whoever_came_back_is_not() -> None:
    known = registry("site-a", "site-b").revoke("site-a").revoke("site-b")
    back = known.with_entry(Identity.generate("site-b", Role.SITE).public)
    assert members_of(known).gone == ("site-a", "site-b")
    assert members_of(back).gone == ("site-a",)
    assert members_of(back).sites == ("site-b",)


def test_a_name_that_could_be_a_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot name a site"):
        members_of(registry("site.a"))


def test_an_empty_broker_gets_everything_and_policies_come_before_queues() -> None:
    done = todo(BrokerState(vhost=None))
    assert words(done)[0] == "make vhost fl"
    assert "make queue inbox.ada" in words(done)
    assert "make user site-a" in words(done)
    paths = [request.path[0] for request in done.requests]
    assert paths.index("policies") < paths.index("definitions") < paths.index("users") < paths.index("permissions")


def test_a_deployed_broker_needs_nothing() -> None:
    assert todo(as_found(MEMBERS)) == Plan(changes=(), requests=())


def test_a_new_site_changes_nothing_of_the_others() -> None:
    done = todo(as_found(MEMBERS), members_of(registry("site-a", "site-ab", "site-c")))
    assert done.changes
    assert all(re.search(r"site-c\b", change) for change in words(done)), words(done)


def test_wider_permissions_a_password_and_a_lifted_limit_are_put_right() -> None:
    found = as_found(MEMBERS)
    users = tuple(user | {"password_hash": "abc", "limits": {}} for user in found.users if user["name"] == "site-a")
    wide = tuple(p | {"write": ".*"} if p["user"] == "site-a" else p for p in found.permissions)
    done = todo(
        as_found(MEMBERS, users=users + tuple(u for u in found.users if u["name"] != "site-a"), permissions=wide)
    )
    assert words(done) == [
        "change site-a's password to none",
        "change site-a's permissions",
        f"change site-a's limit to {SITE_CONNECTIONS} connections",
    ]


def test_a_changed_policy_is_put_back() -> None:
    held = definitions(MEMBERS.topology)
    held["policies"][0] = held["policies"][0] | {"definition": {"max-length": 1}}
    assert words(todo(as_found(MEMBERS, vhost=held))) == [f"change policy {held['policies'][0]['name']}"]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("queues", "arguments", {"x-queue-type": "classic"}), ("exchanges", "type", "topic")],
)
def test_what_cannot_be_changed_is_refused_before_anything_is_sent(part: str, field: str, value: Any) -> None:
    held = definitions(MEMBERS.topology)
    held[part][0] = held[part][0] | {field: value}
    with pytest.raises(TransportError, match=rf"{part} .* exists with {field} .*nothing was changed"):
        todo(as_found(MEMBERS, vhost=held))


def without(item: dict[str, Any], meant: dict[str, Any], *, null: bool) -> dict[str, Any]:
    """An item as a broker tells it that leaves out (or gives as null) what is as `meant` anyhow."""
    gone = {field for field, value in meant.items() if item.get(field) == value}
    return {field: value for field, value in item.items() if field not in gone} | (dict.fromkeys(gone) if null else {})


@pytest.mark.parametrize("null", [False, True])
def test_what_a_broker_leaves_out_is_what_rabbitmq_means_by_it(null: bool) -> None:
    """RabbitMQ 4.3 leaves `internal` out of its exchanges; others may leave out more."""
    meant = {"durable": True, "auto_delete": False, "internal": False, "arguments": {}, "priority": 0}
    meant |= {"destination_type": "queue", "routing_key": ""}
    found = as_found(MEMBERS)
    assert found.vhost is not None
    told = {part: [without(item, meant, null=null) for item in items] for part, items in found.vhost.items()}
    assert any("internal" not in item or item["internal"] is None for item in told["exchanges"])
    users = tuple(without(user, {"password_hash": "", "tags": ""}, null=null) for user in found.users)
    assert todo(as_found(MEMBERS, vhost=told, users=users)) == Plan(changes=(), requests=())


def test_what_a_broker_leaves_out_and_means_otherwise_is_seen() -> None:
    held = definitions(MEMBERS.topology)
    held["policies"] = [without(policy, {"apply-to": "queues"}, null=False) for policy in held["policies"]]
    rights = tuple(without(p, {"configure": "^$"}, null=False) for p in as_found(MEMBERS).permissions)
    changes = words(todo(as_found(MEMBERS, vhost=held, permissions=rights)))
    assert f"change policy {held['policies'][0]['name']}" in changes  # it would be for exchanges, too
    assert "change site-a's permissions" in changes
    del held["queues"][0]["arguments"]
    with pytest.raises(TransportError, match=r"exists with arguments \{\} instead of"):
        todo(as_found(MEMBERS, vhost=held))


def test_a_binding_with_arguments_of_somebody_else_stands_beside_ours() -> None:
    held = definitions(MEMBERS.topology)
    other = [binding | {"arguments": {"x-shovelled": True}} for binding in held["bindings"]]
    assert todo(as_found(MEMBERS, vhost=held | {"bindings": held["bindings"] + other})) == Plan(changes=(), requests=())
    changes = words(todo(as_found(MEMBERS, vhost=held | {"bindings": other})))
    assert len(changes) == len(other)


def test_former_members_lose_user_and_exchange_first_of_all() -> None:
    known = registry("site-a", "site-ab", "site-c")
    found = as_found(members_of(known))
    done = todo(found, members_of(known.revoke("site-c")))
    assert words(done) == ["remove user site-c", "remove exchange up.site-c"]
    assert done.notes == ()


def test_only_ours_are_removed() -> None:
    known = registry("site-a", "site-ab", "site-c", "site-d")
    members = members_of(known.revoke("site-c").revoke("site-d"))
    found = as_found(MEMBERS)
    everything = {"vhost": "fl", "configure": "", "write": "", "read": ""}
    users = [*found.users, {"name": "site-c", "tags": ["administrator"]}, {"name": "site-d", "tags": []}]
    permissions = [
        *found.permissions,
        everything | {"user": "site-d"},
        everything | {"user": "site-d", "vhost": "other"},
        everything | {"user": "stranger"},
    ]
    done = todo(as_found(MEMBERS, users=tuple(users), permissions=tuple(permissions)), members)
    assert words(done) == ["remove site-d's permissions"]
    assert [note.split(";")[0] for note in done.notes] == [
        "user site-c has tags, so it is not the former member's and stays",
        "user site-d works on other vhosts too and stays there",
        "user stranger is no member in this registry but may work on vhost fl",
    ]


def test_a_participant_with_an_administrators_name_is_refused() -> None:
    users = tuple(user | {"tags": ["administrator"]} for user in as_found(MEMBERS).users)
    with pytest.raises(TransportError, match="another name"):
        todo(as_found(MEMBERS, users=users))


def test_a_password_does_not_travel_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="use https") as refused:
        Management("http://admin:secret@broker.example:15672")
    assert "secret" not in str(refused.value)
    Management("http://admin:secret@broker.example:15672", insecure=True)
    Management("http://admin:secret@127.0.0.1:15672")


def test_the_management_interface_is_believed_by_its_certificate_alone(tmp_path: Path) -> None:
    kits = Kits(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kits.tls / "server.pem", kits.tls / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"https://admin:secret@127.0.0.1:{server.server_port}"
    try:
        with Management(url, ca=str(kits.tls / "ca.pem")) as management:
            assert management.call("GET", "users") == []
        with Management(url, ca=str(kits.tls / "other.pem")) as management, pytest.raises(TransportError) as refused:
            management.call("GET", "users")
        assert "secret" not in str(refused.value)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("said", [b"<html>Sign in</html>", b"[1]", b"{}", b"null", b"[" * 100_000])
def test_what_answers_at_the_url_of_the_management_and_is_none_is_named(said: bytes) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Other", (Empty,), {"said": said}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with Management(f"http://admin:secret@127.0.0.1:{server.server_port}") as management:
            with pytest.raises(TransportError, match="not that of RabbitMQ's management") as refused:
                management.rows("users")
            assert "secret" not in str(refused.value)
            if said != b"{}":
                with pytest.raises(TransportError, match="not that of RabbitMQ's management"):
                    management.table("definitions", "fl")
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"name": "ha", "pattern": ".*", "priority": 0, "definition": {}}, True),
        ({"name": "short", "pattern": "^in\\.", "apply-to": "queues", "priority": 9, "definition": {}}, True),
        ({"name": "elsewhere", "pattern": "^mine$", "priority": 9, "definition": {}}, False),
        ({"name": "below", "pattern": ".*", "priority": -1, "definition": {}}, False),
        ({"name": "routes", "pattern": ".*", "apply-to": "exchanges", "priority": 9, "definition": {}}, False),
        ({"name": "perl", "pattern": "(?1)", "priority": 9, "definition": {}}, False),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_policy_of_somebody_elses_that_may_take_our_queues_limits_away_is_told(policy: Any, told: bool) -> None:
    held = definitions(MEMBERS.topology)
    done = todo(as_found(MEMBERS, vhost=held | {"policies": [*held["policies"], policy]}))
    assert done.changes == ()
    assert [note.split()[1] for note in done.notes] == ([policy["name"]] if told else [])


def test_queues_without_figures_are_listed_and_queues_without_a_name_are_not_rabbitmqs() -> None:
    class Queues(Management):
        def call(self, *_: Any, **__: Any) -> object:
            return [queue]

    queue: dict[str, Any] = {"name": "in.site-a", "messages_ready": "3", "consumers": None}
    with Queues("http://127.0.0.1") as management:
        assert queue_depths(management, "fl") == [("in.site-a", None, None)]
        del queue["name"]
        with pytest.raises(TransportError, match="not that of RabbitMQ's management"):
            queue_depths(management, "fl")


JUNK: list[Any] = [None, 0, -1, True, "x", "a,b", [], [None], [1], {}, {"a": 1}]


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where something stands in an answer; of long lists the first two rows."""
    keys: Iterable[Any] = value if isinstance(value, dict) else range(min(2, len(value)))
    for key in keys:
        yield (key,)
        if isinstance(value[key], dict | list):
            yield from ((key, *rest) for rest in places(value[key]))


def test_an_answer_that_is_not_rabbitmqs_is_an_error_that_says_so_and_no_defect_of_ours() -> None:
    held = as_found(MEMBERS)
    answer: dict[str, Any] = {"vhost": held.vhost, "users": list(held.users), "permissions": list(held.permissions)}
    refused = 0
    for path, junk in product(places(answer), JUNK):
        if len(path) > 1:  # the kinds of the answers themselves are looked at where they come in
            lie = copy.deepcopy(answer)
            inner: Any = lie
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = junk
            try:
                todo(BrokerState(**lie))
            except TransportError:
                refused += 1
    assert refused > 100


class Empty(BaseHTTPRequestHandler):
    """Answers everything with an empty list, or with what a class derived from it says."""

    said = b"[]"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.said)))
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *_: object) -> None:
        pass


def test_the_files_are_the_same_every_time_and_follow_the_members(tmp_path: Path) -> None:
    first = deployment_files("fl", "b", MEMBERS)
    assert deployment_files("fl", "b", members_of(registry("site-a", "site-ab"))) == first
    assert set(write_files(tmp_path, first)) == set(first)
    assert write_files(tmp_path, first) == ()
    fewer = deployment_files("fl", "b", members_of(registry("site-a")))
    assert set(write_files(tmp_path, fewer)) == {"rabbitmq/definitions.json", "s3/site-site-ab.json"}
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(fewer)


def test_the_settings_let_nobody_in_without_a_certificate() -> None:
    settings = deployment_files("fl", "b", MEMBERS)["rabbitmq/rabbitmq.conf"].decode()
    lines = dict(line.split(" = ", 1) for line in settings.splitlines() if line and line[0] != "#")
    assert lines["listeners.tcp"] == "none"
    assert lines["auth_mechanisms.1"] == "EXTERNAL"
    assert "auth_mechanisms.2" not in lines
    assert lines["ssl_options.verify"] == "verify_peer"
    assert lines["ssl_options.fail_if_no_peer_cert"] == "true"
    assert lines["ssl_options.versions.1"] == "tlsv1.3"
    assert lines["ssl_cert_login_from"] == "common_name"
    assert lines["management.tcp.ip"] == "127.0.0.1"


def test_the_definitions_are_whole() -> None:
    held = json.loads(deployment_files("fl", "b", MEMBERS)["rabbitmq/definitions.json"])
    assert {p["user"] for p in held["permissions"]} == {user["name"] for user in held["users"]}
    for part in ("queues", "exchanges", "bindings", "policies", "permissions"):
        assert {item["vhost"] for item in held[part]} == {"fl"}
