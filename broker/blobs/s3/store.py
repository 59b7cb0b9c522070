"""The blob store on any S3 server, by minio-py and its signatures; the only module that imports it.

One object is one PUT. Nothing here relies on ETags, conditional requests, metadata or multipart uploads: servers
differ in all of them, and some ignore them silently.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TypeVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.credentials.credentials import Credentials
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.signer import sign_v4_s3
from minio.time import to_amz_date
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ProtocolError

from broker.blobs.base import ObjectInfo, check_bytes, check_head, check_key, check_prefix, is_key
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.receive import receive_chunk
from broker.blobs.s3.retry import NotYet, open_http
from broker.blobs.s3.url import S3Url, parse_s3_url
from broker.net.tls import Tls
from protocol import limits
from protocol.blob import Chunk, HeldChunk
from protocol.errors import ConfigError, Forbidden, Missing, StoreError
from protocol.topology import head_key

# minio-py lets urllib3's errors through, turns an answer that is not application/xml into InvalidResponseError
# whatever its status, and trips over XML or text that does not decode.
_FAULTS = (NotYet, S3Error, InvalidResponseError, ServerError, HTTPError, OSError, ParseError, ValueError)
_PAGE = 1000
_ANY_KEY = head_key("any")
_NEW_S = 5.0
"""For how long a bucket is waited for that one may not make oneself, or that refuses objects while it is made."""
_FORBIDDEN_S = 300.0
"""For how long an identity that was not allowed to list does not ask again whether it may."""

T = TypeVar("T")


class S3Blobs:
    """Keeps objects in one bucket; makes the bucket with the first put if it may.

    A call is repeated with growing random pauses until it succeeds, the URL's deadline has passed or the server gives
    an answer that repeating cannot change.
    """

    def __init__(
        self, url: S3Url, *, insecure: bool = False, proxy: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> None:
        """Prepare; nothing is sent before the first call.

        Raises:
            ConfigError: the URL holds no credentials, its host is not one that the library calls by this name, plain
                text is not allowed there, or a certificate file or the proxy's URL is wrong.
        """
        self._where = str(url)
        self._bucket, self._prefix = url.bucket, url.prefix
        self._new_until = 0.0
        self._may_not_list_until = 0.0
        if not url.access_key or not url.secret_key:
            raise ConfigError(
                f"store URL {self._where!r}: no credentials; write KEY:SECRET@ before the host or set"
                " FLEDGE_S3_ACCESS_KEY and FLEDGE_S3_SECRET_KEY"
            )
        self._http, self._patience = open_http(url, insecure=insecure, proxy=proxy, environ=environ, faults=_FAULTS)
        self._client, self._address = _client(url, self._http)
        self._region, self._credentials = url.region, Credentials(url.access_key, url.secret_key)

    @classmethod
    def from_url(cls, url: str, *, insecure: bool = False, tls: Tls | None = None, proxy: str | None = None) -> S3Blobs:
        """Open `s3(s)://KEY:SECRET@host:port/bucket`; see `broker.blobs.open.open_blobs`."""
        return cls(parse_s3_url(url, tls, environ=os.environ), insecure=insecure, proxy=proxy)

    def __repr__(self) -> str:
        return f"S3Blobs({self._where!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data` under `key`; the server has answered 200 on return."""
        self._put(key, data, check_key(key))

    def get(self, key: str, limit: int) -> bytes:
        check_key(key)
        return check_bytes(key, self._fetch(key, partial(self._http.collect, limit=limit)))

    def open(self, key: str, limit: int) -> Chunk:
        if limit > limits.CHUNK:
            return HeldChunk(self.get(key, limit), checked=True)
        check_key(key)
        return receive_chunk(key, limit, lambda room: self._fetch(key, partial(self._http.receive, room=room)))

    def has(self, key: str) -> bool:
        """Whether the object is there.

        Raises:
            Forbidden: this identity may not look; servers say so also of objects it has itself put.
        """
        check_key(key)
        try:
            self._read("look for", key, lambda: self._client.stat_object(self._bucket, self._name(key)))
        except Missing:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `prefix`, sorted by key, asked for a page at a time; each page has a deadline of its own.

        Folder by folder: servers that keep directories list `a/…` before `a-b/…`, which is not the order of keys.
        """
        folders: set[str] = set()
        for entry in self._folder(check_prefix(prefix)):
            if entry.key.endswith("/"):
                folders.add(entry.key)
            elif is_key(entry.key):
                yield entry
        for folder in sorted(folders):
            yield from self.list(folder)

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            self._patience.call(f"delete {key}", lambda: self._client.remove_object(self._bucket, self._name(key)))
        except Missing:
            return

    def put_head(self, name: str, data: bytes) -> None:
        """Overwrite the head of federation `name`.

        A put that was given up may still reach the server later than a newer one: readers go by the sequence number
        inside the head, and its owner puts it again now and then.
        """
        self._put(head_key(check_head(name)), data, hashlib.sha256(data).hexdigest())

    def get_head(self, name: str, limit: int) -> bytes | None:
        key = head_key(check_head(name))
        try:
            return self._fetch(key, partial(self._http.collect, limit=limit))
        except Missing:
            return None

    def presign_put(self, key: str, seconds: int, *, at: float | None = None) -> str:
        """A URL with which any holder may put this one object, for `seconds` from `at` (by default from now).

        Nothing is sent: a signature is computed, and it is worth what this identity may do. It neither bounds the size
        nor, on servers that read `x-amz-copy-source` from requests that did not sign it, what is put: sign with an
        identity that can only put.
        """
        return self._presign("PUT", key, seconds, at)

    def presign_get(self, key: str, seconds: int, *, at: float | None = None) -> str:
        """A URL with which any holder may get this one object, or a federation's head; see `presign_put`."""
        return self._presign("GET", key, seconds, at)

    def close(self) -> None:
        self._patience.close()

    def _presign(self, method: str, key: str, seconds: int, at: float | None) -> str:
        if not key.startswith(head_key("")):
            check_key(key)
        date = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
        return self._client.get_presigned_url(
            method, self._bucket, self._name(key), expires=timedelta(seconds=seconds), request_date=date
        )

    def _name(self, key: str) -> str:
        """What the object is called in the bucket."""
        return f"{self._prefix}{key}"

    def _read(self, verb: str, key: str, action: Callable[[], T]) -> T:
        """Read an object; where the answer does not tell whether it is forbidden or missing, listing it may.

        Amazon's S3 refuses what is not there to all who may not list the whole bucket, so also to whom a policy lets
        list below a prefix only.
        """
        try:
            return self._patience.call(f"{verb} {key}", action)
        except Forbidden:
            answer = self._http.answer
            if answer is not None and answer.code in ("", "AccessDenied") and self._is_absent(key):
                raise Missing(f"{verb} {key} at {self._where}: no such object (not listed)") from None
            raise

    def _is_absent(self, key: str) -> bool:
        """Whether this identity can see by listing that there is no such object."""
        if time.monotonic() < self._may_not_list_until:
            return False
        try:
            found = self._patience.call(f"list {key}", partial(self._page, key, ""))
        except Forbidden:
            self._may_not_list_until = time.monotonic() + _FORBIDDEN_S
            return False
        except StoreError:
            return False
        return all(info.key != key for info in found)

    def _put(self, key: str, data: bytes | memoryview, digest: str) -> None:
        begun = time.monotonic()

        def send_or_make_bucket() -> None:
            try:
                self._send(key, data, digest)
            except _FAULTS:
                answer = self._http.answer
                if answer is not None and answer.code == "NoSuchBucket":
                    self._new_until = time.monotonic() + _NEW_S
                    self._make_bucket(begun + _NEW_S)
                    raise NotYet(f"bucket {self._bucket!r} has just been made") from None
                if str(answer) == "403 AccessDenied" and time.monotonic() < self._new_until:
                    raise NotYet(f"bucket {self._bucket!r} is being made, and refuses ({answer})") from None
                raise

        self._patience.call(f"put {key} ({len(data)} bytes)", send_or_make_bucket)

    def _send(self, key: str, data: bytes | memoryview, digest: str) -> None:
        """One PUT, signed together with the body's SHA-256, which is known: minio-py would copy it and hash it again.

        A server that compares the two refuses what is not what was signed; some only compare the signature.
        """
        url, date = urlsplit(f"{self._address}{key}"), datetime.now(UTC)
        headers: dict[str, str | list[str] | tuple[str]] = {
            "Host": url.netloc,
            "Content-Length": str(len(data)),
            "Content-Type": "application/octet-stream",
            "x-amz-content-sha256": digest,
            "x-amz-date": to_amz_date(date),
        }
        signed = sign_v4_s3(
            method="PUT",
            url=url,
            region=self._region,
            headers=headers,
            credentials=self._credentials,
            content_sha256=digest,
            date=date,
        )
        answer = self._http.urlopen("PUT", url.geturl(), body=data, headers=signed)
        if answer.status != 200:
            raise ProtocolError(f"answer {answer.status}")

    def _make_bucket(self, until: float) -> None:
        """Make the bucket, or wait for another who is making it: of several at once, servers refuse all but one."""
        try:
            self._client.make_bucket(self._bucket)
        except _FAULTS:
            answer = self._http.answer
            if answer is None or answer.status not in (403, 409):
                raise
            if answer.status == 403 and time.monotonic() > until:
                raise Forbidden(
                    f"bucket {self._bucket!r} does not exist at {self._where}, and this identity may not make it"
                    f" ({answer}); ask whoever runs that server to make it, or look whether the URL names the right one"
                ) from None
            raise NotYet(f"bucket {self._bucket!r} is not there, and the server did not make it ({answer})") from None

    def _fetch(self, key: str, read: Callable[[BaseHTTPResponse, str], T]) -> T:
        def fetch() -> T:
            return read(self._client.get_object(self._bucket, self._name(key)), f"{key} in {self._where}")

        return self._read("get", key, fetch)

    def _folder(self, prefix: str) -> Iterator[ObjectInfo]:
        """What lies directly below a prefix: objects in order, and folders, which end in a slash, in no order."""
        last, after, folders = "", "", set[str]()
        while True:
            try:
                page = self._patience.call(f"list {prefix or 'everything'}", partial(self._page, prefix, after))
            except Missing:  # no bucket yet
                return
            before = last, len(folders)
            for entry in page:
                if entry.key == prefix:
                    continue  # an empty object, by which consoles mark a folder that somebody made there
                if entry.key.endswith("/"):
                    if entry.key not in folders and _holds_keys(entry.key, prefix):
                        folders.add(entry.key)
                        yield entry
                elif entry.key == last:
                    continue  # rclone lists an object twice while it is put again, RadosGW the last one of a page
                elif entry.key <= last:
                    raise StoreError(
                        f"list {prefix}: {self._where} does not list in key order ({entry.key} after {last})"
                    )
                else:
                    last = entry.key
                    yield entry
            if len(page) < _PAGE:
                return
            after = max(entry.key for entry in page)
            if before == (last, len(folders)):
                raise StoreError(f"list {prefix}: {self._where} does not go on after {after}")

    def _page(self, prefix: str, after: str) -> Sequence[ObjectInfo]:
        start = self._name(after) if after else None
        found = self._client.list_objects(self._bucket, self._name(prefix) or None, start_after=start)
        return [
            ObjectInfo(
                (item.object_name or "").removeprefix(self._prefix),
                item.size or 0,
                item.last_modified.timestamp() if item.last_modified else 0.0,
            )
            for item in islice(found, _PAGE)
        ]


def _client(url: S3Url, http: BoundedPool) -> tuple[Minio, str]:
    """The library's client, held to the host that the URL names: it knows better for some, and moves the bucket there.

    Returns:
        It, and what the addresses that it calls begin with, up to the key.

    Raises:
        ConfigError: it takes host or bucket for wrong, or would call another host.
    """
    try:
        # With a region given, minio-py asks the server nothing before the first request.
        client = Minio(
            url.endpoint, url.access_key, url.secret_key, secure=url.encrypted, region=url.region, http_client=http
        )
        client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]  # the library gives it no types
        called = client.get_presigned_url("GET", url.bucket, f"{url.prefix}{_ANY_KEY}")
    except ValueError as error:
        raise ConfigError(f"store {url}: {error}") from None
    if not url.addresses(called, _ANY_KEY):
        raise ConfigError(
            f"store {url}: the S3 library would call {urlsplit(called).netloc} instead; write Amazon's host with the"
            " bucket's region and without a port, such as s3.eu-central-1.amazonaws.com"
        )
    return client, called.partition(_ANY_KEY)[0]


def _holds_keys(folder: str, prefix: str) -> bool:
    """Whether our objects may lie in it; what else is in the bucket is not looked at."""
    return folder.startswith(prefix) and is_key(folder + "0" * 64)
