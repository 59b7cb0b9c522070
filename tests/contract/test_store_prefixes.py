"""Two federations in one bucket, each below a prefix: neither sees, sweeps or hinders the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from broker.blobs.garbage import collect
from broker.blobs.open import open_blobs
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import parse_s3_url
from fledge.doctor.checks.store_attacks import Targets, own_copies, with_credentials, without_signature
from protocol import topology
from protocol.errors import ConfigError, Forbidden
from tests.support.blobs import LIMIT, key_of
from tests.support.ports import free_ports
from tests.support.s3 import S3Server
from tests.support.seaweed import BUCKET, Provisioned, SeaweedServer, require_seaweed

OURS, THEIRS = f"{BUCKET}/fed", f"{BUCKET}/fed-2"
"""One's name begins with the other's."""
DATA = b"the same bytes at both"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    """Two federations on one SeaweedFS, in one bucket, each with an identity that may do everything in its place."""
    require_seaweed()
    folder = tmp_path_factory.mktemp("shared")
    (port,) = free_ports(1)
    federation = Provisioned(folder, port, place=OURS, neighbours=THEIRS)
    server = SeaweedServer(federation, folder / "data", folder / "log")
    yield federation
    server.stop()


@pytest.mark.servers
def test_policies_keep_each_federation_below_its_own_prefix(shared: Provisioned) -> None:
    us, them = S3Blobs.from_url(shared.url("aggregator")), S3Blobs.from_url(shared.url("neighbour", place=THEIRS))
    for store in (us, them):
        store.put(key_of(DATA), DATA)
        store.put_head("demo", DATA)
        assert [info.key for info in store.list("")] == [key_of(DATA)]
    for elsewhere in (OURS, BUCKET, f"{BUCKET}/fed-2x"):
        intruder = S3Blobs.from_url(shared.url("neighbour", place=elsewhere))
        for attempt in (
            lambda store: list(store.list("")),
            lambda store: list(store.list("models/")),
            lambda store: store.get(key_of(DATA), LIMIT),
            lambda store: store.put(key_of(b"planted"), b"planted"),
            lambda store: store.put_head("demo", b"planted"),
            lambda store: store.delete(key_of(DATA)),
        ):
            with pytest.raises(Forbidden):
                attempt(intruder)
        intruder.close()
    assert us.get_head("demo", LIMIT) == DATA
    us.delete(key_of(DATA))
    assert them.has(key_of(DATA))
    us.close()
    them.close()


@pytest.mark.servers
def test_a_site_puts_and_gets_below_its_federations_prefix_alone(shared: Provisioned) -> None:
    hub, site = S3Blobs.from_url(shared.url("aggregator")), S3Blobs.from_url(shared.url("site-north"))
    hub.put(key_of(DATA), DATA)
    assert site.get(key_of(DATA), LIMIT) == DATA
    site.put(key_of(DATA, "up/north"), DATA)
    assert hub.has(key_of(DATA, "up/north"))
    beside = S3Blobs.from_url(shared.url("site-north", place=BUCKET))
    with pytest.raises(Forbidden):
        beside.put(key_of(DATA, "up/north"), DATA)
    for store in (hub, site, beside):
        store.close()


@pytest.mark.servers
@pytest.mark.parametrize(("identity", "outcome"), [("site-north", "refused"), ("aggregator", "worked")])
def test_what_the_doctor_tries_is_aimed_below_the_prefix(shared: Provisioned, identity: str, outcome: str) -> None:
    url = parse_s3_url(shared.url(identity), environ={})
    store, pool = S3Blobs(url), BoundedPool(tls=url.files)
    targets = Targets(place=url.place, federation="demo", site="north", other="north-2")
    tried = list(with_credentials(store, "north", "north-2", "demo"))
    assert {one.outcome for one in tried} == {outcome}, tried
    for tried in (list(own_copies(pool, store, targets)), list(without_signature(pool, url, "north"))):
        assert {one.outcome for one in tried} == {"refused"}, tried
    store.close()
    pool.clear()


@pytest.mark.servers
def test_a_sweep_of_one_leaves_the_others_objects_alone(s3_server: S3Server, bucket: str) -> None:
    whole, ours, theirs = (
        open_blobs(s3_server.url(place)) for place in (bucket, f"{bucket}/clinics", f"{bucket}/clinics/fed-2")
    )
    for store in (whole, ours, theirs):
        for folder in ("models", "up/site-a"):
            store.put(key_of(DATA, folder), DATA)
    for folder in ("models/", "up/"):
        assert collect(whole, folder, frozenset(), now=4e9).count == 1
        assert collect(ours, folder, frozenset(), now=4e9).count == 1
    assert [info.key for info in theirs.list("")] == [key_of(DATA), key_of(DATA, "up/site-a")]
    for store in (whole, ours, theirs):
        store.close()


@pytest.mark.parametrize(
    "key",
    [
        topology.update_chunk("site-a", "0" * 64),
        topology.model_chunk("0" * 64),
        topology.state_chunk("0" * 64),
        topology.record_key("0" * 64),
        topology.bundle_key("lead", "0" * 64),
        topology.head_key("demo"),
    ],
)
def test_no_prefix_may_hold_a_folder_that_another_federation_sweeps(key: str) -> None:
    folder = key.partition("/")[0]
    for prefix in (folder, f"{folder}/demo", f"demo/{folder}"):
        with pytest.raises(ConfigError, match=f"no part of a prefix may be '{folder}'"):
            parse_s3_url(f"s3s://host/{BUCKET}/{prefix}", environ={})


@pytest.mark.parametrize("prefix", ["..", "a/../b", "a//b", "a/%20b", "a%2fb", ".a", "a" * 64, "/".join("abcdefghi")])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="at most eight parts"):
        parse_s3_url(f"s3s://host/{BUCKET}/{prefix}", environ={})


def test_a_prefix_is_shown_and_names_every_object() -> None:
    store = parse_s3_url(f"s3s://host:8443/{BUCKET}/Clinics/fed_2/", environ={})
    name = hashlib.sha256(DATA).hexdigest()
    assert str(store) == f"s3s://host:8443/{BUCKET}/Clinics/fed_2"
    assert store.address(f"models/{name}") == f"https://host:8443/{BUCKET}/Clinics/fed_2/models/{name}"
