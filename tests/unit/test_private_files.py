"""Whatever holds a secret is its owner's alone, however generous the umask: everything that fledge makes is walked."""

from __future__ import annotations

import ast
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.docker.seaweedfs import write_identities
from deploy.keyfiles import read_identity
from deploy.provision.enrolment import enrol, finish
from deploy.provision.kits import open_kit
from deploy.provision.project import check_project
from deploy.provision.provisioning import accept, provision, renew
from fledge.bootstrap import open_aggregator, open_worker
from fledge.federation import new_federation
from fledge.runs.init_run import init_run
from protocol.keys import Role
from tests.support.house import ROOT
from worker.storage.incidents import Incidents

NOW = datetime.now(UTC)
TRAINER = "fledge.demo.task:trainer"
PROJECT = {
    "name": "clinics",
    "aggregator": {"org": "centre", "address": "hub.example"},
    "sites": [{"name": "north", "org": "north"}, {"name": "south", "org": "south", "enrol": True}],
    "operators": [{"name": "lead", "email": "lead@hub.example", "org": "centre", "roles": ["super"]}],
}
KEY_FILES = ("*.keys", "*.key", "credentials.toml", "*.zip", "store.json", "identities.json", "state.json")


@pytest.fixture(params=[0o000, 0o022], ids=["umask 000", "umask 022"])
def generous(request: pytest.FixtureRequest) -> Iterator[None]:
    """As of many machines, and as of a container that sets none."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def others_may(top: Path) -> list[str]:
    """What below a folder anybody but its owner may read, write or enter."""
    return sorted(
        f"{path.relative_to(top)} {stat.S_IMODE(path.lstat().st_mode):04o}"
        for path in top.rglob("*")
        if not path.is_socket() and stat.S_IMODE(path.lstat().st_mode) & 0o077
    )


def holding(top: Path, secrets: list[bytes]) -> list[Path]:
    """The files in which one of these can be read, and those whose names say that they hold keys."""
    named = {path for pattern in KEY_FILES for path in top.rglob(pattern)}
    return sorted(named | {p for p in top.rglob("*") if p.is_file() and any(s in p.read_bytes() for s in secrets)})


@pytest.mark.usefixtures("generous")
def test_a_provisioner_a_kit_and_the_stores_identities_are_their_owners_alone(tmp_path: Path) -> None:
    place = tmp_path / "p"
    made = provision(check_project(PROJECT), place, NOW)
    asked = enrol(tmp_path / "south", "south", Role.SITE, "clinics")
    answer = accept(place, asked.request.read_bytes(), asked.code, NOW)
    finish(answer.kits[0].path, answer.kits[0].password, tmp_path / "south", NOW)
    renew(place, [], NOW)
    for kit in made.kits:
        open_kit(kit.path, kit.password, tmp_path / kit.name, NOW)
    assert write_identities("clinics", place / "store.json", tmp_path / "identities.json") == 6
    assert others_may(tmp_path) == []

    store = json.loads((place / "store.json").read_text())["identities"]
    secrets = [each["secret_key"].encode() for each in store]
    secrets += [kit.password.encode() for kit in (*made.kits, *answer.kits)] + [b"PRIVATE KEY"]
    secrets += [bytes(read_identity(path).sign) for path in tmp_path.rglob("*.keys")]
    assert len(holding(tmp_path, secrets)) >= 25


def test_a_file_of_identities_stays_the_servers(tmp_path: Path) -> None:
    provision(check_project(PROJECT), tmp_path / "p", NOW)
    out = tmp_path / "identities.json"
    for before, after in ((0o640, 0o640), (0o644, 0o640), (0o666, 0o640), (0o600, 0o600)):
        out.touch()
        out.chmod(before)
        write_identities("clinics", tmp_path / "p" / "store.json", out)
        assert stat.S_IMODE(out.stat().st_mode) == after


@pytest.mark.parametrize("generous", [0o000], indirect=True)
@pytest.mark.usefixtures("generous")
def test_a_federation_that_trains_keeps_what_it_knows_for_its_owners_alone(tmp_path: Path) -> None:
    new_federation(
        tmp_path / "f",
        name="clinics",
        sites=["north"],
        broker=f"memory:{tmp_path.name}",
        store=(tmp_path / "store").as_uri(),
        trainer=TRAINER,
        options={"north": {"seed": 1, "hospitals": 2, "hospital": 0, "seconds": 0.0}},
    )
    init_run(TRAINER, tmp_path / "run", name="digits", options={"seed": 1, "hospitals": 2})
    merged = threading.Event()
    with ExitStack() as stack:
        aggregator = stack.enter_context(
            open_aggregator(
                tmp_path / "f" / "aggregator.toml",
                tmp_path / "run",
                observer=lambda event, fields: merged.set() if event == "version" else None,
            )
        )
        worker = stack.enter_context(open_worker(tmp_path / "f" / "sites" / "north" / "worker.toml"))
        worker.start()
        aggregator.start()
        assert merged.wait(60)
    Incidents(tmp_path / "f" / "sites" / "north" / "state" / "cases").keep("training failed", "no data")
    assert others_may(tmp_path / "f") == []
    assert others_may(tmp_path / "store") == []
    names = {path.name for path in (tmp_path / "f").rglob("*")}
    assert {"aggregator.db", "worker.db", "healthy", "settings.json", "cases"} <= names

    secrets = [bytes(read_identity(path).sign) for path in tmp_path.rglob("*.keys")]
    assert holding(tmp_path / "run", secrets) == holding(tmp_path / "store", secrets) == []


def test_no_private_folder_is_made_with_parents_that_are_not() -> None:
    calls = [
        (path, ast.unparse(call))
        for package in ("aggregator", "broker", "deploy", "fledge", "worker")
        for path in (ROOT / package).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "mkdir"
    ]
    assert len(calls) > 10
    assert not [each for each in calls if "parents=True" in each[1] and "mode=" in each[1]], "use private_folder"
