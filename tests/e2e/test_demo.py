"""The demo to its end: what its summary claims, except how fast this machine happened to be."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from fledge.demo import demo, task
from fledge.demo.processes import LOG
from fledge.federation import AGGREGATOR_TOML
from fledge.history import audit_run, replay_run
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synchronous training is there to be compared with; a test need not watch all of it."""
    monkeypatch.setattr(demo, "SYNCHRONOUS_LIMIT", 0.5)


def shown(options: demo.Options) -> tuple[demo.DemoSummary, str]:
    """Run the demo; returns what it found and what it wrote."""
    screen = io.StringIO()
    summary = demo.demonstrate(options, Console(file=screen, width=120, highlight=False))
    return summary, screen.getvalue()


def check(summary: demo.DemoSummary, text: str, out: Path, sites: int) -> None:
    assert summary.good
    assert len(summary.alone) == sites
    assert summary.federated > max(summary.alone.values())
    assert summary.pooled > max(summary.alone.values())
    assert max(point.accuracy for point in summary.course.points) >= demo.GOAL
    assert summary.course.reached(demo.GOAL) == summary.asynchronous_s
    assert summary.synchronous_s is None
    assert "> 0x" in text
    assert summary.course.rejected == 0
    assert len(set(summary.course.staleness)) > 1
    held_out = task.digits(42, sites).held_out
    assert task.accuracy(load_file(summary.model), held_out) == summary.federated
    config = out / demo.ASYNCHRONOUS / "federation" / AGGREGATOR_TOML
    assert all(line.good for line in audit_run(config, demo.RUN))
    rebuilt = list(replay_run(config, demo.RUN))
    assert all(line.good for line in rebuilt)
    assert len(rebuilt) - 1 >= summary.course.points[-1].version


@pytest.mark.usefixtures("hurried")
def test_hospitals_in_one_process_train_a_model_that_beats_each_of_them(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    summary, text = shown(demo.Options(quick=True, out=out))
    check(summary, text, out, 8)
    assert "beats every hospital alone" in text
    assert "fledge replay" in text
    assert "hospital-8 alone" in text


@pytest.mark.servers
@pytest.mark.usefixtures("hurried")
def test_the_same_over_real_servers_with_a_process_for_each_hospital(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    out = tmp_path / "demo"
    store = s3_server.url(f"b{os.urandom(8).hex()}")
    options = demo.Options(quick=True, sites=4, out=out, broker=rabbit_broker.url(), store=store, processes=True)
    summary, text = shown(options)
    check(summary, text, out, 4)
    assert "a process per hospital" in text
    logs = list((out / demo.ASYNCHRONOUS / "federation" / "sites").glob(f"*/{LOG}"))
    assert len(logs) == 4
    assert all('"training.done"' in log.read_text() for log in logs)
