"""Threads that run other people's code, so that the threads that own connections never do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Generic, ParamSpec, TypeVar

import structlog

log = structlog.get_logger()
Item = TypeVar("Item")
Result = TypeVar("Result")
P = ParamSpec("P")


class InlineExecutor(Executor):
    """Does its work at once on the calling thread: for pieces so small that handing them over would cost more."""

    def submit(self, fn: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """A future that is done."""
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # the caller that asks for the result gets it, as from any executor
            future.set_exception(error)
        return future


class Lane(Generic[Item]):
    """One daemon thread that hands items to one function, in order; started by the first item."""

    def __init__(self, name: str, work: Callable[[Item], None]) -> None:
        self._name = name
        self._work = work
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.stopping = threading.Event()

    def put(self, item: Item) -> None:
        """Queue an item; ignored after `stop`."""
        self._items.put(item)
        with self._lock:
            if self._thread is None and not self.stopping.is_set():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Take no further item and wait for the one in work; tells whether the lane is still.

        Called from within its own work it does not wait, since it would wait for itself.
        """
        self.stopping.set()
        self._items.put(None)
        with self._lock:
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        while (item := self._items.get()) is not None and not self.stopping.is_set():
            try:
                self._work(item)
            except Exception:  # a defect met by one item must not silence the lane for all that follow
                log.exception("lane.failed", lane=self._name)
