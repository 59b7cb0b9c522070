"""A running worker that finds itself revoked: it says so, and healthcheck tells."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.runtime.health import HEALTH, trouble
from protocol.keys import Identity, Role
from protocol.messages import Kind
from protocol.registry import sign_registry
from tests.support.fake_aggregator import FEDERATION, AddOne, Centre, new_id
from tests.support.running_worker import Seen, start
from worker.service.service import WorkerService


@pytest.mark.parametrize("by", ["registry", "record"])
def test_the_worker_says_once_that_it_is_revoked_and_healthcheck_is_red_at_once(
    centre: Centre, trainer: AddOne, tmp_path: Path, workers: list[WorkerService], by: str
) -> None:
    seen = Seen()
    with capture_logs() as logs:
        worker = start(centre, tmp_path, trainer, workers, on_event=seen)
        first = centre.version(1)
        centre.announce(first)
        centre.announce(centre.head(first, 1))
        assert centre.next_message().core.kind == Kind.UPDATE
        worker.health.accepted()
        assert trouble(tmp_path / HEALTH, time.time(), 60.0) == ""
        if by == "registry":
            centre.registry_record = sign_registry(centre.registry.revoke("alpha"), centre.root, FEDERATION, new_id())
            centre._put_record(centre.registry_record)
            centre.announce(centre.head(first, 1))
        else:
            others = Identity.generate("beta", Role.SITE)
            mine, centre.site = centre.site, others
            centre.announce(centre.version(1))
            centre.site = mine
        seen.wait("revoked")
    assert [(log["reason"], log["log_level"]) for log in logs if log["event"] == "site.revoked"] == [(by, "error")]
    assert trouble(tmp_path / HEALTH, time.time(), 60.0).startswith("revoked: ")
