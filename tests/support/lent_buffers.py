"""Which of a pool's buffers are out."""

from __future__ import annotations

import threading

from broker.blobs.chunks import BufferPool

_OTHERS = bytes([0xEE]) * 64 * 1024


class LentBuffers(BufferPool):
    """Fails where a buffer comes back that is not out; one that comes back is overwritten, as its next user would."""

    def __init__(self) -> None:
        super().__init__()
        self.out: set[int] = set()
        self.most = 0
        """How many were out at once."""
        self.made: set[int] = set()
        """Every buffer that there has been."""
        self._counting = threading.Lock()

    def take(self) -> memoryview:
        buffer = super().take()
        with self._counting:
            self.out.add(id(buffer.obj))
            self.made.add(id(buffer.obj))
            self.most = max(self.most, len(self.out))
        return buffer

    def give_back(self, buffer: memoryview) -> None:
        with self._counting:
            if id(buffer.obj) not in self.out:
                raise AssertionError("a buffer is given back twice")
            self.out.remove(id(buffer.obj))
        for start in range(0, len(buffer), len(_OTHERS)):
            part = buffer[start : start + len(_OTHERS)]
            part[:] = _OTHERS[: len(part)]
        super().give_back(buffer)
