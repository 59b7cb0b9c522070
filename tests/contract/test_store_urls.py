"""Signed URLs on a store that knows identities: each of the two signers can do its one thing, and a URL less."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from broker.blobs.s3.grants import Granter
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import parse_s3_url
from fledge.doctor.checks.store_attacks import AttackOutcome, Targets, of_signers, with_urls, without_signature
from protocol.errors import Missing
from protocol.messages import Grant, Request
from protocol.topology import head_key
from tests.support.s3_requests import Caller
from tests.support.seaweed import BUCKET, FEDERATION, SITES, SeaweedServer, at, empty, keys

pytestmark = pytest.mark.servers

SITE, OTHER = SITES
LIMIT = 1024 * 1024
UPDATE, MODEL, SECRET = b"an update of north", b"a model", b"what only the aggregator reads"


def key_of(data: bytes, folder: str) -> str:
    return f"{folder}/{hashlib.sha256(data).hexdigest()}"


OWN, OTHERS = key_of(UPDATE, f"up/{SITE}"), key_of(UPDATE, f"up/{OTHER}")
PUBLISHED, STATE = key_of(MODEL, "models"), key_of(SECRET, "state")


@dataclass(frozen=True, slots=True)
class Hub:
    """What the aggregator has: its own identity and two that sign."""

    store: S3Blobs
    up: S3Blobs
    down: S3Blobs

    def ask(self, request: Request) -> Grant:
        """Answer a site's request at once."""
        granter = Granter(self.up, self.down, FEDERATION)
        return granter.grant(SITE, request, time.time()).answer(b"m" * 16, None)


@pytest.fixture
def hub(seaweed: SeaweedServer) -> Iterator[Hub]:
    """The hub, which has published a model and keeps a secret."""
    names = ("aggregator", "sign-uploads", "sign-downloads")
    hub = Hub(*(S3Blobs.from_url(seaweed.federation.url(name)) for name in names))
    hub.store.put(PUBLISHED, MODEL)
    hub.store.put(STATE, SECRET)
    yield hub
    for store in (hub.store, hub.up, hub.down):
        store.close()
    aggregator = seaweed.federation.caller("aggregator")
    empty(aggregator)
    aggregator.close()


@pytest.fixture
def anybody(seaweed: SeaweedServer) -> Iterator[Caller]:
    """Who has got hold of a URL and has no keys."""
    caller = seaweed.federation.caller()
    yield caller
    caller.close()


def test_a_site_without_credentials_puts_its_updates_and_gets_what_is_published(
    hub: Hub, seaweed: SeaweedServer
) -> None:
    url = re.sub("//[^@]*@", "//", seaweed.federation.url(f"site-{SITE}"))
    site = PresignedBlobs.from_url(url, hub.ask, SITE)
    large = os.urandom(LIMIT)
    for data in (UPDATE, large):
        site.put(key_of(data, f"up/{SITE}"), data)
        assert hub.store.get(key_of(data, f"up/{SITE}"), LIMIT) == data
    assert site.get(PUBLISHED, LIMIT) == MODEL
    with pytest.raises(Missing):
        site.get(key_of(b"never published", "models"), LIMIT)
    assert site.get_head(FEDERATION, LIMIT) is None
    hub.store.put_head(FEDERATION, b"signed head")
    assert site.get_head(FEDERATION, LIMIT) == b"signed head"
    site.close()


def test_a_url_to_put_one_object_does_nothing_else(hub: Hub, anybody: Caller) -> None:
    url = hub.up.presign_put(OWN, 3600)
    assert anybody.follow("PUT", url, UPDATE).status == 200
    old = hub.up.presign_put(OWN, 3600, at=time.time() - 3700)
    altered = [
        url.replace(SITE, OTHER, 1),
        url.replace(OWN, PUBLISHED),
        url.replace(OWN, head_key(FEDERATION)),
        f"{url}&versionId=null",
        f"{url}&acl=",
        f"{url}&uploads=",
        f"{url}&partNumber=1&uploadId=x",
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000"),
        url.partition("?")[0],
        old,
    ]
    refused = [anybody.follow("PUT", each, b"planted") for each in altered]
    refused += [anybody.follow(method, url) for method in ("GET", "HEAD", "DELETE", "POST")]
    refused.append(anybody.follow("POST", f"{url}&delete=", b"<Delete><Object><Key>x</Key></Object></Delete>"))
    assert all(reply.status in (400, 403, 405) for reply in refused), refused
    assert sorted(keys_of(hub)) == sorted([PUBLISHED, STATE, OWN])
    assert hub.store.get(OWN, LIMIT) == UPDATE
    assert hub.store.get(PUBLISHED, LIMIT) == MODEL


def test_a_url_of_a_clock_that_is_ahead_works_already(hub: Hub, anybody: Caller) -> None:
    """Other servers wait until its time has come; here it only lasts longer than it says."""
    for ahead in (1200, 3600):
        url = hub.up.presign_put(OWN, 3600, at=time.time() + ahead)
        assert anybody.follow("PUT", url, UPDATE).status == 200


def keys_of(hub: Hub) -> list[str]:
    return [info.key for info in hub.store.list("")]


def test_a_url_to_get_one_object_does_nothing_else(hub: Hub, anybody: Caller) -> None:
    hub.store.put(OWN, UPDATE)
    url = hub.down.presign_get(PUBLISHED, 3600)
    assert anybody.follow("GET", url).body == MODEL
    altered = [
        url.replace(PUBLISHED, OWN),
        url.replace(PUBLISHED, STATE),
        url.replace(f"/{PUBLISHED}", ""),
        f"{url}&acl=",
        f"{url}&versionId=null",
        hub.down.presign_get(PUBLISHED, 3600, at=time.time() - 3700),
    ]
    refused = [anybody.follow("GET", each) for each in altered]
    refused += [anybody.follow(method, url, b"planted") for method in ("PUT", "POST")]
    refused.append(anybody.follow("DELETE", url))
    assert all(reply.status in (400, 403, 405) for reply in refused), refused
    assert hub.store.get(PUBLISHED, LIMIT) == MODEL


def test_a_header_that_nobody_signed_makes_no_url_do_more(hub: Hub, anybody: Caller) -> None:
    assert [anybody.follow("PUT", hub.up.presign_put(OWN, 60), UPDATE).status] == [200]
    for source in (STATE, PUBLISHED, OWN):
        for path in (at(source), at(source)[1:]):
            copy = anybody.follow("PUT", hub.up.presign_put(OWN, 60), headers={"x-amz-copy-source": path})
            assert copy.status == 403, copy
    assert hub.store.get(OWN, LIMIT) == UPDATE
    shown = anybody.follow("PUT", hub.up.presign_put(OWN, 60), UPDATE, {"x-amz-acl": "public-read"})
    assert shown.status in (200, 403)
    assert anybody.send("GET", at(OWN)).status == 403


def test_the_signers_can_do_nothing_but_what_they_sign(hub: Hub, anybody: Caller) -> None:
    hub.store.put(OWN, UPDATE)
    refused = [
        *(anybody.follow("GET", hub.up.presign_get(key, 60)) for key in (OWN, PUBLISHED, STATE)),
        *(anybody.follow("PUT", hub.up.presign_put(key, 60), b"planted") for key in (PUBLISHED, STATE)),
        *(anybody.follow("GET", hub.down.presign_get(key, 60)) for key in (OWN, STATE)),
        *(anybody.follow("PUT", hub.down.presign_put(key, 60), b"planted") for key in (OWN, PUBLISHED, STATE)),
    ]
    assert {reply.status for reply in refused} == {403}, refused
    # Whose updates a URL is for is decided by who signs, so this one works.
    assert anybody.follow("PUT", hub.up.presign_put(OTHERS, 60), UPDATE).status == 200


def test_every_attack_of_the_doctor_on_urls_is_refused(hub: Hub, seaweed: SeaweedServer) -> None:
    url = parse_s3_url(seaweed.federation.url("aggregator"), environ={})
    targets = Targets(place=BUCKET, federation=FEDERATION, site=SITE, other=OTHER)
    pool = BoundedPool(tls=url.files, proxy=None)
    try:
        tried = [
            *without_signature(pool, url, SITE),
            *with_urls(pool, hub.up, hub.down, targets),
            *of_signers(pool, hub.up, hub.down, SITE),
        ]
    finally:
        pool.clear()
    assert {one.outcome for one in tried} == {AttackOutcome.REFUSED}, tried
    assert len(tried) > 15


def test_nothing_is_left_of_what_was_refused(hub: Hub, seaweed: SeaweedServer) -> None:
    aggregator = seaweed.federation.caller("aggregator")
    assert sorted(keys(aggregator)) == sorted([PUBLISHED, STATE])
    aggregator.close()
