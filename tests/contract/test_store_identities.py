"""What each identity of a federation may do at a store that knows identities: everything that is tried, on SeaweedFS.

The identities are the provisioner's, told to the server by `deploy/docker/seaweedfs.py`. For each of them every kind
of request is sent for every place; what works must be what is written here, and all the rest refused by the server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from tests.support.s3_requests import Caller, Reply
from tests.support.seaweed import BUCKET, FEDERATION, NEIGHBOURS, SeaweedServer, at, empty, keys

pytestmark = pytest.mark.servers

_NAME = hashlib.sha256(b"an object").hexdigest()
PLACES = {
    "updates of north": f"up/north/{_NAME}",
    "updates of north-2": f"up/north-2/{_NAME}",
    "updates of nobody": f"up/{_NAME}",
    "models": f"models/{_NAME}",
    "records": f"records/{_NAME}",
    "heads": f"heads/{FEDERATION}",
    "state": f"state/{_NAME}",
    "bundles of lead": f"bundles/lead/{_NAME}",
    "bundles of lead-2": f"bundles/lead-2/{_NAME}",
    "beside models": f"models-2/{_NAME}",
    "elsewhere": "elsewhere",
}
PUBLISHED = ("models", "records", "heads")
OWN = {"site-north": "updates of north", "operator-lead": "bundles of lead", "sign-uploads": "updates of north"}
IDENTITIES = ("aggregator", "site-north", "operator-lead", "sign-uploads", "sign-downloads", "neighbour", "nobody")

_ACL = (
    b'<AccessControlPolicy xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><AccessControlList/></AccessControlPolicy>'
)
_TAGS = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
_HOLD = b"<LegalHold><Status>ON</Status></LegalHold>"
_RETAIN = b"<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate></Retention>"


@dataclass(frozen=True, slots=True)
class Try:
    """A request."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def by(self, caller: Caller) -> Reply:
        """Send it; the servers want a checksum of documents."""
        md5 = base64.b64encode(hashlib.md5(self.body).digest()).decode()
        return caller.send(self.method, self.path, self.query, self.body, {"content-md5": md5, **self.headers})


def _batch(key: str) -> bytes:
    return f"<Delete><Object><Key>{key}</Key></Object></Delete>".encode()


def _copy(source: str, target: str) -> Try:
    return Try("PUT", at(target), headers={"x-amz-copy-source": at(source)})


Make = Callable[[str, str], Try]
"""From the key that is tried and one that the identity may write, if there is any."""

WRITING: dict[str, Make] = {
    "put": lambda key, _: Try("PUT", at(key), body=b"planted"),
    "put for all to see": lambda key, _: Try("PUT", at(key), body=b"planted", headers={"x-amz-acl": "public-read"}),
    "begin in parts": lambda key, _: Try("POST", at(key), {"uploads": ""}),
    "copy to": lambda key, _: _copy(PLACES["records" if key == PLACES["models"] else "models"], key),
}
READING: dict[str, Make] = {
    "get": lambda key, _: Try("GET", at(key)),
    "head": lambda key, _: Try("HEAD", at(key)),
    "copy from": _copy,
}
DELETING: dict[str, Make] = {
    "delete": lambda key, _: Try("DELETE", at(key)),
    "delete among many": lambda key, _: Try("POST", f"/{BUCKET}", {"delete": ""}, _batch(key)),
}
NOBODYS: dict[str, Make] = {
    "get a version": lambda key, _: Try("GET", at(key), {"versionId": "null"}),
    "delete a version": lambda key, _: Try("DELETE", at(key), {"versionId": "null"}),
    "get the access list": lambda key, _: Try("GET", at(key), {"acl": ""}),
    "put the access list": lambda key, _: Try("PUT", at(key), {"acl": ""}, _ACL),
    "get tags": lambda key, _: Try("GET", at(key), {"tagging": ""}),
    "put tags": lambda key, _: Try("PUT", at(key), {"tagging": ""}, _TAGS),
    "delete tags": lambda key, _: Try("DELETE", at(key), {"tagging": ""}),
    "get attributes": lambda key, _: Try("GET", at(key), {"attributes": ""}, b"", {"x-amz-object-attributes": "ETag"}),
    "get retention": lambda key, _: Try("GET", at(key), {"retention": ""}),
    "put retention": lambda key, _: Try("PUT", at(key), {"retention": ""}, _RETAIN),
    "put a legal hold": lambda key, _: Try("PUT", at(key), {"legal-hold": ""}, _HOLD),
}
OPERATIONS = WRITING | READING | DELETING | NOBODYS


def allowed(identity: str) -> set[tuple[str, str]]:
    """What works, as an operation and a place; this is the policy in words."""
    if identity == "aggregator":
        return {(operation, place) for operation in WRITING | READING | DELETING for place in PLACES}
    write = {
        "site-north": ("updates of north",),
        "operator-lead": ("bundles of lead",),
        # Which site a URL is for is decided by who signs it.
        "sign-uploads": tuple(place for place in PLACES if place.startswith(("updates", "bundles"))),
    }.get(identity, ())
    read = {"site-north": PUBLISHED, "sign-downloads": PUBLISHED, "operator-lead": ("models", "records")}.get(
        identity, ()
    )
    pairs = {(operation, place) for operation in ("put", "put for all to see", "begin in parts") for place in write}
    pairs |= {(operation, place) for operation in ("get", "head") for place in read}
    if write and read:  # a copy is a get and a put
        pairs |= {("copy to", place) for place in write} | {("copy from", place) for place in read}
    return pairs


@pytest.fixture(scope="module")
def callers(seaweed: SeaweedServer) -> Iterator[dict[str, Caller]]:
    """Everybody, after the aggregator has put an object into every place and a neighbour one into its own bucket."""
    found = {name: seaweed.federation.caller("" if name == "nobody" else name) for name in IDENTITIES}
    for key in PLACES.values():
        assert found["aggregator"].send("PUT", at(key), body=key.encode()).status == 200
    assert found["neighbour"].send("PUT", f"/{NEIGHBOURS}").status == 200
    assert found["neighbour"].send("PUT", f"/{NEIGHBOURS}/models/{_NAME}", body=b"theirs").status == 200
    yield found
    empty(found["aggregator"])
    for caller in found.values():
        caller.close()


def worked(reply: Reply) -> bool:
    """Whether a request was allowed; anything but a plain answer to that fails."""
    if reply.status == 403 or b"<Code>AccessDenied</Code>" in reply.body:
        return False
    assert reply.status in (200, 204), reply
    return True


def unchanged(aggregator: Caller) -> bool:
    """Whether every place holds what it did at first, and nothing else is there."""
    same = all(aggregator.send("GET", at(key)).body == key.encode() for key in PLACES.values())
    return same and sorted(keys(aggregator)) == sorted(PLACES.values())


@pytest.mark.parametrize("identity", IDENTITIES)
def test_an_identity_does_with_objects_what_is_written_and_nothing_else(
    callers: dict[str, Caller], identity: str
) -> None:
    caller, aggregator = callers[identity], callers["aggregator"]
    own = PLACES[OWN.get(identity, "updates of north")].replace(_NAME, "f" * 64)
    works = set()
    for operation, make in OPERATIONS.items():
        for place, key in PLACES.items():
            if worked(make(key, own).by(caller)):
                works.add((operation, place))
                aggregator.send("PUT", at(key), body=key.encode())
    aggregator.send("DELETE", at(own))
    assert works == allowed(identity)
    assert unchanged(aggregator)


_DOCUMENTS = {
    "policy": b'{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*",'
    b'"Resource":"arn:aws:s3:::clinics/*"}]}',
    "acl": _ACL,
    "cors": b"<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
    b"</CORSRule></CORSConfiguration>",
    "lifecycle": b"<LifecycleConfiguration><Rule><ID>a</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status>"
    b"<Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>",
    "versioning": b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    "object-lock": b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
    "tagging": _TAGS,
    "encryption": b"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>"
    b"<SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule>"
    b"</ServerSideEncryptionConfiguration>",
    "ownershipControls": b"<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule>"
    b"</OwnershipControls>",
    "publicAccessBlock": b"<PublicAccessBlockConfiguration/>",
    "notification": b"<NotificationConfiguration/>",
}
"""What can be said about a bucket."""
_LISTS = ("", "up/", "up/north/", "models/", "heads/", "state/", "bundles/lead/")
LISTING = {
    **{f"list {prefix or 'all'}": Try("GET", f"/{BUCKET}", {"list-type": "2", "prefix": prefix}) for prefix in _LISTS},
    "list as of old": Try("GET", f"/{BUCKET}"),
    "look for the bucket": Try("HEAD", f"/{BUCKET}"),
}
ABOUT = {
    "list versions": Try("GET", f"/{BUCKET}", {"versions": ""}),
    "list uploads in parts": Try("GET", f"/{BUCKET}", {"uploads": ""}),
    "ask for the place": Try("GET", f"/{BUCKET}", {"location": ""}),
    **{f"get {name}": Try("GET", f"/{BUCKET}", {name: ""}) for name in _DOCUMENTS},
    **{f"put {name}": Try("PUT", f"/{BUCKET}", {name: ""}, body) for name, body in _DOCUMENTS.items()},
    **{f"delete {name}": Try("DELETE", f"/{BUCKET}", {name: ""}) for name in ("policy", "cors", "lifecycle")},
    "delete the bucket": Try("DELETE", f"/{BUCKET}"),
    "make another bucket": Try("PUT", "/another-bucket"),
    "list the neighbours'": Try("GET", f"/{NEIGHBOURS}", {"list-type": "2"}),
    "get the neighbours'": Try("GET", f"/{NEIGHBOURS}/models/{_NAME}"),
    "put to the neighbours": Try("PUT", f"/{NEIGHBOURS}/up/north/{_NAME}", body=b"planted"),
    "delete the neighbours'": Try("DELETE", f"/{NEIGHBOURS}/models/{_NAME}"),
    "copy from the neighbours": Try(
        "PUT", at(f"up/north/{'f' * 64}"), headers={"x-amz-copy-source": f"/{NEIGHBOURS}/models/{_NAME}"}
    ),
    "delete the neighbours' bucket": Try("DELETE", f"/{NEIGHBOURS}"),
}


@pytest.mark.parametrize("identity", [name for name in IDENTITIES if name != "neighbour"])
def test_the_bucket_is_listed_by_the_aggregator_and_changed_by_nobody(
    callers: dict[str, Caller], identity: str
) -> None:
    works = {what for what, request in (LISTING | ABOUT).items() if worked(request.by(callers[identity]))}
    assert works == (set(LISTING) if identity == "aggregator" else set())
    assert unchanged(callers["aggregator"])
    assert callers["neighbour"].send("GET", f"/{NEIGHBOURS}/models/{_NAME}").body == b"theirs"


@pytest.mark.parametrize("identity", IDENTITIES)
def test_the_bucket_can_be_made_by_the_aggregator_alone(callers: dict[str, Caller], identity: str) -> None:
    reply = callers[identity].send("PUT", f"/{BUCKET}")
    expected = (409, "BucketAlreadyOwnedByYou") if identity == "aggregator" else (403, "AccessDenied")
    assert (reply.status, reply.code) == expected


def test_who_may_not_list_is_told_of_no_bucket(callers: dict[str, Caller]) -> None:
    named = {name: callers[name].send("GET", "/").body.count(b"<Bucket>") for name in IDENTITIES}
    assert named == dict.fromkeys(IDENTITIES, 0) | {"aggregator": 1, "neighbour": 1}


def test_what_was_put_for_all_to_see_is_seen_by_nobody_else(callers: dict[str, Caller]) -> None:
    key = PLACES["updates of north"]
    everything = {"x-amz-acl": "public-read-write"}
    assert callers["site-north"].send("PUT", at(key), body=b"public", headers=everything).status == 200
    for name in ("nobody", "neighbour", "operator-lead", "site-north"):
        assert callers[name].send("GET", at(key)).status == 403
    assert callers["nobody"].send("PUT", at(key), body=b"planted").status == 403
    assert callers["aggregator"].send("GET", at(key)).body == b"public"
    assert callers["aggregator"].send("PUT", at(key), body=key.encode()).status == 200


_STATE, _MODEL = PLACES["state"], PLACES["models"]


@pytest.mark.parametrize("dots", ["..", "%2e%2e", ".%2e"])
def test_no_dots_lead_out_of_a_prefix(callers: dict[str, Caller], dots: str) -> None:
    site, mine = callers["site-north"], at(f"up/north/{'f' * 64}")
    replies = [
        site.send("GET", at(f"models/{dots}/{_STATE}")),
        site.send("GET", at(f"models//{dots}/{dots}/{_STATE}")),
        site.send("PUT", at(f"up/north/{dots}/{dots}/{_MODEL}"), body=b"planted"),
        site.send("DELETE", at(f"up/north/{dots}/north-2/{_NAME}")),
        site.post_form(f"/{BUCKET}", f"up/north/{dots}/{dots}/{_MODEL}", b"planted"),
        *(
            site.send("PUT", mine, headers={"x-amz-copy-source": at(source)})
            for source in (f"models/{dots}/{_STATE}", f"models//{dots}/{_STATE}", f"{dots}/{BUCKET}/{_STATE}")
        ),
    ]
    assert all(reply.status in (400, 403) for reply in replies), replies
    assert unchanged(callers["aggregator"])


@pytest.mark.parametrize(
    "source",
    [f"{BUCKET}/{_STATE}", f"%2F{BUCKET}%2F{_STATE.replace('/', '%2F')}", f"/{BUCKET}//{_STATE}"],
    ids=["bare", "escaped", "doubled"],
)
def test_no_spelling_of_a_source_copies_what_may_not_be_read(callers: dict[str, Caller], source: str) -> None:
    mine = at(f"up/north/{'f' * 64}")
    for name in ("site-north", "sign-uploads", "sign-downloads", "operator-lead"):
        assert callers[name].send("PUT", mine, headers={"x-amz-copy-source": source}).status == 403
    assert unchanged(callers["aggregator"])


def test_an_upload_in_parts_stays_where_it_was_begun_and_copies_nothing(callers: dict[str, Caller]) -> None:
    site, other, mine = callers["site-north"], callers["operator-lead"], at(f"up/north/{'f' * 64}")
    begun = site.send("POST", mine, {"uploads": ""}).body.decode()
    upload = begun.partition("<UploadId>")[2].partition("<")[0]
    part = {"partNumber": "1", "uploadId": upload}
    assert upload
    assert site.send("PUT", mine, part, headers={"x-amz-copy-source": at(_STATE)}).status == 403
    assert site.send("PUT", at(_MODEL), part, b"planted").status == 403
    assert other.send("PUT", mine, part, b"planted").status == 403
    assert other.send("PUT", at(f"bundles/lead/{_NAME}"), part, b"planted").status == 404
    for elsewhere in ("../state/x", f"../{_MODEL}"):
        assert site.send("PUT", mine, {"partNumber": "1", "uploadId": elsewhere}, b"planted").status == 400
        assert site.send("DELETE", mine, {"uploadId": elsewhere}).status == 400
    assert site.send("DELETE", mine, {"uploadId": upload}).status == 204
    assert unchanged(callers["aggregator"])


@pytest.mark.parametrize("identity", ["site-north", "operator-lead", "sign-uploads", "sign-downloads"])
def test_a_form_puts_nothing_where_its_signer_may_not(callers: dict[str, Caller], identity: str) -> None:
    for place, key in PLACES.items():
        if ("put", place) not in allowed(identity):
            assert callers[identity].post_form(f"/{BUCKET}", key, b"planted").status == 403
    assert unchanged(callers["aggregator"])


def test_headers_that_servers_use_among_themselves_make_nobody_somebody_else(callers: dict[str, Caller]) -> None:
    claims = [
        {"x-seaweedfs-principal": "arn:aws:iam::000000000000:user/aggregator"},
        {"x-seaweedfs-session-token": "token", "x-seaweedfs-principal": "arn:aws:sts::1:assumed-role/a/b"},
        {"x-amz-security-token": "token"},
        {"s3-identity-name": "aggregator"},
        {"x-amz-identity-id": "aggregator"},
        {"x-amz-is-admin": "true", "s3-is-admin": "true"},
        {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1"},
    ]
    for claim in claims:
        for name in ("site-north", "nobody"):
            assert callers[name].send("GET", at(_STATE), headers=claim).status == 403
            assert callers[name].send("PUT", at(_MODEL), body=b"planted", headers=claim).status == 403
    assert unchanged(callers["aggregator"])


def test_there_is_no_way_to_make_identities(callers: dict[str, Caller]) -> None:
    for name in IDENTITIES:
        for action in ("ListUsers", "CreateUser", "CreateAccessKey", "GetCallerIdentity", "AssumeRole"):
            query = {"Action": action, "Version": "2010-05-08", "UserName": "intruder"}
            assert callers[name].send("POST", "/", query).status in (403, 405)


def test_who_joins_is_let_in_at_a_signal_and_who_leaves_is_shut_out_at_a_restart(
    private_seaweed: SeaweedServer,
) -> None:
    federation = private_seaweed.federation
    everybody = json.loads(federation.identities.read_text(encoding="utf-8"))
    stranger = (403, "InvalidAccessKeyId")

    def put(site: str) -> tuple[int, str]:
        with closing(federation.caller(f"site-{site}")) as caller:
            reply = caller.send("PUT", at(f"up/{site}/{_NAME}"), body=b"update")
        return reply.status, reply.code

    def tell(*, without: str) -> None:
        known = [each for each in everybody["identities"] if each["name"] != f"site-{without}"]
        federation.identities.write_text(json.dumps(everybody | {"identities": known}), encoding="utf-8")

    tell(without="north-2")
    private_seaweed.restart()
    assert (put("north"), put("north-2")) == ((200, ""), stranger)
    tell(without="north")
    private_seaweed.reload()
    deadline = time.monotonic() + 20
    while put("north-2") != (200, ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert put("north") == (200, "")
    private_seaweed.restart()
    assert (put("north"), put("north-2")) == (stranger, (200, ""))
