"""The work of the images and of the compose file, done without an engine: as an ordinary user, in an empty directory.

`install.sh` builds what an image holds; `demo-setup.sh` makes the federation; RabbitMQ and HAProxy run with the very
settings that the containers mount; aggregator and sites are started by the images' own commands and asked by their
own healthchecks. Only the ports are others, so sites come in by a CONNECT proxy that knows where 443 is here.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

from deploy.servers.apply import Management
from protocol.errors import TransportError
from tests.e2e.program import KILLED
from tests.support.compose import DOCKER, ROOT, Stage, context, services, stages
from tests.support.connect_proxy import ConnectProxy
from tests.support.mirror import Mirror
from tests.support.ports import free_ports
from tests.support.rabbit import RabbitNode, require_rabbit
from tests.support.seaweed import compose_command, remove_sockets, require_seaweed, weed

pytestmark = pytest.mark.servers

USER = 10001
SITE = "site-1"
_PROBE = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != {})"
_HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")


def missing(what: str) -> NoReturn:
    """Skip; where everything has to be tested, fail."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Somebody:
    """An ordinary user of this machine, with a directory of their own."""

    home: Path
    python: str
    prefix: tuple[str, ...]
    """What makes a command theirs; nothing if the tests are run by an ordinary user anyhow."""

    def start(self, *command: str, within: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command of theirs."""
        with log.open("ab") as out:
            return subprocess.Popen(
                [*self.prefix, *command],
                cwd=within,
                env=self.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command: str, within: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of theirs to its end."""
        return subprocess.run(
            [*self.prefix, *command],
            cwd=within,
            env=self.environment(environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the tests' own environment but what leads pip and TLS to the outside."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT"))}
        path = f"{self.home}/env/bin:/usr/bin:/bin"
        return kept | {"PATH": path, "HOME": str(self.home), "TMPDIR": str(self.home), "LANG": "C.UTF-8", **more}

    def make(self, *names: str) -> Path:
        """Empty directories of theirs; returns the first."""
        for name in names:
            path = self.home / name
            path.mkdir(mode=0o750)
            if os.geteuid() == 0:
                os.chown(path, USER, USER)
        return self.home / names[0]


@pytest.fixture(scope="module")
def somebody() -> Iterator[Somebody]:
    """Somebody who owns an empty directory and nothing else."""
    # Not below pytest's own folder, which nobody else may enter.
    home = Path(tempfile.mkdtemp(prefix="fledge-image-"))
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            missing("setpriv is not installed")
        home.chmod(0o755)
        os.chown(home, USER, USER)
        # As the compose file has it: no capabilities and no way to gain any. And none outlives the tests.
        bare = ("--clear-groups", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL")
        prefix = (setpriv, f"--reuid={USER}", f"--regid={USER}", *bare, "--")
    try:
        yield Somebody(home=home, python=_their_python(prefix, home), prefix=prefix)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _their_python(prefix: tuple[str, ...], home: Path) -> str:
    """A Python of our version that they can run: ours may lie where nobody else may look."""
    version = sys.version_info[:2]
    ours = Path(sys.base_prefix, "bin", f"python{version[0]}.{version[1]}")
    for python in (str(ours), f"/usr/bin/python{version[0]}.{version[1]}", "/usr/bin/python3"):
        # By way of env, because setpriv itself may still go where they may not.
        probe = [*prefix, "env", python, "-c", _PROBE.format(version)]
        if subprocess.run(probe, cwd=home, capture_output=True, check=False).returncode == 0:
            return python
    missing(f"an ordinary user has no Python {version[0]}.{version[1]} with venv here")


@pytest.fixture(scope="module")
def source(somebody: Somebody) -> Path:
    """What `COPY . .` brings into an image."""
    folder = somebody.make("src")
    for name in context():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    return folder


def install(somebody: Somebody, source: Path, target: Path, *parts: str) -> None:
    """Do the work of an image."""
    script = str(source / "deploy/docker/install.sh")
    for part in parts:
        done = somebody.run("sh", script, part, str(target), within=somebody.home, PYTHON=somebody.python)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("entrypoint", "healthy"):
        shutil.copy(source / f"deploy/docker/{name}.sh", target / f"bin/fledge-{name}")
        (target / f"bin/fledge-{name}").chmod(0o755)
    shown = somebody.run(str(target / "bin/fledge"), "--version", within=somebody.home)
    assert shown.stdout.startswith("fledge "), shown.stderr


@pytest.fixture(scope="module")
def image(somebody: Somebody, source: Path) -> Path:
    """The environment of the images, but that what fledge needs is taken from the tests' own, which saves minutes."""
    env = somebody.home / "env"
    somebody.make("env")
    subprocess.run([*somebody.prefix, somebody.python, "-m", "venv", str(env)], cwd=somebody.home, check=True)
    (site,) = (env / "lib").glob("python*/site-packages")
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install(somebody, source, env, "code")
    return env


class Broker(RabbitNode):
    """RabbitMQ with the settings that the container mounts; only ports and folders are others."""

    def __init__(self, files: Path) -> None:
        """`files` is what the container finds in /etc/fledge."""
        self._files = files
        super().__init__()
        login = re.findall(r"default_(?:user|pass) = (\S+)", (files / "admin.conf").read_text())
        self.management_url = f"https://{login[0]}:{login[1]}@localhost:{self.management_port}"

    def _write_configuration(self, *_: Any) -> None:
        super()._write_configuration(None, False)
        settings = (DOCKER / "rabbitmq.conf").read_text()
        for there, here in (
            ("/etc/fledge", str(self._files)),
            ("default = 5671", f"default = {self.amqps_port}"),
            ("ssl.port = 15671", f"ssl.port = {self.management_port}"),
            ("2GB", "50MB"),
        ):
            assert there in settings
            settings = settings.replace(there, here)
        (self.base / "rabbitmq.conf").write_text(settings)
        shutil.copy(DOCKER / "enabled_plugins", self.base / "enabled_plugins")

    def _environment(self, dist_port: int) -> dict[str, str]:
        more = services()["rabbitmq"]["environment"]["RABBITMQ_CONFIG_FILES"]
        ours = super()._environment(dist_port)
        del ours["RABBITMQ_DEFAULT_USER"], ours["RABBITMQ_DEFAULT_PASS"]  # the login is that of admin.conf
        return ours | {"RABBITMQ_CONFIG_FILES": more.replace("/etc/fledge", str(self._files))}

    def api(self, method: str, *path: str, body: Any = None) -> Any:
        """Call the management API, which speaks TLS here."""
        with Management(self.management_url, ca=str(self._files / "ca.pem")) as management:
            return management.call(method, *path, body=body)

    def _serves(self) -> bool:
        try:
            return bool(self.api("GET", "overview"))
        except TransportError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """The containers of the compose file, as processes."""

    somebody: Somebody
    broker: Broker
    front_port: int
    outside: ConnectProxy
    """The only way out that a site has."""

    def container(self, service: str) -> tuple[Stage, Path, dict[str, str]]:
        """The image a service runs, the directory it works in, and its environment."""
        target = services()[service]["build"]["target"]
        place = "hub" if target == "hub" else service
        proxy = f"http://127.0.0.1:{self.outside.port}"
        return stages()[target], self.somebody.home / place / "kit", {"HTTPS_PROXY": proxy}

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Start a service by the command of the compose file or else the image's.

        Without the image's entrypoint, which `tests/unit/deploy/docker` tries: it would outlive these tests.
        """
        stage, within, environment = self.container(service)
        command = services()[service].get("command", " ".join(stage.command)).split()
        log = self.somebody.home / f"{service}.log"
        return self.somebody.start("fledge", *command, within=within, log=log, **environment)

    def healthy(self, service: str) -> tuple[bool, str]:
        """Ask a service by its image's healthcheck; the compose file has the same."""
        stage, within, environment = self.container(service)
        done = self.somebody.run(*stage.healthcheck, within=within, **environment)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode == 0, done.stdout + done.stderr

    def log(self, service: str) -> str:
        """What a service has said."""
        return (self.somebody.home / f"{service}.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def kits(somebody: Somebody, source: Path, image: Path) -> Path:
    """What the setup made, each container's volume a folder."""
    names = [line.split(":")[0] for line in services()["setup"]["volumes"]]
    somebody.make(*names)
    assert image == somebody.home / "env"
    script = str(source / "deploy/docker/demo-setup.sh")
    done = somebody.run("sh", script, within=somebody.home, FLEDGE_DEMO_SECONDS="0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    return somebody.home


@pytest.fixture(scope="module")
def federation(somebody: Somebody, kits: Path) -> Iterator[Federation]:
    """RabbitMQ, SeaweedFS and the front door; the broker knows the federation, but nobody is there yet."""
    require_rabbit()
    require_seaweed()
    if _HAPROXY is None:
        missing("HAProxy is not installed. Run: apt-get install -y --no-install-recommends haproxy")
    front_port, store_port, health_port = free_ports(3)
    with ExitStack() as stack:
        broker = Broker(kits / "broker")
        stack.callback(broker.close)
        broker.start()
        objects = somebody.make("objects")
        program = str(shutil.copy(weed(), kits))  # ours may lie where nobody else may look
        options = compose_command(objects, kits / "store/identities.json", store_port)
        store = somebody.start(program, *options, within=kits, log=kits / "store.log")
        stack.callback(remove_sockets, options)
        stack.callback(_kill, store)
        front = somebody.start(
            *(_HAPROXY, "-db", "-f", str(kits / "src/deploy/docker/front.cfg")),
            within=kits,
            log=kits / "front.log",
            FLEDGE_FRONT_FILES=str(kits / "front"),
            FLEDGE_FRONT_BIND=f"127.0.0.1:{front_port}",
            FLEDGE_FRONT_INNER=f"abns@fledge-{front_port}",
            FLEDGE_FRONT_HEALTH=f"127.0.0.1:{health_port}",
            FLEDGE_BROKER_SERVER=f"127.0.0.1:{broker.amqps_port}",
            FLEDGE_STORE_SERVER=f"127.0.0.1:{store_port}",
        )
        stack.callback(_end, front)
        _await_answer(f"http://127.0.0.1:{store_port}/healthz", store, kits / "store.log")
        names = services()["front"]["networks"][SITE]["aliases"]
        outside = ConnectProxy({f"{name}:443": ("127.0.0.1", front_port) for name in names})
        stack.callback(outside.close)
        url = urlsplit(services()["front"]["healthcheck"]["test"][-1])._replace(netloc=f"127.0.0.1:{health_port}")
        _await_answer(url.geturl(), front, kits / "front.log")
        yield Federation(somebody=somebody, broker=broker, front_port=front_port, outside=outside)


def _await_answer(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Ask a server by the compose file's healthcheck until it serves."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert server.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SeaweedFS takes a minute over a good end."""
    process.kill()
    process.wait()


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return KILLED


def _await(federation: Federation, service: str, *, healthy: bool, timeout: float = 40.0) -> str:
    """Ask until the answer is the wanted one, as an engine does."""
    deadline = time.monotonic() + timeout
    while True:
        found, said = federation.healthy(service)
        if found == healthy:
            return said
        assert time.monotonic() < deadline, said + federation.log(service)[-3000:]
        time.sleep(0.2)


@pytest.mark.long
def test_an_image_holds_everything_that_a_hub_needs(somebody: Somebody, source: Path) -> None:
    install(somebody, source, somebody.home / "whole", "needs", "code")
    needed = (
        *("aggregator.service.service", "broker.transport.rabbitmq.transport", "broker.blobs.s3.store"),
        *("deploy.provision.provisioning", "fledge.bootstrap", "fledge.cli.app"),
    )
    tried = f"import {', '.join(needed)}"
    python = str(somebody.home / "whole/bin/python")
    done = somebody.run(python, "-c", tried, within=somebody.home)
    assert done.returncode == 0, done.stderr
    missing = somebody.run(python, "-c", "import torch", within=somebody.home)
    assert missing.returncode == 1


@pytest.mark.long
def test_a_mirror_is_believed_if_its_authority_lies_in_the_folder_for_it(
    somebody: Somebody, source: Path, tmp_path: Path
) -> None:
    mirror = Mirror(tmp_path)
    script = str(source / "deploy/docker/install.sh")
    alone = {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}

    def install_from_it() -> None:
        done = somebody.run(
            *("sh", script, "needs", str(somebody.home / "mirrored")),
            within=somebody.home,
            PYTHON=somebody.python,
            PIP_INDEX_URL=mirror.url,
            **alone,
        )
        assert done.returncode != 0  # it has nothing

    place = source / "deploy/docker/ca"
    try:
        install_from_it()
        assert mirror.asked == []
        place.mkdir()
        (place / "mirror.crt").write_bytes(mirror.authority.read_bytes())
        install_from_it()
        assert mirror.asked
    finally:
        mirror.close()
        shutil.rmtree(place, ignore_errors=True)


def test_what_setup_made_belongs_to_its_owner_or_to_the_servers_group(kits: Path) -> None:
    for volume in ("hub", SITE, "operator", "provisioner"):
        assert {path.stat().st_mode & 0o077 for path in (kits / volume).rglob("*")} == {0}, volume
    for volume in ("broker", "front", "store"):
        assert {path.stat().st_mode & 0o777 for path in (kits / volume).rglob("*")} == {0o640}, volume
    assert not list(kits.glob("*/kit/servers"))


def test_setup_does_nothing_the_second_time(somebody: Somebody, kits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (kits / "hub").rglob("*")}
    script = str(kits / "src/deploy/docker/demo-setup.sh")
    assert somebody.run("sh", script, within=kits).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (kits / "hub").rglob("*")} == before


def _await_log(federation: Federation, service: str, event: str) -> None:
    """Wait until a service says something."""
    deadline = time.monotonic() + 30
    while f'"{event}"' not in federation.log(service):
        assert time.monotonic() < deadline, federation.log(service)[-3000:]
        time.sleep(0.1)


def said_by(federation: Federation, name: str, context: ssl.SSLContext) -> bytes:
    """What the front door answers to an HTTP request under a name; nothing where it hangs up without a word."""
    try:
        with (
            socket.create_connection(("127.0.0.1", federation.front_port), 10) as plain,
            context.wrap_socket(plain, server_hostname=name) as line,
        ):
            line.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return line.recv(64)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_the_front_door_answers_members_under_the_right_name_by_tls_1_3(federation: Federation) -> None:
    tls = federation.somebody.home / SITE / "kit/tls"
    stranger = ssl.create_default_context(cafile=tls / "ca.pem")
    member = ssl.create_default_context(cafile=tls / "ca.pem")
    member.load_cert_chain(tls / "client.pem", tls / "client.key")
    store, broker = (f"{what}.fledge.example" for what in ("store", "broker"))
    assert said_by(federation, store, member).startswith(b"HTTP/1.1 ")
    assert said_by(federation, store, stranger) == b""
    assert said_by(federation, broker, member).startswith(b"AMQP")  # what it says to anything but AMQP
    assert said_by(federation, broker, stranger) == b""
    assert said_by(federation, "other.fledge.example", member) == b""
    member.maximum_version = ssl.TLSVersion.TLSv1_2
    assert said_by(federation, store, member) == b""
    assert said_by(federation, broker, member) == b""


def test_health_is_red_until_the_hub_has_accepted_and_green_then(federation: Federation) -> None:
    kit = federation.somebody.home / "hub/kit"
    url = federation.broker.management_url
    command = ("fledge", *services()["deploy"]["command"].split())
    done = federation.somebody.run(*command, within=kit, FLEDGE_MANAGEMENT=url)
    assert done.returncode == 0, done.stderr

    assert not federation.healthy(SITE)[0]  # it was never started
    site = federation.start(SITE)
    try:
        _await_log(federation, SITE, "worker.started")
        assert not federation.healthy(SITE)[0]  # it runs, but there is no hub
        assert not federation.healthy("aggregator")[0]
        hub = federation.start("aggregator")
        try:
            _await(federation, "aggregator", healthy=True)
            _await(federation, SITE, healthy=True)
            console = services()["ctl"]["entrypoint"]
            place = federation.somebody.home / "operator/kit"
            asked = federation.somebody.run(*console, "status", within=place, **federation.container(SITE)[2])
            assert asked.returncode == 0, asked.stdout + asked.stderr
            assert SITE in asked.stdout
            _await_log(federation, "aggregator", "update.validated")  # its tensors came by way of the store
        finally:
            assert _end(hub) == 0, federation.log("aggregator")[-3000:]
    finally:
        assert _end(site) == 0, federation.log(SITE)[-3000:]
    assert not federation.healthy(SITE)[0]  # it has ended
    assert federation.outside.targets == {"broker.fledge.example:443", "store.fledge.example:443"}
