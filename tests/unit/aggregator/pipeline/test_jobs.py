"""What the aggregator's slow things answer when they cannot be done now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aggregator.domain import events
from aggregator.pipeline.jobs import RunJobs
from broker.blobs.memory import MemoryBlobs
from protocol.errors import StoreError


class Short:
    """Records and production of a run that end with an error, as where memory is short."""

    run = "run"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.distrusted = 0
        self.opened = SimpleNamespace(get=self.produce)

    def produce(self, *_: object) -> Any:
        raise self.error

    def distrust(self) -> None:
        self.distrusted += 1


@pytest.mark.parametrize(("error", "distrusted"), [(MemoryError("no memory"), 0), (StoreError("away"), 1)])
def test_what_cannot_be_done_for_want_of_memory_is_tried_again_and_keeps_the_caches(
    error: Exception, distrusted: int
) -> None:
    short = cast(Any, Short(error))
    with ThreadPoolExecutor(1) as io:
        jobs = RunJobs(short, cast(Any, None), short, MemoryBlobs(), io, cast(Any, None))
        assert jobs.admit(b"id", b"envelope") == events.NotAdmitted(id=b"id", reason="store_away", retry=True)
        plan = cast(Any, SimpleNamespace(version=1, members=()))
        assert jobs.merge(plan, cast(Any, None)) == events.MergeFailed(plan=plan, reason="merge_failed", bad=None)
    assert short.distrusted == distrusted
