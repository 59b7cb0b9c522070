"""The console's runs and models against a running aggregator: what one seals the other opens."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker.blobs.base import BlobStore
from fledge.cli.app import ctl as app
from fledge.operator.console import Console, KitAccess
from fledge.process import log
from fledge.runs.init_run import init_run
from fledge.runs.upload import pack
from tests.support.running_aggregator import Hub

SITES = ("site-0", "site-1", "site-2")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    log.configure(file=io.StringIO())
    with Hub(tmp_path / "state") as hub:
        hub.start()
        for site in SITES:
            hub.obey(site)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_run("fledge.demo.task:trainer", tmp_path / "chest", name="chest", options={"seed": 3, "hospitals": 2})
    (tmp_path / "chest" / "code").mkdir()
    (tmp_path / "chest" / "code" / "trainer.py").write_text("def trainer(**options):\n    return options\n")
    (tmp_path / "kit").mkdir()
    return tmp_path / "chest"


def ctl(hub: Hub, kit: Path, *words: object) -> list[dict[str, Any]]:
    """The answers to a command."""

    @contextmanager
    def opened(_: Path) -> Iterator[Console]:
        @contextmanager
        def store(_: Console) -> Iterator[BlobStore]:
            yield hub.store

        yield hub.console(kit=KitAccess(opened=store))

    done = CliRunner().invoke(app, ["--kit", str(kit), *map(str, words), "--json"], obj=opened)
    assert done.exit_code == 0, (done.output, done.exception)
    return list(json.loads(done.stdout)["answers"])


def test_from_a_folder_to_a_model_at_a_real_aggregator(hub: Hub, folder: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    (made,) = ctl(hub, kit, "run", "create", folder)
    assert made["values"]["code"] == pack(folder).digest
    deployed = ctl(hub, kit, "run", "deploy", "chest")
    assert [answer["sender"] for answer in deployed] == list(SITES)
    ctl(hub, kit, "run", "start", "chest")
    ctl(hub, kit, "model", "export", "chest", "-o", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == (folder / "initial.safetensors").read_bytes()
    ctl(hub, kit, "model", "publish", "chest", "--name", "lung", "--label", "ct")
    ctl(hub, kit, "model", "promote", "lung", "production")
    (found,) = ctl(hub, kit, "model", "search", "--label", "ct")
    assert (found["values"]["name"], found["values"]["channels"]) == (["lung"], ["production"])
    (card,) = ctl(hub, kit, "model", "card", "production")
    assert card["values"]["labels"] == "ct"
    ctl(hub, kit, "model", "pull", "lung", "-o", tmp_path / "pulled")
    assert (tmp_path / "pulled").read_bytes() == (tmp_path / "model").read_bytes()
    ctl(hub, kit, "run", "clone", "chest", "chest-2")
    ctl(hub, kit, "run", "deploy", "chest-2", "site-1")
    ctl(hub, kit, "run", "stop", "chest", "--yes")
    ctl(hub, kit, "run", "delete", "chest", "--sites", "--yes")
    (listed,) = ctl(hub, kit, "run", "list")
    assert listed["values"]["run"] == ["test-run", "chest-2"]
