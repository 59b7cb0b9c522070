"""What was verified and unlocked lately, so that no signature is checked and no key unwrapped again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from protocol.blob import Manifest
from protocol.envelope import ContentKey

_MOST = 512
_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OpenEnvelope:
    """A blob that is known to be what a signature says, and its key."""

    sender: str
    manifest: Manifest
    key: ContentKey


class EnvelopeCache:
    """The newest opened envelopes by their very bytes; in memory only, and thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: OrderedDict[bytes, OpenEnvelope] = OrderedDict()
        self._bytes = 0

    def put(self, raw: bytes, blob: OpenEnvelope) -> None:
        """Remember an envelope that verifies, or that was made here."""
        with self._lock:
            self._drop(raw)
            self._blobs[raw] = blob
            self._bytes += len(raw)
            while len(self._blobs) > _MOST or self._bytes > _BYTES:
                self._drop(next(iter(self._blobs)))

    def get(self, raw: bytes) -> OpenEnvelope | None:
        """What the envelope was found to hold; None if it is not remembered."""
        with self._lock:
            return self._blobs.get(raw)

    def clear(self) -> None:
        """Forget everything: who may sign what has changed."""
        with self._lock:
            self._blobs.clear()
            self._bytes = 0

    def _drop(self, raw: bytes) -> None:
        if self._blobs.pop(raw, None) is not None:
            self._bytes -= len(raw)
