"""Removing objects that nothing refers to any more."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from broker.blobs.base import BlobStore
from protocol.errors import StoreError

DAY_S = 86_400.0
_PROBES = "clock/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection removed."""

    count: int
    bytes: int


def collect(
    store: BlobStore,
    prefix: str,
    referenced: AbstractSet[str] | Callable[[str], bool],
    *,
    older_than_days: float = 14.0,
    now: float | None = None,
) -> Collected:
    """Delete the objects below `prefix` that are not `referenced` and were stored more than `older_than_days` ago.

    Ages are by the store's clock, whatever this machine's says; `now` (seconds since the epoch) replaces it. The age
    has to be longer than any upload and its announcement take together, since objects are stored before the message
    that refers to them is sent; an object that an upload finds present and that is collected before its message
    arrives is asked for again.

    Raises:
        StoreError: the store failed; what was deleted until then stays deleted.
    """
    is_referenced = referenced.__contains__ if isinstance(referenced, AbstractSet) else referenced
    oldest_kept = (store_time(store) if now is None else now) - older_than_days * DAY_S
    doomed = [info for info in store.list(prefix) if info.modified < oldest_kept and not is_referenced(info.key)]
    for info in doomed:
        store.delete(info.key)
    return Collected(count=len(doomed), bytes=sum(info.size for info in doomed))


def store_time(store: BlobStore) -> float:
    """The time by the store's clock, in seconds since the epoch: that of a small object put for the purpose."""
    data = secrets.token_bytes(16)
    key = f"{_PROBES}{hashlib.sha256(data).hexdigest()}"
    store.put(key, data)
    try:
        for info in store.list(_PROBES):
            if info.key == key:
                return info.modified
    finally:
        store.delete(key)
    raise StoreError(f"{key}: stored but not listed; the store does not keep its promises, nothing was collected")
