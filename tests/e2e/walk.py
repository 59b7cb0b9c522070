"""A federation as hospitals join one: the hub's servers, everybody's kits, and programs as people start them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.program import Program, wait_for
from tests.support import command_line
from tests.support.connect_proxy import ConnectProxy
from tests.support.ports import free_ports
from tests.support.rabbit import RabbitNode
from tests.support.s3 import S3Server

ROOT = Path(__file__).resolve().parents[2]
EGRESS = ROOT / "tests" / "support" / "egress"
PROXY_LOGIN = ("west", "s3cr:t/@proxy")
PROJECT = """\
name: clinics
aggregator:
  org: centre
  address: localhost
  broker_port: {broker}
  store_port: {store}
  names: [broker.hub.example, store.hub.example]
sites:
  - {{name: north, org: north-hospital}}
  - {{name: south, org: south-hospital}}
  - {{name: west, org: west-hospital}}
{more}
organisations:
  north-hospital: [general, relaxed]
  south-hospital: [general, relaxed]
  west-hospital: [general, relaxed]
{rules}
operators:
  - {{name: lead, email: lead@hub.example, org: centre, roles: [super]}}
  - {{name: it-north, email: it@north.example, org: north-hospital, roles: [site_it]}}
"""
KIT = re.compile(r"^(\S+)\s+\S+\s+(\S+\.zip)\s+(\S+)", re.MULTILINE)


class Walk:
    """The hub's servers, everybody's unpacked kits, and their programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self.programs: dict[str, Program] = {}
        self.tls = folder / "tls"
        self.tls.mkdir()
        self.node = RabbitNode(tls=self.tls, external_only=True)
        [self.store_port] = free_ports(1)
        self.provisioner = folder / "provisioner"
        self.said: list[str] = []
        """Everything operators were answered."""
        self.store: S3Server | None = None
        self.proxy: ConnectProxy | None = None

    # ---- commands

    def fledge(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run one command as a person would, and return what it printed."""
        done = command_line.fledge(*arguments, cwd=self.folder, **{"COLUMNS": "250", **environment})
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def ctl(self, *arguments: str, code: int = 0, by: str = "lead") -> list[dict[str, Any]]:
        """Give an order and return the answers."""
        said = self.fledge("ctl", "--kit", str(self.kit(by)), *arguments, "--json", code=code)
        self.said.append(said)
        answers: list[dict[str, Any]] = json.loads(said)["answers"]
        return answers

    def provision(self, more: str = "", rules: str = "") -> None:
        """Make the kits that are new, and unpack each with its password."""
        project = PROJECT.format(broker=self.node.amqps_port, store=self.store_port, more=more, rules=rules)
        (self.folder / "project.yml").write_text(project)
        self.unpack(self.fledge("provision", "project.yml", "-o", str(self.provisioner)))

    def unpack(self, printed: str) -> None:
        for name, path, password in KIT.findall(printed):
            secret = self.folder / f"{name}.password"
            secret.write_text(password)
            self.fledge("kit", path, "-o", str(self.kit(name)), "--password-file", str(secret))

    def kit(self, name: str) -> Path:
        return self.folder / "kits" / name

    def deploy(self) -> None:
        """Bring the broker to what the registry says."""
        hub = self.kit("aggregator")
        registry = (
            "--registry",
            str(self.provisioner / "registry.bin"),
            "--root",
            self.root(),
            "--federation",
            "clinics",
        )
        vhost = ("--vhost", "clinics")
        self.fledge("deploy", "broker", *registry, *vhost, FLEDGE_MANAGEMENT=self.node.management_url)
        assert hub.is_dir()

    def root(self) -> str:
        text = (self.kit("aggregator") / "aggregator.toml").read_text()
        found = re.search(r'^root = "([0-9a-f]{64})"', text, re.MULTILINE)
        assert found is not None
        return found.group(1)

    # ---- servers and programs

    def identities(self) -> list[tuple[str, str]]:
        """Everybody the store has to know."""
        listed = json.loads((self.provisioner / "store.json").read_text())["identities"]
        return [(each["access_key"], each["secret_key"]) for each in listed]

    def found(self) -> None:
        """From a project file to a hub that waits for sites."""
        self.provision()
        self.serve()
        self.deploy()
        self.start("aggregator", "aggregator", "--config", str(self.kit("aggregator") / "aggregator.toml"))

    def serve(self) -> None:
        """Start broker and store with the certificates of the hub's kit."""
        servers = self.kit("aggregator") / "servers"
        shutil.copy(self.kit("aggregator") / "tls" / "ca.pem", self.tls / "ca.pem")
        for suffix in ("pem", "key"):
            shutil.copy(servers / f"broker.{suffix}", self.tls / f"server.{suffix}")
        self.node.start()
        certificate = (servers / "store.pem", servers / "store.key")
        objects = self.folder / "objects"
        (objects / "clinics").mkdir(parents=True)
        self.store = S3Server(
            objects, self.folder / "s3.log", tls=certificate, port=self.store_port, keys=self.identities()
        )
        routes = {
            "broker.hub.example:443": ("127.0.0.1", self.node.amqps_port),
            "store.hub.example:443": ("127.0.0.1", self.store_port),
        }
        self.proxy = ConnectProxy(routes, login=PROXY_LOGIN)

    def change(self, site: str, *pairs: tuple[str, str], options: str) -> None:
        """Edit a site's worker.toml as its own people would."""
        path = self.kit(site) / "worker.toml"
        text = path.read_text()
        for old, new in pairs:
            text, count = re.subn(old, new, text, count=1, flags=re.MULTILINE)
            assert count == 1, (old, text)
        path.write_text(text + f"\n[options]\n{options}\n")

    def start(self, name: str, *command: str) -> None:
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if name == "aggregator":
            environment["FLEDGE_MANAGEMENT"] = self.node.management_url
        if name == "west":  # whose firewall lets it reach its proxy and nothing else
            assert self.proxy is not None
            environment["PYTHONPATH"] = f"{EGRESS}{os.pathsep}{ROOT}"
            environment["ONLY_EGRESS"] = f"127.0.0.1:{self.proxy.port}"
            environment["EGRESS_REFUSED"] = str(self.folder / "refused")
        full = [sys.executable, "-m", "fledge.cli", "--json-logs", *command]
        self.programs[name] = Program(name, full, self.folder / f"{name}.log", environment, self.changed)
        self.programs[name].start()

    def wait(self, done: Callable[[], bool], what: str, seconds: float = 60) -> None:
        def told() -> str:
            tails = [f"{name}: {program.strange[-5:]} {program.events[-4:]}" for name, program in self.programs.items()]
            return what + "\n" + "\n".join(tails)

        wait_for(self.changed, done, told, seconds)

    def versions(self) -> int:
        return self.programs["aggregator"].count("version.committed")

    def grow(self, by: int = 3) -> None:
        """Wait until the run has got on."""
        goal = self.versions() + by
        self.wait(lambda: self.versions() >= goal, f"version {goal}")

    def merged(self, site: str) -> int:
        return self.programs[site].count("update.settled", outcome="merged")

    def close(self) -> None:
        """End everything; once more is no harm."""
        for program in self.programs.values():
            program.stop(15)
        proxy, self.proxy = self.proxy, None
        if proxy is not None:
            proxy.close()
        store, self.store = self.store, None
        if store is not None:
            store.stop()
        self.node.close()


def join(walk: Walk, site: str) -> None:
    """Start a site; its health is red until the hub has answered it, then green."""
    walk.fledge("healthcheck", "--kit", str(walk.kit(site)), code=1)
    walk.start(site, "worker", "--kit", str(walk.kit(site)))
    walk.wait(lambda: walk.programs[site].count("worker.accepted") > 0, f"{site} is accepted by the hub")
    walk.fledge("healthcheck", "--kit", str(walk.kit(site)))
