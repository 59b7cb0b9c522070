"""Blob stores under test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from broker.blobs.base import BlobStore

LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Subject:
    """A store under test and the hand that changes an object behind its back."""

    store: BlobStore
    overwrite: Callable[[str, bytes], None]
    torn: str = ""
    """Why this server may give a reader parts of two versions of a head; empty where it must not."""


def key_of(data: bytes, folder: str = "models") -> str:
    """The object key these bytes belong under."""
    return f"{folder}/{hashlib.sha256(data).hexdigest()}"
