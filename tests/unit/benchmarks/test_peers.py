"""The same job with other systems: what is measured and printed, and the jobs themselves where one is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import flare_job, flower_job, layers, measure
from tests.support.house import ROOT

JOB = measure.Job(size_mb=400, sites=4, versions=3)
FIGURES = measure.Figures(wall=90, user=100.5, system=49.5, everything=170.4, server_kib=2048, client_kib=1536)
PEERS = {"flare_job": "FLEDGE_FLARE_PYTHON", "flower_job": "FLEDGE_FLOWER_PYTHON"}
"""The variables that name a Python with this system."""
FLARE_LOG = """\
2026-12-01 12:23:54,412 - FedAvg - INFO - [run=1] - scheduled task train
2026-12-01 12:23:58,302 - GetTaskCommand - INFO - return task to client.  client_name: site-1
2026-12-01 12:23:58,303 - GetTaskCommand - INFO - return task to client.  client_name: site-2
a line without a time: return task to client.
2026-12-01 12:24:06,612 - FedAvg - INFO - [run=1] - End persist model on server.
"""
DAEMON = "import time; block = bytearray(64 << 20); [None for _ in iter(lambda: time.process_time() < 0.5, False)]"
WATCHED = f"""
import os, subprocess, sys, time
from benchmarks.peers import measure
with measure.Watch() as watch:
    began = time.time()
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    subprocess.run([sys.executable, "-c", start, {DAEMON!r}], check=True)
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    ended = time.time()
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
figures = watch.figures(began, ended, server=["process_time"], client=["signal.pause"])
print(figures.user + figures.system, figures.everything, figures.server_kib, len(measure.below(os.getpid())))
"""


def test_a_row_gives_costs_a_version_under_its_headings() -> None:
    head, rule, row = measure.table(FIGURES.row("some system 1.0", JOB)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)]
    assert dict(zip(*cells, strict=True)) == {
        "system": "some system 1.0",
        "MB": "400",
        "sites": "4",
        "versions": "3",
        "wall s a version": "30.0",
        "processor s a version": "50.0",
        "user": "33.5",
        "sys": "16.5",
        "processor s in all": "170",
        "server MiB": "2",
        "largest client MiB": "2",
    }
    assert rule.count("---") == len(measure.HEADINGS)


def test_a_job_is_read_from_the_command_line() -> None:
    assert measure.Job.parse("text", ["--size-mb", "400"]) == JOB


def test_a_daemon_is_counted_and_what_still_runs_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=ROOT, capture_output=True, text=True, check=True)
    within, everything, peak, left = map(float, done.stdout.split())
    assert 0.25 < within <= everything + 0.2
    assert peak > 64 << 10
    assert left == 0


def test_no_process_of_a_kind_is_an_error() -> None:
    seen = [measure.Seen("a server", 1, 1, 7), measure.Seen("b server", 1, 1, 9), measure.Seen("client", 1, 1, 11)]
    assert measure.largest(seen, ["server"]) == 9
    with pytest.raises(LookupError, match="aggregator"):
        measure.largest(seen, ["aggregator"])


def test_a_missing_system_is_named_with_how_to_install_it() -> None:
    with pytest.raises(SystemExit, match=r"no-such-system is not installed(.|\n)*pip install something"):
        measure.installed("no-such-system", "pip install something")


@pytest.mark.parametrize("script", [flare_job, flower_job], ids=["flare", "flower"])
def test_the_page_installs_the_versions_that_the_scripts_name(script: object) -> None:
    [wanted] = re.findall(r"pip install (.+)", script.__doc__ or "")
    assert f"pip install {wanted}" in (ROOT / "benchmarks/peers.md").read_text()


def test_training_differs_between_sites_and_changes_everything() -> None:
    first, second = layers.initial(1), layers.initial(1)
    before = first["layer0"].copy()
    assert len(np.unique(before[:1000])) > 990, "a model of equal parts is stored once"
    layers.train(first.values(), 1)
    layers.train(second.values(), 2)
    assert (first["layer0"] != before).mean() > 0.99
    assert (first["layer0"] != second["layer0"]).mean() > 0.99


def test_the_times_of_a_round_are_read_from_the_log_of_flare() -> None:
    began, ended = (flare_job.times(FLARE_LOG, event) for event in ("return task to client.", "End persist model"))
    assert len(began) == 2
    assert ended[0] - began[0] == pytest.approx(8.31)


def test_the_app_of_flower_has_the_job_in_its_settings(tmp_path: Path) -> None:
    flower_job.write_app(tmp_path / "app", JOB, tmp_path / "result.json")
    app = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == {"size-mb": 400, "sites": 4, "versions": 3, "result": str(tmp_path / "result.json")}
    for reference in app["components"].values():
        module, _, name = reference.partition(":")
        source = (tmp_path / "app" / module.replace(".", "/")).with_suffix(".py").read_text()
        assert re.search(rf"^{name} = ", source, re.MULTILINE)


def test_somebody_listens_at_a_port_only_once_it_is_open() -> None:
    with pytest.raises(TimeoutError):
        flower_job.wait_for(f"127.0.0.1:{flower_job.free_ports(1)[0]}", seconds=0)


@pytest.mark.parametrize(("script", "variable"), PEERS.items())
def test_a_small_job_runs_where_the_system_is_installed(script: str, variable: str) -> None:
    python = os.environ.get(variable)
    if python is None:
        pytest.skip(f"{variable} names no Python with this system; benchmarks/peers.md says how to install it")
    sizes = ("--size-mb", "1", "--sites", "2", "--versions", "2")
    command = [python, "-m", f"benchmarks.peers.{script}", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\| (NVIDIA FLARE|Flower) [\d.]+ \| 1 \| 2 \| 2 \| ", done.stdout.splitlines()[-1])
