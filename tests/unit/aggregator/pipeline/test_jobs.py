"""What the aggregator's slow things answer when they cannot be done now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from aggregator.domain import events
from aggregator.pipeline.jobs import RunJobs
from aggregator.pipeline.records import Records
from broker.blobs.cache import CachedBlobs
from broker.blobs.directory import FileBlobs
from broker.blobs.memory import MemoryBlobs
from protocol.errors import StoreError
from tests.support.federation import FEDERATION, RUN, SMALL, Federation, Site
from tests.support.hostile import flip


class Short:
    """Records and production of a run that end with an error."""

    run = "run"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.opened = SimpleNamespace(get=self.produce)

    def produce(self, *_: object) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [MemoryError("no memory"), StoreError("away")])
def test_what_cannot_be_done_now_is_told_and_tried_again(error: Exception) -> None:
    short = cast(Any, Short(error))
    with ThreadPoolExecutor(1) as io, capture_logs() as told:
        jobs = RunJobs(short, cast(Any, None), short, MemoryBlobs(), io, cast(Any, None))
        assert jobs.admit(b"id", b"envelope") == events.NotAdmitted(id=b"id", reason="store_away", retry=True)
        plan = cast(Any, SimpleNamespace(version=1, members=()))
        assert jobs.merge(plan, cast(Any, None)) == events.MergeFailed(plan=plan, reason="merge_failed", bad=None)
    assert {"event": "merge.failed", "log_level": "warning", "version": 1, "error": str(error)} in told


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("damage", [lambda chunk: b"", lambda chunk: chunk[:-1], lambda chunk: flip(chunk, 9)])
def test_an_update_whose_chunk_is_damaged_in_the_store_is_waited_for_and_not_refused(
    tmp_path: Path, damage: Any, cached: bool
) -> None:
    federation, store = Federation(), FileBlobs(tmp_path / "store")
    envelope = Site(federation, "site-0", store).update({})
    (info,) = store.list("up/")
    chunk = store.get(info.key, info.size)
    (tmp_path / "store" / info.key).write_bytes(damage(chunk))
    seen = CachedBlobs(store, tmp_path / "cache", 10**6) if cached else store
    with ThreadPoolExecutor(1) as io:
        records = Records(FEDERATION, RUN, federation.aggregator, seen, io)
        jobs = RunJobs(records, SMALL, cast(Any, None), seen, io, lambda: federation.registry)
        again = events.NotAdmitted(id=b"id", reason="chunk_damaged", retry=True, missing=True)
        assert jobs.admit(b"id", envelope) == again
        store.put(info.key, chunk)
        assert jobs.admit(b"id", envelope) == events.Admitted(id=b"id", norm=0.0)
