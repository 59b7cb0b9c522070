"""The threads that slow work is done on: every answer is an event for the rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

import structlog

from aggregator.domain.events import Event

log = structlog.get_logger("aggregator")


Given = ParamSpec("Given")


class Executors:
    """One pool for each sort of work, so that none queues behind another."""

    def __init__(self, tell: Callable[[Event], None], stopping: threading.Event) -> None:
        """`tell` takes events for the rules; once `stopping` is set, nothing is begun any more."""
        self._tell = tell
        self._stopping = stopping
        self.io = ThreadPoolExecutor(4, thread_name_prefix="aggregator io")
        self.cipher = ThreadPoolExecutor(3, thread_name_prefix="aggregator cipher")
        # A merge never queues behind admissions: the longer it waited, the more updates would come for nothing.
        self.admissions = ThreadPoolExecutor(2, thread_name_prefix="aggregator admission")
        self.merges = ThreadPoolExecutor(1, thread_name_prefix="aggregator merge")
        self.preparations = ThreadPoolExecutor(1, thread_name_prefix="aggregator prepare")

    def submit(
        self, pool: ThreadPoolExecutor, work: Callable[Given, Event], *given: Given.args, **named: Given.kwargs
    ) -> None:
        """Have something done on one of the pools; what is not begun now is begun at the next start."""

        def run() -> None:
            try:
                self._tell(work(*given, **named))
            except Exception:  # a defect must not leave an update or a merge waiting for ever without a word
                if self._stopping.is_set():
                    return  # its pools are gone; what was under way is done again at the next start
                log.exception("work.failed", work=work.__name__)
                raise

        if not self._stopping.is_set():
            pool.submit(run)

    def close(self) -> None:
        """Begin nothing more, and wait for nothing."""
        for pool in (self.preparations, self.merges, self.admissions, self.cipher, self.io):
            pool.shutdown(wait=False, cancel_futures=True)
