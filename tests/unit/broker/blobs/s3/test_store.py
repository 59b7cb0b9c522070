"""What a store lists wrongly: an object twice, or in no order. A real server says so, as no well-behaved one does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker.blobs.s3.store import S3Blobs
from protocol.errors import StoreError

FIRST, SECOND = sorted(f"models/{hashlib.sha256(text).hexdigest()}" for text in (b"a", b"b"))


@contextmanager
def listing(*keys: str, place: str = "bucket") -> Iterator[S3Blobs]:
    """A store whose only page of a listing holds these keys."""
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    answer = (
        f"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store = S3Blobs.from_url(f"s3://key:secret@127.0.0.1:{server.server_port}/{place}?deadline=5")
    try:
        yield store
    finally:
        store.close()
        server.shutdown()
        server.server_close()


def test_an_object_that_is_listed_twice_is_one() -> None:
    with listing(FIRST, FIRST, SECOND, SECOND) as store:
        assert [info.key for info in store.list("models/")] == [FIRST, SECOND]


def test_a_listing_in_no_order_is_refused() -> None:
    with listing(SECOND, FIRST) as store, pytest.raises(StoreError, match="does not list in key order"):
        list(store.list("models/"))


@pytest.mark.parametrize(("place", "prefix"), [("bucket", ""), ("bucket/clinics", "clinics/")])
def test_empty_objects_that_mark_folders_are_no_objects(place: str, prefix: str) -> None:
    with listing(*(f"{prefix}models/" for _ in prefix), f"{prefix}{FIRST}", f"{prefix}{SECOND}", place=place) as store:
        assert [info.key for info in store.list("models/")] == [FIRST, SECOND]
    with listing(prefix or "elsewhere", place=place) as store:
        assert list(store.list("")) == []
