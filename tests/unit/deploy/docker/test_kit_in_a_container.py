"""A kit in a container: what `start.sh docker` leaves for every later `docker compose` in the folder."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.provision import kit_files
from deploy.provision.project import check_project
from protocol.keys import Role
from tests.support.compose import stages

DOCKER = """#!/bin/sh
case $1 in
    info) echo "$SECURITY" ;;
    *) echo "$@" >>asked ;;
esac
"""
SERVICES = {Role.SITE: ("worker", "site"), Role.AGGREGATOR: ("aggregator", "hub")}


@pytest.fixture(params=SERVICES, ids=lambda role: role.name.lower())
def role(request: pytest.FixtureRequest) -> Role:
    """A site's kit, and the aggregator's."""
    assert isinstance(request.param, Role)
    return request.param


@pytest.fixture
def kit(tmp_path: Path, role: Role) -> Path:
    """The texts of a kit, in a folder of their own, and a program that stands for docker."""
    hub = {"org": "centre", "address": "hub.example"}
    project = check_project({"name": "Lung.2026", "aggregator": hub, "sites": [{"name": "north", "org": "nh"}]})
    name = "north" if role is Role.SITE else "aggregator"
    for file, text in kit_files.texts(project, role, name, bytes(32)).items():
        (tmp_path / file).write_bytes(text)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    return tmp_path


def start(kit: Path, security: str = "[name=seccomp,profile=builtin]") -> dict[str, str]:
    """Run `sh start.sh docker`; returns what stands in `.env`."""
    path = f"{kit / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["sh", str(kit / "start.sh"), "docker"], check=True, env={"PATH": path, "SECURITY": security})
    assert (kit / "asked").read_text().splitlines()[-1] == "compose up --detach"
    assert (kit / ".env").stat().st_mode & 0o777 == 0o600
    lines = [line.partition("=") for line in (kit / ".env").read_text().splitlines() if line]
    assert len({name for name, _, _ in lines}) == len(lines)
    return {name: value for name, _, value in lines}


def test_what_the_engine_could_not_start_is_followed_by_where_the_image_comes_from(kit: Path) -> None:
    (kit / "bin" / "docker").write_text('#!/bin/sh\n[ "$1" = info ] || exit 18\n')
    path = f"{kit / 'bin'}:{os.environ['PATH']}"
    shell = ["sh", str(kit / "start.sh"), "docker"]
    done = subprocess.run(shell, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "README.md says where it comes from" in done.stderr


def compose(kit: Path) -> str:
    """The compose file as it is written."""
    return (kit / "docker-compose.yml").read_text(encoding="utf-8")


def described(kit: Path, role: Role) -> Mapping[str, Any]:
    """What the compose file says of its only service."""
    (service,) = yaml.safe_load(compose(kit))["services"].items()
    name, description = service
    assert name == SERVICES[role][0]
    assert isinstance(description, dict)
    return description


def test_what_the_compose_file_asks_for_stands_in_env_from_the_first_start_on(kit: Path) -> None:
    noted = start(kit)
    assert noted["FLEDGE_USER"] == f"{os.getuid()}:{os.getgid()}"
    required = re.findall(r"\$\{(\w+):\?", compose(kit))
    assert required == ["FLEDGE_USER"]
    assert start(kit) == noted  # the second start adds nothing


def test_federations_of_one_machine_do_not_take_each_others_containers_for_their_own(kit: Path, role: Role) -> None:
    project = start(kit)["COMPOSE_PROJECT_NAME"]
    assert project == ("fledge-lung-2026_north" if role is Role.SITE else "fledge-lung-2026_aggregator")


def test_what_a_user_wrote_into_env_stays(kit: Path) -> None:
    (kit / ".env").write_text("FLEDGE_IMAGE=registry.example/fledge:2\nFLEDGE_USER=4711:100")  # no end of line
    (kit / ".env").chmod(0o600)
    noted = start(kit)
    assert noted["FLEDGE_USER"] == "4711:100"
    assert noted["FLEDGE_IMAGE"] == "registry.example/fledge:2"


@pytest.mark.parametrize("line", ["export FLEDGE_USER=4711:100", "FLEDGE_USER = 4711:100\r", "  FLEDGE_USER: 4711:100"])
def test_what_stands_in_env_is_found_however_compose_lets_it_be_written(kit: Path, line: str) -> None:
    (kit / ".env").write_text(f"{line}\n")
    (kit / ".env").chmod(0o600)
    start(kit)
    assert (kit / ".env").read_text().count("FLEDGE_USER") == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, as sudo has it")
def test_started_by_sudo_it_runs_as_the_owner_of_the_kit_and_leaves_nothing_of_roots(kit: Path) -> None:
    os.chown(kit, 4711, 100)
    assert start(kit)["FLEDGE_USER"] == "4711:100"
    for name in (".env", "state"):
        made = (kit / name).stat()
        assert (made.st_uid, made.st_gid) == (4711, 100)


def test_a_rootless_engine_runs_it_as_whoever_started_the_engine(kit: Path) -> None:
    assert start(kit, "[name=seccomp,profile=builtin name=rootless name=cgroupns]")["FLEDGE_USER"] == "0:0"


def test_a_kit_names_the_image_that_is_built_for_it(kit: Path, role: Role) -> None:
    service = described(kit, role)
    target = SERVICES[role][1]
    image = {"site": "fledge:local", "hub": "fledge-hub:local"}[target]
    assert service["image"] == f"${{FLEDGE_IMAGE:-{image}}}"
    assert f"-t {image}" in (kit / "README.md").read_text(encoding="utf-8")
    assert service["healthcheck"]["test"] == ["CMD", *stages()[target].healthcheck]


def test_a_service_comes_back_after_a_reboot(kit: Path, role: Role) -> None:
    assert described(kit, role)["restart"] == "unless-stopped"


def test_the_readme_says_how_it_is_stopped_and_looked_at(kit: Path) -> None:
    text = (kit / "README.md").read_text(encoding="utf-8")
    for words in ("ps", "logs", "down", "restart"):
        assert f"docker compose {words}" in text
