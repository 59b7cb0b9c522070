"""What the object store says once it is reached: its clock, who it is, and whether it lets us do what we need."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime

from urllib3.exceptions import HTTPError

from broker.blobs.base import check_head
from broker.blobs.s3.grants import Granter
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import S3Url
from broker.net.schemes import Connection
from fledge.doctor.checks.broker import refused_certificate
from fledge.doctor.checks.network import Blocked, Way, walk
from fledge.doctor.findings import Finding, Server, bad, good, skipped, warning
from fledge.doctor.place import Place
from protocol import limits
from protocol.errors import ConfigError, Forbidden, StoreError
from protocol.keys import Role
from protocol.messages import Grant, Request
from protocol.topology import bundle_key, update_chunk

PROBE = b"fledge doctor was here; the aggregator sweeps this away\n"
"""What is put to see whether it may be; always the same, so it is one object at most."""
_PROBE_NAME = hashlib.sha256(PROBE).hexdigest()
_NOBODY = "fledge-doctor"
"""The site in whose name URLs are tried."""
CALL_S = 20.0
SKEW_S = 600
_NOTABLE_SKEW_S = 60
_SAID = re.compile(r"\((\d{3}) ?([A-Za-z]*)\)")


def check_store_way(way: Way, url: S3Url) -> tuple[list[Finding], bool]:
    """Everything from the name of the store to its first answer, and whether it was reached."""
    found: list[Finding] = []
    try:
        walk(way, found).close()
        found += _answer(way, url)
    except Blocked as blocked:
        return [*found, blocked.finding], False
    return found, True


def _answer(way: Way, url: S3Url) -> list[Finding]:
    """Its answer to a request without any signature, by its headers alone."""
    server = way.server
    pool = BoundedPool(tls=way.tls, proxy=way.proxy)
    try:
        with pool.until(time.monotonic() + CALL_S):
            answer = pool.urlopen("HEAD", url.http)
        date, kind = answer.headers.get("Date", ""), answer.headers.get("Server", "unnamed")
    except (HTTPError, OSError) as error:
        cause = error.args[-1] if error.args and isinstance(error.args[-1], Exception) else error
        raise Blocked(refused_certificate("store.answer", way, cause)) from error
    finally:
        pool.clear()
    return [good("store.answer", f"an HTTP server ({kind[:40]})", server=server), check_clock(date, time.time())]


def check_clock(date: str, now: float) -> Finding:
    """This machine's clock against the store's, by the Date header of an answer."""
    check = "store.clock"
    try:
        skew = now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return skipped(check, "no_date", "the store tells no time")
    words = f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store's"
    if abs(skew) > SKEW_S:
        advice = "set the clock (timedatectl set-ntp true): signatures, commands and certificates depend on it"
        return replace(bad(check, "skew", words, advice), number=round(skew, 1))
    if abs(skew) > _NOTABLE_SKEW_S:
        return warning(check, "skew", words, "let this machine keep time by NTP", number=round(skew, 1))
    return good(check, words, number=round(skew, 1))


def check_store_rights(url: S3Url, server: Server, place: Place, name: str) -> list[Finding]:
    """Get the head, and put one small object where what is our own goes; operators may not get heads."""
    try:
        store = S3Blobs(replace(url, deadline=CALL_S), insecure=place.config.insecure, proxy=place.config.proxy)
    except ConfigError as error:
        advice = "take credentials.toml from the kit again"
        return [bad("store.credentials", "missing", str(error), advice, server=server)]
    found: list[Finding] = []
    check = "store.read"
    try:
        if place.role != Role.OPERATOR:
            head = store.get_head(check_head(place.config.federation), limits.STORED_RECORD)
            words = "the federation's head can be read" if head else "allowed; the aggregator has published no head yet"
            found.append(good(check, words))
        check = "store.write"
        found.append(good(check, _written(store, place.role, name)))
    except StoreError as error:
        found.append(_refused(check, error, server))
    finally:
        store.close()
    return found


def _written(store: S3Blobs, role: Role, name: str) -> str:
    """Put the probe where this participant's objects go; the aggregator, which may, also takes it away again."""
    if role == Role.SITE:
        store.put(update_chunk(name, _PROBE_NAME), PROBE)
        return "objects can be put where our updates go"
    if role == Role.OPERATOR:
        store.put(bundle_key(name, _PROBE_NAME), PROBE)
        return "objects can be put where our runs go"
    key = f"clock/{_PROBE_NAME}"  # where the sweep puts something for a moment, too
    store.put(key, PROBE)
    try:
        if store.get(key, len(PROBE)) != PROBE or key not in (info.key for info in store.list("clock/")):
            raise StoreError(f"{key}: stored but not listed; the store does not keep its promises")
    finally:
        store.delete(key)
    return "objects can be put, got, listed and deleted"


def check_signed_urls(url: S3Url, place: Place, signers: tuple[S3Blobs, S3Blobs]) -> Finding:
    """Sign URLs as for a site without credentials and use them; only a warning, since not every federation has such."""
    check, federation, key = "store.urls", place.config.federation, update_chunk(_NOBODY, _PROBE_NAME)
    granter = Granter(*signers, check_head(federation))

    def ask(request: Request) -> Grant:
        return granter.grant(_NOBODY, request, time.time()).answer(b"", None)

    line = Connection(insecure=place.config.insecure, proxy=place.config.proxy)
    site = PresignedBlobs(replace(url, deadline=CALL_S), ask, _NOBODY, connection=line)
    try:
        site.put(key, PROBE)
        site.get_head(federation, limits.STORED_RECORD)
    except StoreError as error:
        words = f"URLs that we sign are not taken: {error}"
        return warning(check, "refused", words, "make the two identities that sign: see fledge deploy files")
    finally:
        site.close()
    return good(check, "URLs that we sign for sites and operators are taken")


def _refused(check: str, error: StoreError, server: Server) -> Finding:
    said = _SAID.search(str(error))
    code = said[2] if said else ""
    if code == "RequestTimeTooSkewed":
        advice = "set the clock (timedatectl set-ntp true)"
        return bad(check, "skew", "the store says that this machine's clock is wrong", advice, server=server)
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
        words = "does not know our access key" if code == "InvalidAccessKeyId" else "does not accept our secret key"
        return bad(check, "keys", f"the store {words}", "ask the hub for new credentials.toml", server=server)
    if isinstance(error, Forbidden):
        advice = "tell the hub to apply the policies of: fledge deploy files"
        if check == "store.read":
            advice += " (Amazon's S3 also answers so as long as the hub has published nothing)"
        return bad(check, "forbidden", f"the store refuses ({code or 'without saying why'})", advice, server=server)
    return bad(check, "failed", str(error), "try again; then tell the hub", server=server)
