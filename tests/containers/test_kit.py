"""A site in its own container, out of its own kit, by the words of the kit's README."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.containers.engine import DOCKER, PROBE, Stack, docker, log, wait

pytestmark = pytest.mark.containers

USER = 10001
OVERRIDE = """# What a hospital's name service knows.
services:
  worker:
    extra_hosts: ["broker.fledge.example:host-gateway", "store.fledge.example:host-gateway"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """A kit's folder at a hospital, and a shell there."""

    folder: Path
    path: Path
    """Where `docker` is found, whatever it is on this machine."""

    def sh(self, line: str) -> str:
        """Run a line of the README in the kit's folder."""
        environment = os.environ | {"PATH": f"{self.path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, line + done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def health(self) -> str:
        """What `docker compose ps` shows."""
        lines = self.sh("docker compose ps --format json").splitlines()
        return "".join(str(each["Health"]) for line in lines for each in [json.loads(line)] if isinstance(each, dict))


@pytest.fixture
def kit(federation: Stack, folder: Path) -> Iterator[Kit]:
    """Site 3 moves out of the compose file: its kit with its journal, on a machine of its own so to speak."""
    moved = federation.container("site-3")
    federation.compose("stop", "site-3")
    place = folder / "site-3"
    docker("cp", f"{moved}:/var/lib/fledge/kit", str(place))
    (place / "docker-compose.override.yml").write_text(OVERRIDE)
    (place / ".env").write_text(f"FLEDGE_IMAGE={PROBE}\nFLEDGE_USER={USER}:{USER}\n")
    path = folder / "bin"
    path.mkdir()
    (path / "docker").write_text(f'#!/bin/sh\nexec {shlex.join(DOCKER)} "$@"\n')
    (path / "docker").chmod(0o755)
    if os.geteuid() == 0:
        for each in (place, *place.rglob("*")):
            os.chown(each, USER, USER, follow_symlinks=False)
    made = Kit(folder=place, path=path)
    try:
        yield made
    finally:
        made.sh("docker compose down --timeout 20 || true")
        shutil.rmtree(path)
        federation.compose("start", "site-3")
        federation.await_healthy("site-3")


def test_a_site_runs_from_its_kit_as_the_readme_says(kit: Kit, row: pytest.RecordProperty) -> None:
    readme = (kit.folder / "README.md").read_text()
    block = re.search(r"```sh\ndocker build.*?```", readme, re.DOTALL)
    assert block
    lines = [line.partition("#")[0].strip() for line in block[0].splitlines()[1:-1]]
    build, start, enter, *later = lines
    assert build.startswith("docker build -f deploy/docker/Dockerfile -t fledge:local")
    assert start == "sh site-3/start.sh docker"
    assert enter == "cd site-3"
    assert later == [
        "docker compose ps",
        "docker compose logs --follow",
        "docker compose restart",
        "docker compose down",
    ]

    kit.sh(f"cd .. && {start}")
    took = wait(lambda: kit.health() == "healthy", "the hub has accepted the site", 120)
    row("healthy in s", round(took))
    (container,) = kit.sh("docker compose ps --quiet").split()
    wait(lambda: '"event": "update.published"' in log(container), "it trains", 120)
    assert "worker.accepted" in kit.sh("docker compose logs")
    kit.sh("docker compose restart")
    wait(lambda: kit.health() == "healthy", "the hub has accepted the site again", 120)
    kit.sh("docker compose down")
    assert kit.sh("docker compose ps --quiet") == ""
    kit.sh(f"cd .. && {start}")  # and it goes on
    wait(lambda: kit.health() == "healthy", "the hub has accepted the site once more", 120)
