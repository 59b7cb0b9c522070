"""A worker that runs: started, watched and stopped by a test."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tests.support.fake_aggregator import Centre
from worker.service.service import WorkerService
from worker.service.status import WorkerEvent


class Seen:
    """What a worker showed; `wait` blocks until something of this kind has been shown."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self._new = threading.Condition()

    def __call__(self, event: WorkerEvent) -> None:
        with self._new:
            self.events.append(event)
            self._new.notify_all()

    def wait(self, state: str, version: int | None = None) -> None:
        def shown() -> bool:
            last = self.events[-1] if self.events else None
            return last is not None and last.state == state and version in (None, last.version)

        with self._new:
            assert self._new.wait_for(shown, 10), [event.state for event in self.events]


def opened(centre: Centre, state: Path, trainer: Any, workers: list[WorkerService], **extra: Any) -> WorkerService:
    """A worker that is not started, and taken apart with the others."""
    worker = centre.worker(state, trainer, **extra)
    workers.append(worker)
    return worker


def start(centre: Centre, state: Path, trainer: Any, workers: list[WorkerService], **extra: Any) -> WorkerService:
    worker = opened(centre, state, trainer, workers, **extra)
    worker.start()
    return worker


def stop(worker: WorkerService) -> None:
    worker.stop()
    worker.join(10)
    worker._transport.close()
