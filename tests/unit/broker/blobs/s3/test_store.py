"""What a store lists wrongly: an object twice, or in no order. A real server says so, as no well-behaved one does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from broker.blobs.s3.store import S3Blobs
from protocol.errors import StoreError
from tests.support.s3_answers import answering, listing

FIRST, SECOND = sorted(f"models/{hashlib.sha256(text).hexdigest()}" for text in (b"a", b"b"))


@contextmanager
def opened(*keys: str, place: str = "bucket") -> Iterator[S3Blobs]:
    """A store whose only page of a listing holds these keys."""
    page = listing(*keys)
    with answering(lambda _: page, deadline=5, place=place) as (url, _), closing(S3Blobs.from_url(url)) as store:
        yield store


def test_an_object_that_is_listed_twice_is_one() -> None:
    with opened(FIRST, FIRST, SECOND, SECOND) as store:
        assert [info.key for info in store.list("models/")] == [FIRST, SECOND]


def test_a_listing_in_no_order_is_refused() -> None:
    with opened(SECOND, FIRST) as store, pytest.raises(StoreError, match="does not list in key order"):
        list(store.list("models/"))


@pytest.mark.parametrize(("place", "prefix"), [("bucket", ""), ("bucket/clinics", "clinics/")])
def test_empty_objects_that_mark_folders_are_no_objects(place: str, prefix: str) -> None:
    with opened(*(f"{prefix}models/" for _ in prefix), f"{prefix}{FIRST}", f"{prefix}{SECOND}", place=place) as store:
        assert [info.key for info in store.list("models/")] == [FIRST, SECOND]
    with opened(prefix or "elsewhere", place=place) as store:
        assert list(store.list("")) == []
