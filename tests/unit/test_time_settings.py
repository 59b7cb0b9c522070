"""The page of time settings lists all there are, and there are fewer than ten."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from aggregator.config import AggregatorConfig, RunConfig, StopConfig
from deploy.provision.project import Project
from fledge.operator.config import OperatorConfig
from worker.config import WorkerConfig
from worker.policy import SitePolicy

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "time.md").read_text(encoding="utf-8")
TIMES = re.compile(r"heartbeat|wait|grace|time|deadline|hours|days|seconds|interval|every|expires|period|retry|ttl")


def listed() -> list[str]:
    return [row.split("|")[1].strip().strip("`") for row in PAGE.splitlines() if row.startswith("| `")]


def test_there_are_fewer_than_ten() -> None:
    assert len(listed()) < 10


def test_every_setting_that_is_a_time_is_listed() -> None:
    models: tuple[type[BaseModel], ...] = (
        *(AggregatorConfig, RunConfig, StopConfig, WorkerConfig, SitePolicy, OperatorConfig, Project),
    )
    named = {field for model in models for field in model.model_fields if TIMES.search(field)}
    assert named <= set(listed())
    assert {"max_wait", "hours", "certificate_days"} <= named
