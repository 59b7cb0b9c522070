"""The job with Flower: a SuperLink, a SuperNode for each site, and the processes that they start for the app.

    python3 -m venv ../flower && ../flower/bin/pip install "flwr==1.42.0"
    ../flower/bin/python -m benchmarks.peers.flower_job --size-mb 100

Flower's defaults: messages go over HTTP in chunks of 5 MiB, the SuperLink keeps them in memory, every app runs in a
process of its own. Without TLS, without evaluation, and the server does not write the model to the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers.measure import Figures, Job, Watch, installed, table

_ROOT = Path(__file__).parents[2]
_APP = """\
[project]
name = "noise"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "noise.flower_app:server"
clientapp = "noise.flower_app:client"

[tool.flwr.app.config]
size-mb = {size_mb}
sites = {sites}
versions = {versions}
result = "{result}"
"""
_CONNECTION = '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'


def write_app(folder: Path, job: Job, result: Path) -> None:
    """Make the app's directory."""
    (folder / "noise").mkdir(parents=True)
    (folder / "noise" / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("flower_app.py"), folder / "noise")
    sizes = {"size_mb": job.size_mb, "sites": job.sites, "versions": job.versions}
    (folder / "pyproject.toml").write_text(_APP.format(**sizes, result=result))


def run(job: Job, work: Path) -> Figures:
    """Run the job in the empty directory `work`.

    Raises:
        RuntimeError: not every version was made.
    """
    result = work / "result.json"
    write_app(work / "app", job, result)
    ports = free_ports(job.sites + 1)
    address = f"127.0.0.1:{ports[0]}"
    (work / "home").mkdir()
    (work / "home" / "config.toml").write_text(_CONNECTION.format(address=address))
    own = {"FLWR_HOME": str(work / "home"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, **own, "PATH": path, "PYTHONPATH": str(_ROOT)}

    def start(name: str, *command: str) -> subprocess.Popen[bytes]:
        with (work / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=subprocess.STDOUT)

    with Watch() as watch:
        link = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(ports[0]))
        start("superlink", *link, "--disable-runtime-dependency-installation")
        wait_for(address)
        for site, port in enumerate(ports[1:], 1):
            own_address = ("--host", "127.0.0.1", "--port", str(port))
            node = ("flower-supernode", "--insecure", "--superlink", address, *own_address)
            start(f"site-{site}", *node, "--node-config", f"site={site}")
        if start("run", "flwr", "run", str(work / "app"), "here", "--stream").wait(7200) or not result.exists():
            raise RuntimeError((work / "run.log").read_text()[-3000:])
        told = json.loads(result.read_text())
    if told["versions"] != job.versions:
        raise RuntimeError(f"{told['versions']} versions instead of {job.versions}")
    server, client = ("flower-superlink", "flwr-serverapp"), ("flower-supernode", "flwr-clientapp")
    return watch.figures(told["began"], told["ended"], server=server, client=client)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(address: str, seconds: float = 60) -> None:
    """Return once somebody listens.

    Raises:
        TimeoutError: nobody did in time.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at {address}") from None
            time.sleep(0.1)


def main() -> None:
    """Run the job and print its row."""
    job = Job.parse(__doc__.splitlines()[0])
    version = installed("flwr", __doc__)
    with tempfile.TemporaryDirectory(prefix="flower-") as folder:
        print(table(run(job, Path(folder)).row(f"Flower {version}", job)))


if __name__ == "__main__":
    main()
