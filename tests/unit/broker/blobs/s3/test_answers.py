"""What servers answer of which S3's description says little: missing buckets, other regions, no room left."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from broker.blobs.s3 import store as s3_store
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from protocol.errors import Forbidden, Missing, StoreError
from protocol.messages import Grant
from tests.support.s3_answers import OK, Answer, Asked, answering, error, listing

DATA = b"an update"
KEY = f"up/site-a/{hashlib.sha256(DATA).hexdigest()}"
MAKE = "PUT /clinics"
NO_BUCKET = error(404, "NoSuchBucket")
DENIED = error(403, "AccessDenied")


@pytest.mark.parametrize("refusal", [DENIED, error(409, "OperationAborted"), error(409, "BucketAlreadyOwnedByYou")])
def test_who_is_refused_the_bucket_that_another_is_making_uses_it_as_soon_as_it_is_there(refusal: Answer) -> None:
    tries = 0

    def answer(asked: Asked) -> Answer:
        nonlocal tries
        if asked.line == MAKE:
            tries += 1
            return refusal
        return OK if tries > 2 else NO_BUCKET

    with answering(answer) as (url, asked):
        S3Blobs.from_url(url).put(KEY, DATA)
    assert asked.count(MAKE) == 3


def test_who_may_not_make_a_bucket_that_nobody_makes_is_told_which_and_whom_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_store, "_NEW_S", 0.3)
    with answering(lambda asked: DENIED if asked.line == MAKE else NO_BUCKET) as (url, asked):
        with pytest.raises(Forbidden, match="ask whoever runs that server to make it") as refused:
            S3Blobs.from_url(url).put(KEY, DATA)
        assert url.partition("@")[2].partition("/")[0] in str(refused.value)
    assert "bucket 'clinics' does not exist" in str(refused.value)
    assert asked.count(MAKE) > 1


def test_a_bucket_that_refuses_objects_while_it_is_made_is_given_a_moment() -> None:
    """Ceph's RadosGW answers so where several make it at once."""
    answers = iter([NO_BUCKET, OK, DENIED, DENIED, OK])
    with answering(lambda _: next(answers)) as (url, asked):
        S3Blobs.from_url(url).put(KEY, DATA)
    assert len(asked) == 5


def test_a_bucket_that_is_made_at_the_first_try_is_made_once() -> None:
    made = threading.Event()

    def answer(asked: Asked) -> Answer:
        if asked.line == MAKE:
            made.set()
        return OK if made.is_set() else NO_BUCKET

    with answering(answer) as (url, asked):
        store = S3Blobs.from_url(url)
        store.put(KEY, DATA)
        store.put(KEY, DATA)
    assert asked == [f"PUT /clinics/{KEY}", MAKE, f"PUT /clinics/{KEY}", f"PUT /clinics/{KEY}"]


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"),
        error(403, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"),
        error(301, "PermanentRedirect", "<Endpoint>s3.example</Endpoint>", x_amz_bucket_region="eu-central-1"),
        error(400, "AuthorizationQueryParametersError", "<Region>eu-central-1</Region>"),
    ],
)
def test_a_bucket_in_another_region_is_said_to_be_there_with_what_to_write(refusal: Answer) -> None:
    with answering(lambda _: refusal) as (url, asked):
        store = S3Blobs.from_url(url)
        port = url.partition("@")[2].partition("/")[0]
        site = PresignedBlobs.from_url(
            f"s3://{port}/clinics",
            lambda _: Grant(message=b"m" * 16, head=b"", urls=(store.presign_put(KEY, 60),), expires=0),
            "site-a",
        )
        calls = [lambda: store.get(KEY, 100), lambda: store.put(KEY, DATA), lambda: site.put(KEY, DATA)]
        if refusal[2]:  # an answer to HEAD has nothing but headers
            calls.append(lambda: store.has(KEY))
        for call in calls:
            asked.clear()
            with pytest.raises(StoreError, match=r"in region 'eu-central-1'.*\?region=eu-central-1") as refused:
                call()
            assert not isinstance(refused.value, Forbidden | Missing)
            assert len(asked) == 1


def test_only_what_looks_like_a_region_is_repeated() -> None:
    misleading = error(301, "PermanentRedirect", x_amz_bucket_region="http://elsewhere/?x")
    with answering(lambda _: misleading) as (url, _), pytest.raises(StoreError, match="will not do this") as refused:
        S3Blobs.from_url(url).has(KEY)
    assert "elsewhere" not in str(refused.value)


@pytest.mark.parametrize(
    "refusal",
    [
        error(507, "XMinioStorageFull"),
        error(507, "InsufficientStorage"),
        error(403, "QuotaExceeded"),
        error(400, "XMinioAdminBucketQuotaExceeded"),
        (507, "<html>no room</html>", {"Content-Type": "text/html"}),
    ],
)
def test_a_full_store_is_said_to_be_full_and_takes_objects_again_once_there_is_room(refusal: Answer) -> None:
    room = threading.Event()
    with answering(lambda _: OK if room.is_set() else refusal, deadline=0.8) as (url, asked):
        store, begun = S3Blobs.from_url(url), time.monotonic()
        with pytest.raises(StoreError, match="no room left") as refused:
            store.put(KEY, DATA)
        assert refused.value.retryable
        assert time.monotonic() - begun < 5
        assert len(asked) > 1
        room.set()
        store.put(KEY, DATA)


@pytest.mark.parametrize("listed", [True, False])
def test_what_is_refused_but_not_listed_is_missing(listed: bool) -> None:
    """Amazon's S3 answers 403 for what is not there, unless one may list the whole bucket."""
    page = listing(*([f"clinics/{KEY}"] if listed else []))
    refused = Forbidden if listed else Missing
    with answering(lambda asked: page if asked.line == "GET /clinics" else DENIED, place="clinics/clinics") as (url, _):
        store = S3Blobs.from_url(url)
        with pytest.raises(refused):
            store.get(KEY, 100)
        if listed:
            with pytest.raises(Forbidden):
                store.has(KEY)
        else:
            assert not store.has(KEY)
            assert store.get_head("demo", 100) is None


def test_a_bucket_that_is_not_there_is_not_called_an_object() -> None:
    with answering(lambda _: NO_BUCKET) as (url, _):
        store = S3Blobs.from_url(url)
        with pytest.raises(Missing, match="no such bucket"):
            store.get(KEY, 100)
        place = url.partition("@")[2]
        grant = Grant(message=b"m" * 16, head=b"", urls=(store.presign_put(KEY, 60),), expires=0)
        with pytest.raises(Missing, match="no such bucket"):
            PresignedBlobs.from_url(f"s3://{place}", lambda _: grant, "site-a").put(KEY, DATA)


def test_who_may_not_list_asks_for_it_once() -> None:
    with answering(lambda _: DENIED) as (url, asked):
        store = S3Blobs.from_url(url)
        for _ in range(3):
            with pytest.raises(Forbidden):
                store.get(KEY, 100)
        with pytest.raises(Forbidden):
            list(store.list(""))
    assert asked.count("GET /clinics") == 2


def test_a_put_is_plain_enough_for_every_server() -> None:
    """No chunks that are signed one by one, no checksums of a kind, no expectations: not every server takes those."""
    seen: dict[str, str] = {}

    def answer(asked: Asked) -> Answer:
        seen.update(asked.headers)
        return OK

    with answering(answer) as (url, asked):
        S3Blobs.from_url(url).put(KEY, bytes(6_000_000))
    assert len(asked) == 1
    assert seen["content-length"] == "6000000"
    assert not {"expect", "transfer-encoding", "content-encoding"} & seen.keys()
    assert seen.keys() & {name for name in seen if name.startswith("x-amz-")} == {"x-amz-content-sha256", "x-amz-date"}
    assert "STREAMING" not in seen["x-amz-content-sha256"]


def test_a_page_that_begins_with_the_last_object_of_the_one_before_is_gone_on_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As RadosGW on SQLite lists; one that begins before it would never end."""
    monkeypatch.setattr(s3_store, "_PAGE", 2)
    keys = sorted(f"up/site-a/{hashlib.sha256(bytes([i])).hexdigest()}" for i in range(5))

    def answer(asked: Asked) -> Answer:
        return listing(*[key for key in keys if key >= asked.query.get("start-after", "")][:2])

    with answering(answer) as (url, _):
        assert [info.key for info in S3Blobs.from_url(url).list("up/site-a/")] == keys
