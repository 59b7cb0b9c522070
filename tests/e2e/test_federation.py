"""A federation as hospitals join one: kits, mutual TLS, least privilege, one site behind a proxy, one without
credentials for the store, orders from an operator's laptop, a site cut off in mid-run and another one added."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.health import site_health
from fledge.inferring import SiteModels
from tests.e2e.program import Program, wait_for
from tests.support.connect_proxy import ConnectProxy
from tests.support.rabbit import RabbitNode, free_ports
from tests.support.rabbit_fixtures import require_rabbit
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]
EGRESS = ROOT / "tests" / "support" / "egress"
RUN = "walk"
CANARY = "MEIER^HANS-1957"
"""A patient's name in a path of one site, which nobody else may ever see."""
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
        done = subprocess.run(
            [sys.executable, "-m", "fledge.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "250", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
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
        for program in self.programs.values():
            program.stop(15)
        if self.proxy is not None:
            self.proxy.close()
        if self.store is not None:
            self.store.stop()
        self.node.close()


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    require_rabbit()
    walk = Walk(tmp_path)
    try:
        yield walk
    finally:
        walk.close()


def found(walk: Walk) -> None:
    """From a project file to three sites that the hub has accepted; nothing is trained yet."""
    walk.provision()
    walk.serve()
    walk.deploy()
    walk.start("aggregator", "aggregator", "--config", str(walk.kit("aggregator") / "aggregator.toml"))
    quoted = "west:s3cr%3At%2F%40proxy"
    walk.change("north", ("^state = .*$", f'state = "{CANARY}"'), options="site = 0\nseconds = 0.1")
    walk.change("south", ("^access = .*$", 'access = "presigned"'), options="site = 1\nseconds = 0.1")
    (walk.kit("south") / "credentials.toml").unlink()
    assert walk.proxy is not None
    walk.change(
        "west",
        (r"^broker = .*$", 'broker = "amqps://broker.hub.example:443/clinics"'),
        (r"^store = .*$", 'store = "s3s://store.hub.example:443/clinics"'),
        (r"^# proxy = .*$", f'proxy = "http://{quoted}@127.0.0.1:{walk.proxy.port}"'),
        options="site = 2\nseconds = 0.1",
    )
    for site in ("north", "south", "west"):
        join(walk, site)


def bring(walk: Walk) -> str:
    """A researcher brings a run with its code, sites take it over, it starts; returns the code's digest."""
    code = walk.folder / "code"
    code.mkdir()
    shutil.copy(ROOT / "tests" / "e2e" / "trainers.py", code / "trainer.py")
    run = walk.folder / RUN
    walk.fledge("init-run", "--code", str(code), "-o", str(run), "--option", "elements=4096")
    settings = (run / "run.toml").read_text()
    for old, new in (
        ("^heartbeat = .*$", "heartbeat = 2.0"),
        ("^# max_wait = .*$", "max_wait = 3.0"),
        (r"^\[strategy\]$", "[strategy]\nbuffer = 2"),
    ):
        settings, count = re.subn(old, new, settings, count=1, flags=re.MULTILINE)
        assert count == 1, (old, settings)
    (run / "run.toml").write_text(settings)
    [created] = walk.ctl("run", "create", str(run))
    digest: str = created["values"]["code"]
    deployed = walk.ctl("run", "deploy", RUN)
    assert {answer["sender"] for answer in deployed if answer["ok"]} == {"north", "south", "west"}
    assert all(answer["values"]["code"] == digest for answer in deployed)
    [listed] = walk.ctl("run", "list")
    assert (listed["values"]["run"], listed["values"]["state"]) == ([RUN], ["created"])
    assert not walk.programs["north"].count("training.started")
    assert walk.ctl("run", "start", RUN)[0]["ok"]
    return digest


def steer(walk: Walk) -> None:
    """A run is aborted and goes on; one site leaves it and joins it again; strangers to it are refused."""
    assert walk.ctl("run", "abort", RUN, "--yes")[0]["ok"]
    ended = walk.versions()
    [listed] = walk.ctl("run", "list")
    assert listed["values"]["state"] == ["aborted"]
    assert walk.ctl("run", "resume", RUN)[0]["ok"]
    walk.grow()
    assert walk.versions() > ended
    assert walk.ctl("run", "leave", RUN, "north", "--yes")[0]["ok"]
    walk.wait(lambda: "left" in str(walk.ctl("status")[0]["values"]["trouble"]), "north shows that it left the run")
    assert walk.ctl("run", "join", RUN, "north")[0]["ok"]
    [refused] = walk.ctl("run", "deploy", RUN, "south", by="it-north", code=1)
    assert refused["reason"] == "not_authorized"
    merged = walk.merged("north")
    walk.wait(lambda: walk.merged("north") > merged, "north contributes again")


def take_models(walk: Walk) -> None:
    """The model leaves as a file, the same from hub and laptop; a published one is found again by its channel."""
    hub = walk.kit("aggregator") / "aggregator.toml"
    at_hub, exported, pulled = (walk.folder / f"{name}.safetensors" for name in ("hub", "exported", "pulled"))
    said = walk.fledge("export", str(at_hub), "--config", str(hub), "--run", RUN)
    assert "version" in said
    assert at_hub.stat().st_size > 4096 * 4
    walk.ctl("model", "export", RUN, "-o", str(exported))
    assert exported.read_bytes() == at_hub.read_bytes()
    walk.ctl("model", "publish", RUN, "--name", "walk-model", "--application", "walking", "--label", "test")
    walk.ctl("model", "promote", "walk-model", "production")
    [found] = walk.ctl("model", "search", "--channel", "production")
    assert found["values"]["name"] == ["walk-model"]
    walk.ctl("model", "pull", "production", "-o", str(pulled))
    assert pulled.read_bytes() == at_hub.read_bytes()
    assert "all the same bytes" in walk.fledge("replay", "--config", str(hub), "--run", RUN)


def hold_models(walk: Walk) -> None:
    """A site that took part has the last version in its hands, and can read it without anybody, by URLs or not."""
    [listed] = walk.ctl("run", "list")
    [last] = listed["values"]["version"]
    for site in ("north", "south"):
        walk.wait(lambda site=site: walk.programs[site].count("model.kept", version=last) > 0, f"{site} has {last}")
        assert f"version {last}" in walk.fledge("site", "models", "--kit", str(walk.kit(site)))
        models = SiteModels(walk.kit(site) / "worker.toml")
        kept = models.version(RUN, "global")
        model, spec = models.opened(kept)
        assert kept.version == last
        sizes = {name: array.shape for name, array in models.weights(kept, model, spec, frozenset()).tensors()}
        assert sizes == {tensor.name: tensor.shape for tensor in spec.tensors}


def join(walk: Walk, site: str) -> None:
    """Start a site; its health is red until the hub has answered it, then green."""
    walk.fledge("healthcheck", "--kit", str(walk.kit(site)), code=1)
    walk.start(site, "worker", "--kit", str(walk.kit(site)))
    walk.wait(lambda: walk.programs[site].count("worker.accepted") > 0, f"{site} is accepted by the hub")
    walk.fledge("healthcheck", "--kit", str(walk.kit(site)))


def health(walk: Walk, site: str) -> str:
    """Why a site is not healthy; empty if it is."""
    return site_health(walk.kit(site)).text


def renew(walk: Walk) -> None:
    """Put renewed certificates over the old ones, then let the broker end every connection."""
    walk.fledge("provision", "--renew", "-o", str(walk.provisioner))
    names = ("aggregator", "north", "south", "west")
    for name in names:
        [renewed] = (walk.provisioner / "renewed" / name).rglob("client.pem")
        shutil.copy(renewed, walk.kit(name) / "tls" / "client.pem")
    old = {each["name"] for each in walk.node.api("GET", "connections")}
    for connection in old:
        walk.node.api("DELETE", "connections", connection)

    def back() -> bool:
        users = {each.get("user") for each in walk.node.api("GET", "connections") if each["name"] not in old}
        return users >= set(names)

    walk.wait(back, "everybody is connected again")


def add_a_fourth(walk: Walk, digest: str) -> None:
    """A fourth site makes its own keys, joins and contributes; nobody else's files change."""
    code = re.search(
        r"([0-9a-z]{4,}(?:-[0-9a-z]{4,})+)",
        walk.fledge("enrol", "east", "--federation", "clinics", "-o", str(walk.folder / "east")),
    )
    assert code is not None
    before = {
        path: path.read_bytes() for path in walk.kit("north").rglob("*") if path.suffix in (".bin", ".toml", ".pem")
    }
    walk.provision("  - {name: east, org: east-hospital, enrol: true}", "  east-hospital: [general, relaxed]")
    secret = walk.folder / "east.code"
    secret.write_text(code.group(1))
    [request] = (walk.folder / "east").glob("*.request")
    accepted = walk.fledge(
        "provision", "--accept", str(request), "--code-file", str(secret), "-o", str(walk.provisioner)
    )
    [(_, kit, password)] = KIT.findall(accepted)
    secret.write_text(password)
    walk.fledge("enrol", "--finish", kit, str(walk.folder / "east"), "--password-file", str(secret))
    shutil.copytree(walk.folder / "east", walk.kit("east"))
    walk.deploy()
    assert walk.store is not None
    walk.store.keys = walk.identities()
    walk.store.restart()
    walk.ctl("registry", "put", str(walk.provisioner / "registry.bin"))
    walk.change("east", options="site = 3\nseconds = 0.1")
    join(walk, "east")
    [deployed] = walk.ctl("run", "deploy", RUN, "east")
    assert deployed["values"]["code"] == digest
    walk.wait(lambda: walk.merged("east") > 0, "east contributes")
    assert {path: path.read_bytes() for path in before} == before


def test_a_federation_from_kits_to_an_exported_model(walk: Walk) -> None:
    found(walk)
    digest = bring(walk)
    walk.wait(lambda: all(walk.merged(site) > 0 for site in ("north", "south", "west")), "every site contributes")
    assert walk.proxy is not None
    assert {asked.target for asked in walk.proxy.asked} == {"broker.hub.example:443", "store.hub.example:443"}
    assert not (walk.folder / "refused").exists()

    # An operator watches and steers; one without the right is refused, and the ledger shows it.
    [status] = walk.ctl("status")
    assert status["values"]["site"] == ["north", "south", "west"]
    assert walk.ctl("run", "pause")[0]["ok"]
    [refused] = walk.ctl("run", "resume", by="it-north", code=1)
    assert refused["reason"] == "not_authorized"
    assert walk.ctl("run", "resume")[0]["ok"]
    walk.grow()
    assert any("it-north" in entry for entry in walk.ctl("audit", "log", "--kind", "command")[0]["values"]["entry"])
    [doctor] = walk.ctl("site", "doctor", "north", by="it-north")
    assert "blocked" not in doctor["values"]["verdict"]
    [lines] = walk.ctl("logs", "north", by="it-north")
    assert any("update.settled" in line for line in lines["values"]["lines"])
    for question in (("file", "ls"), ("file", "pwd"), ("file", "env"), ("sys", "info")):
        walk.ctl(*question, "north", by="it-north")
    [drained] = walk.ctl("site", "drain", "north", by="it-north")
    assert drained["ok"]
    assert walk.ctl("site", "undrain", "north", by="it-north")[0]["ok"]

    steer(walk)

    # Certificates are renewed while everything runs: whoever connects again shows the new one, and nobody is restarted.
    renew(walk)
    walk.grow()
    assert not [program.deaths for program in walk.programs.values() if program.deaths]

    # One site is cut off by an operator's word alone, in seconds; the root's signature follows; the run goes on.
    began = time.monotonic()
    assert walk.ctl("site", "revoke", "west", "--yes")[0]["ok"]
    walk.wait(lambda: walk.programs["aggregator"].count("site.cut_off", site="west") > 0, "west is cut off", 5)
    assert time.monotonic() - began < 5
    users = {user["name"] for user in walk.node.api("GET", "users")}
    assert "west" not in users
    # Either by the hub's own word, which may have reached it just before, or because the broker lets it in no more.
    walk.wait(lambda: "revoked" in health(walk, "west"), "west's health is red", 30)
    walk.programs["west"].stop(15)
    walk.fledge("provision", "--revoke", "west", "-o", str(walk.provisioner))
    walk.ctl("registry", "put", str(walk.provisioner / "registry.bin"))
    walk.grow()

    add_a_fourth(walk, digest)

    # The run ends by order, and the model is exported.
    assert walk.ctl("run", "stop", "--yes")[0]["ok"]
    take_models(walk)
    hold_models(walk)

    # What is private at a site was seen by nobody.
    assert (walk.kit("north") / CANARY / "worker.db").is_file()
    hub_log = (walk.folder / "aggregator.log").read_text()
    assert not [said for said in [*walk.said, hub_log] if CANARY in said or "MEIER" in said]
    keys = subprocess.run(["grep", "-rlF", "MEIER", str(walk.folder / "objects")], capture_output=True, check=False)
    assert keys.stdout == b""
