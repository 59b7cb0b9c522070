"""A container engine as its command line shows it, and the compose file's federation on it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.compose import ROOT, context

DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))
"""The command, or what has to stand before its words."""
RESTART = os.environ.get("FLEDGE_ENGINE_RESTART", "")
"""A shell command that stops the engine and starts it again, as a reboot does: `systemctl restart docker`, say."""
PROJECT = "fledge-test"
SITES = ("site-1", "site-2", "site-3")
PROBE = "fledge-demo:test"
"""An image with a Python, for looking around."""


def docker(*words: str, check: bool = True, within: Path | None = None, given: str | None = None) -> str:
    """Run a command of docker and return what it says; with `check` it has to succeed."""
    done = subprocess.run([*DOCKER, *words], cwd=within, input=given, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"docker {shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done.stdout


def inspect(name: str, form: str) -> str:
    """What the engine knows of a container, image or network, in its own template language."""
    return docker("inspect", "--format", form, name).strip()


def python(code: str, *options: str, words: tuple[str, ...] = ()) -> str:
    """Run Python in a container that is gone afterwards; returns what it printed."""
    return docker("run", "--rm", "-i", "--entrypoint", "python", *options, PROBE, "-", *words, given=code)


def as_root(code: str, *words: str) -> str:
    """Run Python as the machine's root: for what only a failure of the machine does, and for its counters."""
    every = ("--privileged", "--pid", "host", "--user", "0:0", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:ro")
    return python(code, *every, words=words)


def wait(condition: Callable[[], bool], what: str, seconds: float) -> float:
    """Ask again until it is so; returns the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"waited {seconds:.0f} s until {what}"
        time.sleep(0.5)
    return time.monotonic() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The federation of `docker-compose.yml`, from a copy of the source that a test may change."""

    source: Path
    environment: Mapping[str, str]
    took: dict[str, float] = field(default_factory=dict)
    """Seconds that building and coming up took."""

    @property
    def env_file(self) -> Path:
        """Where compose finds the variables."""
        return self.source / "test.env"

    def compose(self, *words: str, check: bool = True) -> str:
        """Run a command of compose over the file."""
        options = ("--project-name", PROJECT, "--env-file", str(self.env_file))
        return docker("compose", *options, *words, check=check, within=self.source)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).split()[-1]

    def health(self, service: str) -> str:
        """What the engine says of a service's health."""
        return inspect(self.container(service), "{{.State.Status}} {{.State.Health.Status}}")

    def healthy(self, *services: str) -> bool:
        """Whether all of them run and are healthy."""
        return all(self.health(service) == "running healthy" for service in services)

    def await_healthy(self, *services: str, seconds: float = 180) -> float:
        """Wait until all of them are healthy; returns how long that took."""
        return wait(lambda: self.healthy(*services), f"{', '.join(services)} were healthy", seconds)

    def ctl(self, *words: str, check: bool = True) -> str:
        """Ask as an operator does."""
        return self.compose("run", "--rm", "--no-TTY", "ctl", *words, check=check)

    def status(self) -> dict[str, Any]:
        """What `ctl status` shows."""
        (answer,) = json.loads(self.ctl("status", "--json"))["answers"]
        assert answer["ok"], answer
        values = answer["values"]
        assert isinstance(values, dict)
        return values

    def version(self) -> int:
        """How far the run has come."""
        return int(self.status()["version"])

    def await_versions(self, more: int, seconds: float = 120) -> int:
        """Wait until the run has come on by so many versions; returns how far it came."""
        began = self.version()
        wait(lambda: self.version() >= began + more, f"the run came {more} versions further", seconds)
        return self.version()

    def events(self, service: str, event: str) -> int:
        """How often a service has logged an event since its container was last started."""
        container = self.container(service)
        return log(container, since=inspect(container, "{{.State.StartedAt}}")).count(f'"event": "{event}"')

    def trains(self, site: str) -> bool:
        """Whether a site has published an update since its container was last started."""
        return self.events(site, "update.published") > 0


def log(container: str, since: str = "0") -> str:
    """What a container has said, on both streams."""
    command = [*DOCKER, "logs", "--since", since, container]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def said_of_health(container: str) -> str:
    """What the last health check answered."""
    said = inspect(container, "{{range .State.Health.Log}}{{println .Output}}{{end}}").splitlines()
    return said[-1] if said else ""


def kill(container: str) -> None:
    """End a container's first process, unknown to the engine: what that kills itself it does not start again."""
    pid = inspect(container, "{{.State.Pid}}")
    as_root("import os, signal, sys; os.kill(int(sys.argv[1]), signal.SIGKILL)", pid)


def processor_seconds(containers: Mapping[str, str]) -> dict[str, float]:
    """What each of these containers (names by id) has used of processors so far, by its control group."""
    code = """
import json, pathlib, sys
used = {}
for container in sys.argv[1:]:
    for path in pathlib.Path('/sys/fs/cgroup').rglob(f'*{container}*/cpu*'):
        if path.name == 'cpuacct.usage':  # version 1
            used[container] = int(path.read_text()) / 1e9
        elif path.name == 'cpu.stat' and path.read_text().startswith('usage_usec'):
            used[container] = int(path.read_text().split()[1]) / 1e6
print(json.dumps(used))
"""
    used = json.loads(as_root(code, *containers))
    return {containers[container]: seconds for container, seconds in used.items()}


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Build the images and bring everything up; whatever happens, nothing is left of it but the cache of layers."""
    images = {"FLEDGE_HUB_IMAGE": "fledge-hub:test", "FLEDGE_SETUP_IMAGE": PROBE, "FLEDGE_IMAGE": PROBE}
    passed = ("FLEDGE_PORT", "FLEDGE_PYTHON_IMAGE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "TORCH_INDEX_URL")
    environment = images | {"FLEDGE_MANAGEMENT_PORT": "0"} | {n: os.environ[n] for n in passed if n in os.environ}
    made = Stack(source=copy_of_the_source(folder), environment=environment)
    made.env_file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    down = ("down", "--volumes", "--remove-orphans", "--timeout", "20")
    made.compose(*down)
    try:
        made.took["build"] = timed(lambda: made.compose("build"))
        made.took["up"] = timed(lambda: made.compose("up", "--detach"))
        yield made
    finally:
        made.compose("--profile", "*", *down, check=False)
        docker("image", "rm", "--force", *images.values(), check=False)


def timed(work: Callable[[], object]) -> float:
    """Do it; returns the seconds it took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def copy_of_the_source(folder: Path) -> Path:
    """What an image is built from, and the compose file, where a test may change them."""
    source = folder / "source"
    source.mkdir()
    for name in (*context(), Path("docker-compose.yml"), Path(".dockerignore")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    # Mounted into containers whose users own nothing here.
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    return source
