"""Forbidden things tried on the object store, each with the credentials or the URL that must not be good for it.

Whatever should work after all touches no one's objects: it uses names that do not exist, and they are removed
again if that is possible, too.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from urllib3.exceptions import HTTPError

from broker.blobs.s3.grants import Signer
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import S3Url
from fledge.doctor.checks.store import CALL_S
from protocol.errors import Corrupt, FledgeError, Forbidden, Missing
from protocol.topology import head_key, model_chunk, record_key, state_chunk, update_chunk

_BODY = b"fledge doctor tried whether it may put this here; delete it\n"
_NAME = hashlib.sha256(_BODY).hexdigest()
_REFUSALS = frozenset({400, 401, 403, 405, 409, 501})
_LONG_AGO_S = 7200


class AttackOutcome(StrEnum):
    """What became of an attempt."""

    REFUSED = "refused"
    WORKED = "worked"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Something that was tried."""

    what: str
    outcome: AttackOutcome
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is attacked: a federation's bucket, as one of its sites, for another one's objects."""

    place: str
    """The bucket, or `bucket/prefix`."""
    federation: str
    site: str
    other: str


def without_signature(pool: BoundedPool, url: S3Url, site: str) -> Iterator[Attack]:
    """As a client without credentials; some servers let every client in until keys are set."""
    yield _sent(pool, "list the bucket without a signature", "GET", f"{url.http}?list-type=2")
    yield _sent(pool, "get a model without a signature", "GET", url.address(model_chunk(_nobodys())))
    yield _sent(pool, "put an update without a signature", "PUT", url.address(update_chunk(site, _NAME)), body=_BODY)


def with_credentials(store: S3Blobs, site: str, other: str, federation: str) -> Iterator[Attack]:
    """As a site with credentials of its own, which may put below its prefix and get what is published."""
    strange = f"{federation}-probe"
    for prefix in ("", f"up/{other}/", f"up/{site}/"):
        yield _called(f"list {prefix or 'everything'}", partial(_first, store, prefix))
    for key in (update_chunk(other, _nobodys()), update_chunk(site, _nobodys()), state_chunk(_nobodys())):
        yield _called(f"get {key.rpartition('/')[0]}/…", partial(store.get, key, 1024))
    for key in (update_chunk(other, _NAME), model_chunk(_NAME), record_key(_NAME), state_chunk(_NAME)):
        attack = _called(f"put {key.rpartition('/')[0]}/…", partial(store.put, key, _BODY))
        yield attack
        if attack.outcome == AttackOutcome.WORKED:
            with suppress(FledgeError):
                store.delete(key)
    yield _called("overwrite a head", partial(store.put_head, strange, _BODY))
    for key in (update_chunk(other, _nobodys()), update_chunk(site, _nobodys()), model_chunk(_nobodys())):
        yield _called(f"delete {key.rpartition('/')[0]}/…", partial(store.delete, key))


def with_urls(pool: BoundedPool, up: Signer, down: Signer, targets: Targets) -> Iterator[Attack]:
    """As a site that was granted URLs: each is good for one method, one object and a while, and reads nothing else."""
    site = targets.site
    put, get = up.presign_put(update_chunk(site, _NAME), 300), down.presign_get(model_chunk(_nobodys()), 300)
    for method in ("GET", "DELETE", "POST"):
        yield _sent(pool, f"use an upload URL to {method}", method, put, body=b"" if method == "POST" else None)
    for method in ("PUT", "DELETE"):
        yield _sent(pool, f"use a download URL to {method}", method, get, body=_BODY if method == "PUT" else None)
    elsewhere = put.replace(f"/up/{site}/", f"/up/{targets.other}/", 1)
    yield _sent(pool, "use an upload URL for another site's prefix", "PUT", elsewhere, body=_BODY)
    elsewhere = get.replace("/models/", "/state/", 1)
    yield _sent(pool, "use a download URL for another object", "GET", elsewhere)
    old = up.presign_put(update_chunk(site, _NAME), 60, at=time.time() - _LONG_AGO_S)
    yield _sent(pool, "use an upload URL that has expired", "PUT", old, body=_BODY)
    old = down.presign_get(model_chunk(_nobodys()), 60, at=time.time() - _LONG_AGO_S)
    yield _sent(pool, "use a download URL that has expired", "GET", old)
    yield from copies(pool, up, targets)


def copies(pool: BoundedPool, up: Signer, targets: Targets) -> Iterator[Attack]:
    """Have an upload URL copy something else: a header that is not signed is enough on some servers."""
    for source in (state_chunk(_nobodys()), model_chunk(_nobodys()), head_key(targets.federation)):
        yield _copied(pool, up, f"read {source.partition('/')[0]}/… by an upload URL that copies", targets, source)


def own_copies(pool: BoundedPool, own: Signer, targets: Targets) -> Iterator[Attack]:
    """Have a site's own credentials copy what they may not read to where they may put."""
    for source in (state_chunk(_nobodys()), update_chunk(targets.other, _nobodys())):
        yield _copied(pool, own, f"copy {source.rpartition('/')[0]}/… to up/{targets.site}/…", targets, source)


def _copied(pool: BoundedPool, signer: Signer, what: str, targets: Targets, source: str) -> Attack:
    url = signer.presign_put(update_chunk(targets.site, _NAME), 300)
    return _sent(pool, what, "PUT", url, body=b"", copied=f"/{targets.place}/{source}")


def of_signers(pool: BoundedPool, up: Signer, down: Signer, site: str) -> Iterator[Attack]:
    """Whether the identities that sign may do more than what they sign for."""
    url = up.presign_get(model_chunk(_nobodys()), 300)
    yield _sent(pool, "read with the identity that signs uploads", "GET", url)
    url = down.presign_put(update_chunk(site, _NAME), 300)
    yield _sent(pool, "write with the identity that signs downloads", "PUT", url, body=_BODY)


def _sent(
    pool: BoundedPool, what: str, method: str, url: str, *, body: bytes | None = None, copied: str | None = None
) -> Attack:
    """Send one request, or ask the store to copy the object `copied` there.

    Its URL, by which any reader could do the same, is not repeated in what is returned.
    """
    headers = {} if body is None else {"Content-Length": str(len(body))}
    headers |= {} if copied is None else {"x-amz-copy-source": copied}
    try:
        with pool.until(time.monotonic() + CALL_S):
            answer = pool.urlopen(method, url, body=body, headers=headers)
            done = copied is None or b"CopyObjectResult" in answer.data
    except (HTTPError, OSError) as error:
        return Attack(what=what, outcome=AttackOutcome.UNCLEAR, detail=type(error).__name__)
    return Attack(what=what, outcome=_judge(answer.status, done), detail=str(answer.status))


def _judge(status: int, copied: bool) -> AttackOutcome:
    """A client that is told that there is no such object was allowed to ask; an ignored copy header is no copy."""
    if status in _REFUSALS:
        return AttackOutcome.REFUSED
    if status == 404:
        return AttackOutcome.WORKED
    if 200 <= status < 300:
        return AttackOutcome.WORKED if copied else AttackOutcome.REFUSED
    return AttackOutcome.UNCLEAR


def _called(what: str, action: Callable[[], object]) -> Attack:
    try:
        action()
    except Forbidden:
        return Attack(what=what, outcome=AttackOutcome.REFUSED)
    except (Missing, Corrupt):
        return Attack(what=what, outcome=AttackOutcome.WORKED)
    except FledgeError as error:
        return Attack(what=what, outcome=AttackOutcome.UNCLEAR, detail=type(error).__name__)
    return Attack(what=what, outcome=AttackOutcome.WORKED)


def _first(store: S3Blobs, prefix: str) -> object:
    return next(store.list(prefix), None)


def _nobodys() -> str:
    return secrets.token_hex(32)
