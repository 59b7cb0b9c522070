"""Who can reach whom: looked at from inside each container's own network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.containers.engine import PROBE, PROJECT, SITES, Stack, docker, inspect, python

pytestmark = pytest.mark.containers

LISTENS = 18404
"""A port on all addresses of the machine, as any service of its own may have it."""
LOOK = """
import json, socket, sys
def reach(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except ConnectionRefusedError:
        return "refused"  # whoever says no was reached
    except OSError:
        return "out of reach"
    return "open"
routes = [line.split()[1:3] for line in open("/proc/net/route").read().splitlines()[1:]]
six = [line.split()[-1] for line in open("/proc/net/if_inet6").read().splitlines()]
print(json.dumps({
    "reached": [reach(host, port) for host, port in json.loads(sys.argv[1])],
    "way out": any(to == "00000000" for to, _ in routes),
    "IPv6": sorted(set(six) - {"lo"}),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a service's container sees of others."""

    reached: dict[str, str]
    """`open`, `refused` or `out of reach`, by name."""
    way_out: bool
    """Whether it has a route to everywhere."""
    ipv6: bool
    """Whether it has an address that no rule of these networks was made for."""


@pytest.fixture(scope="module")
def targets(federation: Stack) -> Iterator[dict[str, list[tuple[str, int]]]]:
    """Everything there is to reach: names, and the addresses they have, each in every network."""
    ports = {"rabbitmq": (5671, 15671), "minio": (9000,), "front": (443, 8404), "aggregator": (9999,)}
    found: dict[str, list[tuple[str, int]]] = {}
    for service in (*ports, *SITES):
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        for address in inspect(federation.container(service), form).split():
            for port in ports.get(service, (9999,)):
                found.setdefault(f"{service}:{port}", []).append((address, port))
    networks = docker("network", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
    form = "{{range .IPAM.Config}}{{.Gateway}} {{end}}"
    gateways = {address.partition("/")[0] for each in ("bridge", *networks) for address in inspect(each, form).split()}
    found["the machine"] = [(address, LISTENS) for address in sorted(gateways)]
    found["outside"] = [("1.1.1.1", 443)]
    listening = ("-m", "http.server", str(LISTENS))
    options = ("--detach", "--rm", "--network", "host", "--entrypoint", "python")
    container = docker("run", *options, PROBE, *listening).strip()
    yield found
    docker("rm", "--force", container)


def view(federation: Stack, service: str, targets: dict[str, list[tuple[str, int]]]) -> View:
    """Look around from within a service's network."""
    flat = [(name, address) for name, addresses in targets.items() for address in addresses]
    network = f"container:{federation.container(service)}"
    seen = json.loads(python(LOOK, "--network", network, words=(json.dumps([address for _, address in flat]),)))
    reached: dict[str, str] = {}
    for (name, _), how in zip(flat, seen["reached"], strict=True):
        better = ("out of reach", "refused", "open")
        reached[name] = max(reached.get(name, "out of reach"), how, key=better.index)
    return View(reached=reached, way_out=seen["way out"], ipv6=bool(seen["IPv6"]))


FRONT = {"front:443": "open", "front:8404": "refused"}
HUB = {"rabbitmq:5671": "open", "rabbitmq:15671": "open", "aggregator:9999": "refused"}
SEEN = {
    "site-1": FRONT | {"site-1:9999": "refused"},
    "site-2": FRONT | {"site-2:9999": "refused"},
    "aggregator": FRONT | HUB,
    "minio": FRONT | {"minio:9000": "open"},
    # These two publish a port, so the machine itself is on a network with each: docs/containers.md.
    "rabbitmq": FRONT | HUB | {"the machine": "open"},
    "front": FRONT
    | HUB
    | {"minio:9000": "open", "the machine": "open", "front:8404": "refused"}
    | {f"{site}:9999": "refused" for site in SITES},
}


@pytest.mark.parametrize("service", SEEN)
def test_it_reaches_what_it_needs_and_nothing_else(
    federation: Stack, service: str, targets: dict[str, list[tuple[str, int]]], row: pytest.RecordProperty
) -> None:
    seen = view(federation, service, targets)
    reached = {name: how for name, how in seen.reached.items() if how != "out of reach"}
    row("open", ", ".join(name for name, how in reached.items() if how == "open"))
    row("out of reach", ", ".join(name for name, how in seen.reached.items() if how == "out of reach"))
    assert reached == SEEN[service]
    assert seen.way_out == (service in ("front", "rabbitmq"))
    assert not seen.ipv6


def test_a_site_finds_nobody_by_name_but_the_front_door(federation: Stack) -> None:
    names = ("broker.fledge.example", "store.fledge.example", "front", "site-2", "minio", "rabbitmq", "aggregator")
    code = (
        "import socket, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: socket.getaddrinfo(name, 443); print(name)\n"
        "    except OSError: pass\n"
    )
    network = f"container:{federation.container('site-1')}"
    assert python(code, "--network", network, words=names).split() == list(names[:3])


def test_the_front_door_passes_nothing_on_between_networks(federation: Stack) -> None:
    assert docker("exec", federation.container("front"), "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
