"""Threads that call a consumer's handlers, one delivery at a time."""

from __future__ import annotations

import random
from collections.abc import Callable

from broker.net.backoff import full_jitter
from broker.runtime.threads import Lane, log
from broker.transport.base import Delivery, Handler


class HandlerLane(Lane[Delivery]):
    """The thread of one subscription: calls its handler for one delivery at a time."""

    def __init__(self, queue: str, handler: Handler, dice: random.Random) -> None:
        super().__init__(f"consume {queue}", self._handle)
        self._queue = queue
        self._handler = handler
        self._dice = dice
        self._pauses = full_jitter(dice, base=0.05, cap=2.0)

    def _handle(self, delivery: Delivery) -> None:
        try:
            self._handler(delivery)
        except Exception:
            # The handler is foreign code at a thread's edge. The pause keeps a broken one from spinning.
            log.exception("handler.failed", queue=self._queue)
            self.stopping.wait(next(self._pauses))
            delivery.retry()
        else:
            self._pauses = full_jitter(self._dice, base=0.05, cap=2.0)


class CallbackLane(Lane[Callable[[], None]]):
    """The thread on which connection callbacks run."""

    def __init__(self) -> None:
        super().__init__("broker callbacks", self._call)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("callback.failed")
