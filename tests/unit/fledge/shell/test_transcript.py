"""A sitting as Clara's users know it, from the run's number to the end of the training, over real envelopes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from fledge.runs.init_run import init_run
from fledge.runs.upload import pack
from tests.support.run_hub import RunHub
from tests.support.sittings import DONE, shell

SITES = ("north", "south")
TABLE = [r"\+[-+]+\+", r"\| CLIENT NAME .*", r"\+[-+]+\+", *(rf"\| {site} .*" for site in SITES), r"\+[-+]+\+"]
OBEYED = [rf"instance:{site} : {site} obeys" for site in SITES]
SAID = r"\S.*"


def status(run: str, state: str, version: str = "0") -> list[str]:
    """What `check_status server` shows."""
    return [run, f"FL server status: training {state}", f"Current version: {version}", "Registered clients: 2", *TABLE]


TRANSCRIPT: Sequence[tuple[str, list[str]]] = [
    ("check_status server", status("FL run: has not been set", "not started", "-")),
    ("set_run_number 1", [r"Create a new run number: 1\. .*"]),
    ("upload_folder segmentation", [r"Created folder run-1 at the server \(.* MB, code [0-9a-f]{64}\)"]),
    ("deploy segmentation server", [r"server : MMAR deployed\. run-1: version 0"]),
    ("deploy segmentation client", [rf"instance:{site} : MMAR deployed\. {site} obeys" for site in SITES]),
    ("start server", [r"Server training is starting\.\.\."]),
    ("start client", [rf"instance:{site} : Starting the client\.\.\. {site} obeys" for site in SITES]),
    ("check_status server", status("FL run number: 1", "running")),
    ("check_status client", TABLE),
    ("set_run_number 1", [r"run number already exist\. Set the FL run number to 1\."]),
    ("abort client", OBEYED),
    ("abort server", [SAID]),
    ("download_binary model", [r"model\.safetensors: version 0 of run-1, [0-9]+ bytes"]),
    ("download_text settings.txt", [r"settings\.txt: 4 settings"]),
    ("shutdown client", ["instance:north : site.shutdown is done", "instance:south : site.shutdown is done"]),
    ("shutdown server", [r"the run is aborted", r"The aggregator goes on answering; .*"]),
    ("check_status server", status("FL run number: 1", "aborted")),
    ("delete_run_number 1", [*(f"instance:{site} : deleted {site} obeys" for site in SITES), SAID]),
    ("download_folder model.safetensors", [r"Error: model\.safetensors exists already; .*"]),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunHub:
    init_run("fledge.demo.task:trainer", tmp_path / "segmentation", name="x", options={"seed": 3, "hospitals": 2})
    (tmp_path / "segmentation" / "code").mkdir()
    (tmp_path / "segmentation" / "code" / "trainer.py").write_text("def trainer(**options):\n    return options\n")
    monkeypatch.chdir(tmp_path)
    return RunHub(tmp_path / "kit")


def test_a_sitting_as_claras_users_know_it(hub: RunHub, tmp_path: Path) -> None:
    model = (tmp_path / "segmentation" / "initial.safetensors").read_bytes()
    piped = "".join(f"{line}\n" for line, _ in TRANSCRIPT)
    code, shown = shell(hub.kit, hub, piped=piped, options=["--yes"])
    for line, answer in TRANSCRIPT:
        expected = [re.escape(f"> {line}"), *answer, DONE.pattern]
        said = [shown.pop(0) for _ in expected]
        assert all(map(re.fullmatch, expected, said)), "\n".join(said)
    assert shown == []
    assert code == 2, "the last line would have overwritten a file"
    assert (tmp_path / "model.safetensors").read_bytes() == model
    assert "strategy.name = fedbuff" in (tmp_path / "settings.txt").read_text()
    assert hub.runs == {}


def test_a_folder_that_is_uploaded_before_the_number_is_set_goes_up_when_it_is_deployed(hub: RunHub) -> None:
    lines = ("upload_folder segmentation", "set_run_number 2", "deploy segmentation server", "start server")
    code, shown = shell(hub.kit, hub, *lines)
    assert code == 0, shown
    assert any(line.startswith("segmentation is complete") for line in shown)
    assert (hub.runs["run-2"].state, hub.runs["run-2"].code) == ("running", pack(Path("segmentation")).code)
    assert b'name = "run-2"' in hub.runs["run-2"].config


def test_a_job_is_submitted_cloned_downloaded_and_deleted(hub: RunHub, tmp_path: Path) -> None:
    lines = ("submit_job segmentation", "clone_job x", "download_job x", "abort_job x", "delete_job x", "list_jobs")
    code, shown = shell(hub.kit, hub, *lines, options=["--yes"])
    assert code == 0, shown
    for said in ("Submitted job: x", "Cloned job x as: x-2; start it by: run start x-2", "Deleted job: x"):
        assert said in shown
    assert list(hub.runs) == ["x-2"]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        *("model.safetensors", "model.safetensors.json", "run.txt"),
    ]


def test_a_number_that_is_not_set_is_asked_for(hub: RunHub) -> None:
    code, shown = shell(hub.kit, hub, "deploy segmentation server", "deploy segmentation client")
    assert code == 2
    assert shown.count("Error: the FL run number has not been set; set_run_number N") == 2
    assert hub.asked == []


def test_what_the_aggregator_refuses_goes_no_further(hub: RunHub) -> None:
    lines = ("set_run_number 5", "deploy segmentation client")
    code, shown = shell(hub.kit, hub, *lines, options=["--yes"])
    assert code == 1
    assert "Error: there is no such run; `run list` shows which there are" in shown
