"""Another worker with this one's keys: what shows it, and when it is said."""

from __future__ import annotations

from collections import deque

from protocol.messages import Receipt

CODE = "kit_used_twice"
"""The word for it in signs of life."""
TIMES = 4
"""Updates of another worker after which it is said."""
QUIET = 8
"""Own updates settled in a row, with nothing of another worker's between, after which it is said no longer."""


class DuplicateWorker:
    """What shows that another worker has this one's keys."""

    def __init__(self, epoch: int, sequence: int) -> None:
        """The last number that was given here before this process began."""
        self._before = (epoch, sequence)
        self._settled: deque[bytes] = deque(maxlen=1024)
        self._foreign: deque[bytes] = deque(maxlen=64)
        self._quiet = 0

    @property
    def seen(self) -> bool:
        """Whether there is another worker."""
        return len(self._foreign) >= TIMES

    def settled(self, id: bytes) -> None:
        """An update of this worker's is done with; receipts for it may come again."""
        self._settled.append(id)
        self._quiet += 1
        if self._quiet >= QUIET:
            self._foreign.clear()

    def unknown(self, receipt: Receipt) -> bool:
        """Judge a receipt that is for nothing on its way here; returns whether this one gives the other away."""
        if receipt.message in self._settled or (receipt.epoch, receipt.sequence) <= self._before:
            return False
        return self.foreign(receipt.message)

    def foreign(self, id: bytes) -> bool:
        """Something is another's; returns whether this gives it away."""
        self._quiet = 0
        if id in self._foreign:
            return False
        self._foreign.append(id)
        return len(self._foreign) == TIMES
