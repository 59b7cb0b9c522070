"""A worker whose configuration was changed while it runs says that it wants to be started again."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aggregator.domain.state import SiteStatus
from aggregator.operators.queries import _trouble
from broker.runtime.file_digests import FileDigests
from broker.runtime.health import HEALTH, stuck
from protocol.messages import RESTART_NEEDED, Event
from tests.support.fake_aggregator import AddOne, Centre
from tests.support.running_worker import Seen, start
from tests.support.waiting import eventually
from worker.service.service import WorkerService


def test_what_is_changed_written_anew_or_gone_differs_and_what_is_put_back_does_not(tmp_path: Path) -> None:
    toml, policy, logins = (tmp_path / name for name in ("worker.toml", "policy.toml", "credentials.toml"))
    toml.write_text("heartbeat = 20")
    policy.write_text("")
    read = FileDigests(toml)
    read.add(policy, logins)
    assert read.changed() == ()
    toml.write_text("heartbeat = 30")
    logins.write_text("[broker]")
    assert read.changed() == ("worker.toml", "credentials.toml")
    toml.write_text("heartbeat = 20")
    logins.unlink()
    toml.touch()
    assert read.changed() == ()
    toml.unlink()
    assert read.changed() == ("worker.toml",)


def test_the_log_says_it_once_and_healthcheck_and_status_until_it_is_put_back(
    centre: Centre, trainer: AddOne, tmp_path: Path, workers: list[WorkerService]
) -> None:
    toml = tmp_path / "worker.toml"
    toml.write_text("heartbeat = 20")
    seen, read, asked = Seen(), FileDigests(toml), itertools.count(1)
    last = 0

    def changed() -> tuple[str, ...]:
        nonlocal last
        last = next(asked)
        return read.changed()

    with capture_logs() as logs:
        worker = start(centre, tmp_path, trainer, workers, on_event=seen, heartbeat=0.1, changed=changed)
        worker.health.accepted()
        assert stuck(tmp_path / HEALTH) == ""
        toml.write_text("heartbeat = 30")
        eventually(lambda: "worker.toml changed" in stuck(tmp_path / HEALTH), "the change is noted")
        then = last
        eventually(lambda: last > then + 3, "some more signs of life")
        toml.write_text("heartbeat = 20")
        eventually(lambda: stuck(tmp_path / HEALTH) == "", "the old text is back")
    said = [log for log in logs if log["event"] == "configuration.changed"]
    assert [(log["files"], log["log_level"]) for log in said] == [("worker.toml", "warning")]


@pytest.mark.parametrize(
    ("code", "case", "metrics", "shown"),
    [
        ("-", "-", {}, ""),
        ("-", "-", {RESTART_NEEDED: 1.0}, "its configuration changed: restart it"),
        ("left", "-", {}, "left"),
        (
            "RuntimeError",
            "abcd",
            {RESTART_NEEDED: 1.0},
            "RuntimeError, case abcd; its configuration changed: restart it",
        ),
    ],
)
def test_the_status_of_the_site_says_what_its_trouble_is(
    code: str, case: str, metrics: dict[str, float], shown: str
) -> None:
    event = Event(state="idle", progress=0.0, metrics=metrics, software="fledge", code=code, case=case)
    assert _trouble(SiteStatus(event=event, run="digits", version=1)) == shown
