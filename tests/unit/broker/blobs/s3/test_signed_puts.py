"""What a put sends: the caller's bytes, signed with the hash that their key names, as Amazon's S3 checks both."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import closing

import pytest

from broker.blobs.s3.store import S3Blobs
from protocol.errors import Forbidden, StoreError
from tests.support.s3_answers import OK, Answer, Asked, answering, error
from tests.support.s3_requests import authorization

DATA = os.urandom(1_000_003)
KEY = f"models/{hashlib.sha256(DATA).hexdigest()}"
_NAMES = re.compile(r"SignedHeaders=([^,]+),")


class Amazon:
    """Compares signature and body with what they should be; keeps what it took."""

    def __init__(self) -> None:
        self.took: dict[str, bytes] = {}

    def answer(self, asked: Asked) -> Answer:
        """As Amazon's S3 does."""
        said = asked.headers.get("authorization", "")
        names = _NAMES.search(said)
        method, _, path = asked.line.partition(" ")
        signed = {name: asked.headers[name] for name in names[1].split(";")} if names else {}
        if not {"host", "x-amz-content-sha256"} <= signed.keys():
            return error(403, "AccessDenied")
        if authorization(("key", "secret"), method, path, "", signed) != said:
            return error(403, "SignatureDoesNotMatch")
        if hashlib.sha256(asked.body).hexdigest() != signed["x-amz-content-sha256"]:
            return error(400, "XAmzContentSHA256Mismatch")
        self.took[path] = asked.body
        return OK


@pytest.mark.parametrize("place", ["clinics", "clinics/Demo_1"])
def test_a_put_is_one_request_with_the_callers_bytes(place: str) -> None:
    amazon = Amazon()
    buffer = bytearray(b"before" + DATA + b"behind")
    with answering(amazon.answer, place=place) as (url, asked), closing(S3Blobs.from_url(url)) as store:
        store.put(KEY, memoryview(buffer)[6:-6])
        store.put_head("demo", b"a head")
        store.put(f"models/{hashlib.sha256(b'').hexdigest()}", b"")
    assert len(asked) == 3
    assert list(amazon.took.values()) == [DATA, b"a head", b""]
    assert list(amazon.took)[:2] == [f"/{place}/{KEY}", f"/{place}/heads/demo"]


def test_what_is_not_what_its_key_says_is_refused() -> None:
    amazon = Amazon()
    changed = bytearray(DATA)
    changed[500_000] ^= 1
    with (
        answering(amazon.answer) as (url, asked),
        closing(S3Blobs.from_url(url)) as store,
        pytest.raises(StoreError, match="400 XAmzContentSHA256Mismatch"),
    ):
        store.put(KEY, memoryview(changed))
    assert len(asked) == 1
    assert amazon.took == {}


@pytest.mark.parametrize("wrong", [("secret", "other"), ("clinics?", "clinics?region=eu-central-1&")])
def test_another_secret_or_region_makes_another_signature(wrong: tuple[str, str]) -> None:
    with (
        answering(Amazon().answer) as (url, _),
        closing(S3Blobs.from_url(url.replace(*wrong))) as store,
        pytest.raises(Forbidden, match="SignatureDoesNotMatch"),
    ):
        store.put(KEY, DATA)


def test_every_try_sends_all_of_the_body() -> None:
    amazon = Amazon()
    answers = iter([error(503, "SlowDown"), error(500, "InternalError")])

    def answer(asked: Asked) -> Answer:
        return next(answers, None) or amazon.answer(asked)

    with answering(answer) as (url, asked), closing(S3Blobs.from_url(url)) as store:
        store.put(KEY, memoryview(DATA))
    assert len(asked) == 3
    assert list(amazon.took.values()) == [DATA]
