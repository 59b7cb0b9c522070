"""A private RabbitMQ node: own directories, own ports, own epmd; gone when the tests are.

It is Debian's own, or the one whose programs lie where RABBITMQ_BIN points.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.net.schemes import Connection
from broker.transport.base import Transport
from broker.transport.rabbitmq.transport import RabbitTransport
from deploy.servers.apply import Management, apply_topology
from deploy.servers.gitops import security_settings
from protocol.errors import TransportError
from protocol.topology import Topology
from tests.support.fault_proxy import FaultProxy
from tests.support.ports import free_ports
from tests.support.waiting import eventually

# The wrappers in /usr/sbin switch to the user rabbitmq; these scripts run as whoever calls them.
SYSTEM = Path("/usr/lib/rabbitmq/bin")
BIN = Path(os.environ.get("RABBITMQ_BIN") or SYSTEM)
INSTALL = "apt-get update && apt-get install -y --no-install-recommends rabbitmq-server"
USER, PASSWORD = "fledge", "s3cr:t/@word"
NEWER = Path("/var/tmp/fledge-debian")
"""Where `scripts/newer-debian.sh` unpacks a suite, each with a folder `bin`."""

# Outlives the test process: its standard input ends however that process ends, and then it cleans up.
_GUARDIAN = """
import contextlib, os, pathlib, shutil, signal, subprocess, sys
base, epmd_port, programs = sys.argv[1:]
sys.stdin.read()
with contextlib.suppress(FileNotFoundError, ProcessLookupError):
    os.killpg(int(pathlib.Path(base, "pgid").read_text()), signal.SIGKILL)
path = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
relaxed = {**os.environ, "PATH": path, "ERL_EPMD_RELAXED_COMMAND_CHECK": "true"}
subprocess.run(["env", "epmd", "-port", epmd_port, "-kill"], env=relaxed, capture_output=True)
shutil.rmtree(base, ignore_errors=True)
"""


def installed() -> bool:
    """Tell whether RabbitMQ is on this machine."""
    return (BIN / "rabbitmq-server").exists()


def release(programs: Path = BIN) -> str:
    """Which RabbitMQ it is, by its folder; asking its programs would start an epmd for all of the machine."""
    found = sorted(path.name.partition("-")[2] for path in (programs.parent / "lib").glob("rabbitmq_server-*"))
    return found[0] if found else "unknown"


def require_rabbit() -> None:
    """Skip when RabbitMQ is not installed; where everything has to be tested, or this one was asked for, fail."""
    if not installed():
        if BIN != SYSTEM:
            pytest.fail(
                f"RABBITMQ_BIN={BIN} holds no rabbitmq-server; unset it, or let it name a folder with rabbitmq-server,"
                f" rabbitmqctl and epmd, as {NEWER}/trixie/bin after scripts/newer-debian.sh trixie"
            )
        missing = f"RabbitMQ is not installed. Run: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


class RabbitNode:
    """One broker process group. `start` returns when it serves; `kill` is SIGKILL; data survive both."""

    def __init__(
        self,
        *,
        tls: Path | None = None,
        external_only: bool = False,
        programs: Path = BIN,
        settings: Sequence[str] = (),
    ) -> None:
        """Write the configuration; with `tls` (a folder with ca.pem, server.pem, server.key) client
        certificates are demanded on a second port, and with `external_only` they are the only login, as deployed;
        `settings` are further lines of it.

        Between `kill` and `start`, `programs` may become another version's.
        """
        self.programs = programs
        self.base = Path(tempfile.mkdtemp(prefix="fledge-rabbit-"))
        self.amqp_port, self.management_port, self.amqps_port, dist_port, self._epmd_port = free_ports(5)
        self.management_url = (
            f"http://{USER}:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@127.0.0.1:{self.management_port}"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = settings
        self._write_configuration(tls, external_only)
        self._env = self._environment(dist_port)
        self._guardian = subprocess.Popen(
            [sys.executable, "-c", _GUARDIAN, str(self.base), str(self._epmd_port), str(programs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self) -> None:
        """Start the broker and wait until it answers."""
        with (self.base / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [str(self.programs / "rabbitmq-server")],
                env=self._env,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (self.base / "pgid").write_text(str(self._process.pid))
        deadline = time.monotonic() + 120
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start: {(self.base / 'out').read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL the broker."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            (self.base / "pgid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End the broker in order, as before an upgrade."""
        self.control("shutdown")
        self.kill()

    def close(self) -> None:
        """Kill the broker and its epmd, and remove its files."""
        self.kill()
        self._guardian.communicate(timeout=30)

    def api(self, method: str, *path: str, body: Any = None) -> Any:
        """Call the management API as administrator."""
        with Management(self.management_url) as management:
            return management.call(method, *path, body=body)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl (slow: it boots an Erlang machine)."""
        done = subprocess.run(
            [str(self.programs / "rabbitmqctl"), "-q", *arguments],
            env=self._env,
            cwd=self.base,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def url(self, vhost: str, *, port: int | None = None, user: str = USER, password: str = PASSWORD) -> str:
        """Return the AMQP URL of a vhost, through another port (a proxy's) if given."""
        quoted = password.replace("/", "%2F").replace("@", "%40")
        return f"amqp://{user}:{quoted}@127.0.0.1:{port or self.amqp_port}/{vhost}"

    def _serves(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.amqp_port), 1).close()
            # Where the management plugin answers, every plugin is up.
            return bool(self.api("GET", "overview"))
        except (OSError, TransportError):
            return False

    def _write_configuration(self, tls: Path | None, external_only: bool) -> None:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.amqp_port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management_port}",
            "default_user_tags.administrator = true",
            "loopback_users = none",
            "vm_memory_high_watermark.absolute = 1GB",
            "disk_free_limit.absolute = 50MB",
            "log.console = false",
            "collect_statistics_interval = 1000",
            *self._settings,
        ]
        plugins = ["rabbitmq_management"]
        if tls is not None:
            plugins.append("rabbitmq_auth_mechanism_ssl")
            lines += [f"listeners.ssl.1 = 127.0.0.1:{self.amqps_port}", *security_settings(str(tls))]
            if not external_only:
                lines.append("auth_mechanisms.2 = PLAIN")
        (self.base / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.base / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (self.base / "advanced.config").write_text("[].\n")
        (self.base / "env.conf").write_text("")
        cookie = self.base / ".erlang.cookie"
        cookie.write_text("FLEDGETESTS")
        cookie.chmod(0o400)
        for folder in ("gen", "mnesia", "log", "schema"):
            (self.base / folder).mkdir()

    def _environment(self, dist_port: int) -> dict[str, str]:
        base = self.base
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return clean | {
            "HOME": str(base),
            # Not in rabbitmq.conf: from 4.0 on a colon in `default_pass` makes it a tagged, encrypted value.
            "RABBITMQ_DEFAULT_USER": USER,
            "RABBITMQ_DEFAULT_PASS": PASSWORD,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "true",
            "RABBITMQ_NODENAME": "fledge@localhost",
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_CONF_ENV_FILE": f"{base}/env.conf",
            "RABBITMQ_CONFIG_FILE": f"{base}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{base}/advanced.config",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{base}/gen",
            "RABBITMQ_MNESIA_BASE": f"{base}/mnesia",
            "RABBITMQ_MNESIA_DIR": f"{base}/mnesia/db",
            "RABBITMQ_LOG_BASE": f"{base}/log",
            "RABBITMQ_LOGS": f"{base}/log/rabbit.log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{base}/enabled_plugins",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{base}/feature_flags",
            "RABBITMQ_SCHEMA_DIR": f"{base}/schema",
            "RABBITMQ_PID_FILE": f"{base}/pid",
            # One busy-waiting scheduler per core would slow the tests down, not the broker up.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }


class RabbitVhost:
    """A vhost of its own on a node, with a fault proxy in front."""

    _numbers = itertools.count()

    def __init__(self, node: RabbitNode) -> None:
        self.node = node
        self.vhost = f"test-{os.getpid()}-{next(self._numbers)}"
        self.proxy = FaultProxy(node.amqp_port)
        self.handles: list[RabbitTransport] = []
        node.api("PUT", "vhosts", self.vhost, body={})

    def url(self, *, heartbeat: int = 30, user: str = USER, password: str = PASSWORD) -> str:
        """Return the vhost's URL through the proxy."""
        url = self.node.url(self.vhost, port=self.proxy.port, user=user, password=password)
        return f"{url}?heartbeat={heartbeat}"

    def open(self, url: str | None = None, *, dice: random.Random | None = None) -> Transport:
        """Open a handle; it is closed with the vhost."""
        self.handles.append(RabbitTransport(url or self.url(), Connection(name="test"), dice=dice))
        return self.handles[-1]

    def apply(self, topology: Topology) -> None:
        """Declare a topology with its limits."""
        apply_topology(self.node.management_url, self.vhost, topology)

    def await_durable(self, *queues: str) -> None:
        """Wait until new queues outlive a SIGKILL.

        Before 4.3 the table of their Raft members' names is written a little after the broker's answer; a queue that is
        not in it has no leader after the start, for ever.
        """
        (table,) = (self.node.base / "mnesia").glob("db/quorum/*/names.dets")
        names = [f"{self.vhost}_{queue}".encode() for queue in queues]
        eventually(lambda: all(name in table.read_bytes() for name in names), "the queues' names are on the disk")

    def close(self) -> None:
        """Close every handle and the proxy, and delete the vhost."""
        for handle in self.handles:
            handle.close()
        self.proxy.close()
        self.node.api("DELETE", "vhosts", self.vhost)
