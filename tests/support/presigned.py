"""A site without credentials and the hub that signs for it, on one real bucket."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Protocol

from broker.blobs.base import BlobStore, ObjectInfo, check_head, check_key, check_prefix
from broker.blobs.open import open_blobs
from broker.blobs.s3.grants import Granter
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from protocol.messages import Grant, Request
from protocol.topology import record_key, update_chunk

SITE, FEDERATION = "site-a", "demo"
_FIRST = record_key(hashlib.sha256(b"").hexdigest())


class Hub:
    """Answers requests as the aggregator does; `skew` is by how many seconds its clock is ahead of the store's."""

    def __init__(self, url: str) -> None:
        self.store = S3Blobs.from_url(url)
        self.granter = Granter(self.store, self.store, FEDERATION)
        self.requests: list[Request] = []
        self.head: bytes | None = None
        self.skew = 0.0

    def ask(self, request: Request) -> Grant:
        """Answer at once."""
        self.requests.append(request)
        granted = self.granter.grant(SITE, request, time.time() + self.skew)
        return granted.answer(b"m" * 16, self.head)


class Server(Protocol):
    """What is signed for."""

    port: int

    def url(self, bucket: str) -> str:
        """The store URL of a bucket, or of a prefix in it, with credentials."""


def site_store(hub: Hub, server: Server, bucket: str, *, port: int | None = None, options: str = "") -> PresignedBlobs:
    """The store as the site opens it: without credentials."""
    return PresignedBlobs.from_url(f"s3://127.0.0.1:{port or server.port}/{bucket}{options}", hub.ask, SITE)


class Halves:
    """A whole store made of a site without credentials and a hub with them, for the contract that all stores keep.

    What is put goes up by a signed URL as a chunk of the site's and is moved by the hub to where it belongs; what is
    got comes down by a signed URL. Objects that no site may get are got by the hub.
    """

    def __init__(self, server: Server, bucket: str) -> None:
        self.hub = Hub(server.url(bucket))
        self._all: BlobStore = open_blobs(server.url(bucket))
        # A site makes no bucket; a hub has long published something.
        self._all.put(_FIRST, b"")
        self._all.delete(_FIRST)
        self._site = site_store(self.hub, server, bucket)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Up by the site; moved by the hub."""
        way = update_chunk(SITE, check_key(key))
        self._site.put(way, data)
        if way != key:
            self._all.put(key, self._all.get(way, len(data)))

    def get(self, key: str, limit: int) -> bytes:
        """Down by the site if it may."""
        check_key(key)
        return (self._site if key.startswith(("models/", "records/")) else self._all).get(key, limit)

    def has(self, key: str) -> bool:
        """By the hub."""
        return self._all.has(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """By the hub, without what only passed through."""
        check_prefix(prefix)
        return (info for info in self._all.list(prefix) if not info.key.startswith(f"up/{SITE}/"))

    def delete(self, key: str) -> None:
        """By the hub."""
        self._all.delete(key)

    def put_head(self, name: str, data: bytes) -> None:
        """By the hub, which then sends it with each grant."""
        self._all.put_head(name, data)

    def get_head(self, name: str, limit: int) -> bytes | None:
        """By the site if it is its federation's."""
        check_head(name)
        if name != FEDERATION:
            return self._all.get_head(name, limit)
        return self._site.get_head(name, limit)

    def close(self) -> None:
        """Close both."""
        self._site.close()
        self._all.close()
        self.hub.store.close()
