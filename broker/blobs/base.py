"""The blob-store contract: write-once objects and one mutable head per federation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import ConfigError, Corrupt

FOLDERS = frozenset({"bundles", "clock", "heads", "models", "records", "state", "up"})
"""What a federation's keys begin with."""
# Inner parts are at most 63 characters, so that no directory can ever carry the name of an object (64 hex digits),
# and start with a letter or digit, so that neither `..` nor a hidden file can be named.
_PART = r"[a-z0-9][a-z0-9._-]{0,62}"
_KEY = re.compile(rf"(?:{_PART}/){{1,4}}([0-9a-f]{{64}})")
_PREFIX = re.compile(rf"(?:{_PART}/){{0,4}}")
_HEAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_key(key: str) -> str:
    """Return the SHA-256 that an object's key ends in, or refuse a key that could name anything else.

    Raises:
        ConfigError: not one to four short lower-case parts and 64 hex digits, joined by slashes.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ConfigError(
            f"{key[:200]!r} is not an object key: expected parts of a-z, 0-9, '.', '_', '-' and a SHA-256"
        )
    return match[1]


def is_key(text: str) -> bool:
    """Whether `text` is an object's key."""
    return _KEY.fullmatch(text) is not None


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty or whole parts of a key, ending in a slash."""
    if _PREFIX.fullmatch(prefix) is None:
        raise ConfigError(
            f"{prefix[:200]!r} is not a key prefix: expected whole parts of a key, each ending in a slash"
        )
    return prefix


def check_head(name: str) -> str:
    """Return `name` if it may name a federation's head."""
    if _HEAD.fullmatch(name) is None:
        raise ConfigError(f"{name[:200]!r} cannot name a federation: use letters, digits, '.', '_' and '-', at most 63")
    return name


def check_bytes(key: str, data: bytes) -> bytes:
    """Return `data` if it hashes to the SHA-256 that `key` ends in; `Corrupt` otherwise."""
    check_digest(key, len(data), hashlib.sha256(data).hexdigest())
    return data


def check_digest(key: str, size: int, digest: str) -> None:
    """Raise `Corrupt` if the stored bytes, which hash to `digest`, are not what `key` ends in."""
    if digest != key[-64:]:
        raise Corrupt(f"{key}: the {size} stored bytes do not hash to the object's name; have it uploaded again")


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
    and multipart uploads are never used. A key that `check_key` refuses is a `ConfigError`.
    """

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data` under `key`; durable on return. Putting the same key again is harmless.

        A put replaces a corrupt object. The caller has hashed `data` to make the key; it is not hashed again here.
        """

    def get(self, key: str, limit: int) -> bytes:
        """The object's bytes, checked against the SHA-256 its key ends in.

        Raises:
            Missing: there is no such object.
            Corrupt: the bytes do not hash to the key's name.
            TooLarge: the object has more than `limit` bytes (checked before they are read).
        """

    def has(self, key: str) -> bool:
        """Whether the object is there."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Write-once objects whose keys start with `prefix` (ends in a slash, or empty for all), sorted by key.

        Heads and whatever else lies in the store are left out.
        """

    def delete(self, key: str) -> None:
        """Remove the object; removing what is not there is harmless."""

    def put_head(self, name: str, data: bytes) -> None:
        """Overwrite the head of federation `name` atomically."""

    def get_head(self, name: str, limit: int) -> bytes | None:
        """The current head, or None before the first; its signature is for the caller to check.

        Raises:
            TooLarge: the head has more than `limit` bytes.
        """

    def close(self) -> None:
        """Release connections. Idempotent."""
