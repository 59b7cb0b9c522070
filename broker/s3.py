"""The blob store on any S3 server, by minio-py; the only module that imports it.

One object is one PUT. Nothing here relies on ETags, conditional requests, metadata or multipart uploads: servers
differ in all of them, and some ignore them silently.
"""

from __future__ import annotations

import io
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import HTTPError, SSLError

from broker.backoff import full_jitter
from broker.blobs import ObjectInfo, check_bytes, check_head, check_key, check_prefix, is_key
from broker.bounded_http import Answer, BoundedPool
from protocol.errors import ConfigError, Forbidden, Missing, StoreError, TooLarge
from protocol.topology import head_key

# minio-py lets urllib3's errors through, turns an answer that is not application/xml into InvalidResponseError
# whatever its status, and trips over XML or text that does not decode.
_FAULTS = (S3Error, InvalidResponseError, ServerError, HTTPError, OSError, ParseError, ValueError)
_LASTING = frozenset({301, 302, 307, 308, 400, 405, 411, 413, 501})
_MIN_PART = 5 * 1024 * 1024
_PAGE = 1000
_LONGEST_PAUSE_S = 5.0
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_OPTIONS = frozenset({"region", "cacertfile", "deadline"})

T = TypeVar("T")


class S3Blobs:
    """Keeps objects in one bucket; makes the bucket with the first put if it may.

    A call is repeated with growing random pauses until it succeeds, `deadline` seconds have passed or the server
    gives an answer that repeating cannot change.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        *,
        region: str = "us-east-1",
        tls: ssl.SSLContext | None = None,
        deadline: float = 120.0,
    ) -> None:
        self._where = f"{'s3' if tls is None else 's3s'}://{endpoint}/{bucket}"
        self._bucket = bucket
        self._deadline = deadline
        self._closed = threading.Event()
        self._http = BoundedPool(ssl_context=tls)
        try:
            # With a region given, minio-py asks the server nothing before the first request.
            self._client = Minio(
                endpoint, access_key, secret_key, secure=tls is not None, region=region, http_client=self._http
            )
        except ValueError as error:
            raise ConfigError(f"store {self._where}: {error}") from None

    @classmethod
    def from_url(cls, url: str) -> S3Blobs:
        """Open `s3(s)://KEY:SECRET@host:port/bucket`; nothing is sent before the first call."""
        parts = urlsplit(url)
        endpoint = parts.netloc.rpartition("@")[2]
        shown = f"{parts.scheme}://{endpoint}{parts.path}"
        bucket = parts.path.strip("/")
        if not endpoint or not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"store URL {shown!r}: write s3://KEY:SECRET@host:port/bucket (s3s:// for TLS)")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - _OPTIONS):
            raise ConfigError(
                f"store URL {shown!r}: unknown option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}"
            )
        access_key = unquote(parts.username or "") or os.environ.get("FLEDGE_S3_ACCESS_KEY", "")
        secret_key = unquote(parts.password or "") or os.environ.get("FLEDGE_S3_SECRET_KEY", "")
        if not access_key or not secret_key:
            raise ConfigError(
                f"store URL {shown!r}: no credentials; write KEY:SECRET@ before the host or set"
                " FLEDGE_S3_ACCESS_KEY and FLEDGE_S3_SECRET_KEY"
            )
        return cls(
            endpoint,
            bucket,
            access_key,
            secret_key,
            region=options.get("region", "us-east-1"),
            tls=_tls(shown, options.get("cacertfile")) if parts.scheme == "s3s" else None,
            deadline=_seconds(shown, options.get("deadline", "120")),
        )

    def __repr__(self) -> str:
        return f"S3Blobs({self._where!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data` under `key`; the server has answered 200 on return."""
        check_key(key)
        self._put(key, bytes(data))

    def get(self, key: str, limit: int) -> bytes:
        """The object's bytes, checked against its name."""
        check_key(key)
        return check_bytes(key, self._call(f"get {key}", lambda: self._fetch(key, limit)))

    def has(self, key: str) -> bool:
        """Whether the object is there.

        Raises:
            Forbidden: this identity may not look; servers say so also of objects it has itself put.
        """
        check_key(key)
        try:
            self._call(f"look for {key}", lambda: self._client.stat_object(self._bucket, key))
        except Missing:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `prefix`, sorted by key, asked for a page at a time; each page has a deadline of its own."""
        check_prefix(prefix)
        after = ""
        while True:
            try:
                page = self._call(f"list {prefix or 'everything'}", partial(self._page, prefix, after))
            except Missing:  # no bucket yet
                return
            for info in page:
                if info.key <= after:
                    raise StoreError(
                        f"list {prefix}: {self._where} does not list in key order ({info.key} after {after})"
                    )
                after = info.key
                if is_key(info.key):
                    yield info
            if len(page) < _PAGE:
                return

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        check_key(key)
        try:
            self._call(f"delete {key}", lambda: self._client.remove_object(self._bucket, key))
        except Missing:
            return

    def put_head(self, name: str, data: bytes) -> None:
        """Overwrite the head of federation `name`.

        A put that was given up may still reach the server later than a newer one: readers go by the sequence number
        inside the head, and its owner puts it again now and then.
        """
        self._put(head_key(check_head(name)), data)

    def get_head(self, name: str, limit: int) -> bytes | None:
        """The current head, or None before the first."""
        key = head_key(check_head(name))
        try:
            return self._call(f"get {key}", lambda: self._fetch(key, limit))
        except Missing:
            return None

    def close(self) -> None:
        """Release connections; calls that are waiting to try again give up."""
        self._closed.set()
        self._http.clear()

    def _put(self, key: str, data: bytes) -> None:
        def send() -> None:
            # Above its part size minio-py would start a multipart upload.
            part = max(len(data), _MIN_PART)
            self._client.put_object(self._bucket, key, io.BytesIO(data), len(data), part_size=part)

        def send_and_make_bucket() -> None:
            try:
                send()
            except _FAULTS:
                answer = self._http.answer
                if answer is None or answer.code != "NoSuchBucket":
                    raise
                self._client.make_bucket(self._bucket)
                send()

        self._call(f"put {key} ({len(data)} bytes)", send_and_make_bucket)

    def _fetch(self, key: str, limit: int) -> bytes:
        response = self._client.get_object(self._bucket, key)
        try:
            declared = response.headers.get("Content-Length", "")
            if declared.isdecimal() and int(declared) > limit:
                raise TooLarge(f"{key}: {declared} bytes in {self._where}, at most {limit} expected; refused unread")
            data = self._http.read(response, limit)
            if len(data) > limit:
                raise TooLarge(f"{key}: more than the expected {limit} bytes in {self._where}; reading was stopped")
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return data

    def _page(self, prefix: str, after: str) -> Sequence[ObjectInfo]:
        found = self._client.list_objects(self._bucket, prefix or None, recursive=True, start_after=after or None)
        return [
            ObjectInfo(
                item.object_name or "", item.size or 0, item.last_modified.timestamp() if item.last_modified else 0.0
            )
            for item in islice(found, _PAGE)
        ]

    def _call(self, what: str, action: Callable[[], T]) -> T:
        """Do `action` until it succeeds, cannot, or the deadline is over."""
        deadline = time.monotonic() + self._deadline
        # Full jitter keeps many workers from coming back together after an outage.
        for pause in full_jitter(random.Random(), base=0.1, cap=_LONGEST_PAUSE_S):
            with self._http.until(deadline):
                try:
                    return action()
                except _FAULTS as error:
                    trouble = self._judge(what, error)
            if time.monotonic() + pause >= deadline or self._closed.wait(pause):
                break
        ended = "the store was closed" if self._closed.is_set() else f"not done within {self._deadline:g} s"
        raise StoreError(f"{what} at {self._where}: {ended}; last trouble: {trouble}; it can be tried again later")

    def _judge(self, what: str, error: Exception) -> str:
        """Say in words what happened if trying again may help; raise what it means otherwise.

        Bodies of answers are not repeated: servers put access keys and signatures into them.
        """
        answer = self._http.answer
        if isinstance(error, SSLError) and any(isinstance(e, ssl.SSLCertVerificationError) for e in error.args):
            raise StoreError(f"{what} at {self._where}: the server's certificate is not trusted: {error}") from None
        if answer is None:
            return f"{type(error).__name__}: {error}"
        said = f"{answer.status} {answer.code}".strip()
        if answer.status == 404:
            raise Missing(f"{what} at {self._where}: no such object ({said})") from None
        if answer.status in (401, 403):
            raise Forbidden(
                f"{what} at {self._where}: the store refused this identity ({said});"
                " check access key, secret, this machine's clock and what the identity may do"
            ) from None
        if answer.status in _LASTING and answer != Answer(400, "RequestTimeout"):
            raise StoreError(f"{what} at {self._where}: the store will not do this ({said})") from None
        return f"answer {said}" if answer.status >= 300 else f"{type(error).__name__}: {error}"


def _tls(shown: str, authorities: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"store URL {shown!r}: cacertfile {authorities!r} cannot be used: {error}") from error


def _seconds(shown: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 86_400.0:
        raise ConfigError(f"store URL {shown!r}: deadline {text!r} must be seconds between 0 and a day")
    return value
