"""The blob-store contract: write-once objects and one mutable head per federation, and `open_blobs` by URL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object."""

    key: str
    size: int
    modified: float
    """Seconds since the epoch, by the store's clock; used for garbage collection only."""


class BlobStore(Protocol):
    """Keeps bytes under keys. Objects are write-once: their keys end in the SHA-256 of their bytes.

    All methods may be called from any thread, retry transient failures themselves within a deadline, and raise
    `StoreError` when it has passed. Nothing is ever visible half-written. ETags, conditional puts, object metadata
    and multipart uploads are never used.
    """

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data` under `key`; durable on return. Putting the same key again is harmless."""
        ...

    def get(self, key: str, limit: int) -> bytes:
        """The object's bytes, checked against the SHA-256 its key ends in.

        Raises:
            Missing: there is no such object.
            Corrupt: the bytes do not hash to the key's name.
            TooLarge: the object has more than `limit` bytes (checked before they are read).
        """
        ...

    def has(self, key: str) -> bool:
        """Whether the object is there."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose keys start with `prefix` (which ends in a slash, or is empty for all), sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; removing what is not there is harmless."""
        ...

    def put_head(self, name: str, data: bytes) -> None:
        """Overwrite the head of federation `name` atomically."""
        ...

    def get_head(self, name: str, limit: int) -> bytes | None:
        """The current head, or None before the first; its signature is for the caller to check."""
        ...

    def close(self) -> None:
        """Release connections. Idempotent."""
        ...


def open_blobs(url: str) -> BlobStore:
    """Open the store a URL names: `memory:` (`memory:NAME` shares one), `file:///dir`, `s3(s)://KEY:SECRET@host:port/bucket`.

    For S3 the credentials may also come from the environment (`FLEDGE_S3_ACCESS_KEY`, `FLEDGE_S3_SECRET_KEY`).

    Raises:
        ConfigError: the scheme is unknown or the URL incomplete.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        from broker.memory_blobs import MemoryBlobs

        return MemoryBlobs.named(url)
    if scheme == "file":
        from broker.files import FileBlobs

        return FileBlobs.from_url(url)
    if scheme in ("s3", "s3s"):
        from broker.s3 import S3Blobs

        return S3Blobs.from_url(url)
    raise ConfigError(f"store URL {url.split('@')[-1]!r}: unknown scheme; known: memory:, file:///dir, s3://, s3s://")
