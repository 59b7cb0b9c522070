"""The blob store of a site or operator without credentials: it asks the aggregator for signed URLs and uses those.

What it may have is the same as with credentials: put what is its own, get models, records and (a site) the head.
A URL is asked for when it is needed and used at once; one that the store refuses (it expired on the way, or clocks
differ) is asked for anew. Any reader of such a URL may use it, so no error and no log repeats one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeVar

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import ProtocolError

from broker.blobs.base import ObjectInfo, check_bytes, check_head, check_key, check_prefix
from broker.blobs.s3.grants import READABLE
from broker.blobs.s3.receive import receive_chunk
from broker.blobs.s3.retry import open_http
from broker.blobs.s3.url import S3Url, parse_s3_url
from broker.net.schemes import Connection
from protocol import limits
from protocol.blob import Chunk, HeldChunk
from protocol.errors import Forbidden, Missing, StoreError, TooLarge, TransportError
from protocol.messages import Grant, Request
from protocol.topology import check_site, head_key

Ask = Callable[[Request], Grant]
"""Sends a request and waits for its grant; may be called from any thread.

It ends by itself: `StoreError` or `TransportError` when no answer came in time.
"""

_FRESH = 3
"""URLs that are asked for until a store that refuses each of them is believed."""

T = TypeVar("T")


class PresignedBlobs:
    """A `BlobStore` that can put what is its own and get what is published; the rest is `Forbidden`."""

    def __init__(
        self,
        url: S3Url,
        ask: Ask,
        site: str,
        *,
        below: str = "up",
        connection: Connection | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Prepare; credentials in `url` are not used, and neither are URLs that lead anywhere else.

        Args:
            site: whose store this is; an operator's name with `below="bundles"`.
            below: where it has a prefix of its own.

        Raises:
            ConfigError: plain text is not allowed there, or a certificate file or the proxy's URL is wrong.
        """
        self._where = str(url)
        self._url = url
        self._own = f"{below}/{check_site(site)}/"
        self._deadline = url.deadline
        self._requests = _UrlRequests(ask)
        said = connection or Connection()
        self._http, self._patience = open_http(url, insecure=said.insecure, proxy=said.proxy, environ=environ)

    @classmethod
    def from_url(
        cls, url: str, ask: Ask, site: str, *, below: str = "up", connection: Connection | None = None
    ) -> PresignedBlobs:
        """Open `s3(s)://host:port/bucket`."""
        tls = None if connection is None else connection.tls
        return cls(parse_s3_url(url, tls, environ={}), ask, site, below=below, connection=connection)

    def __repr__(self) -> str:
        return f"PresignedBlobs({self._where!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        check_key(key)
        if not key.startswith(self._own):
            self._refuse(f"put {key}: only what lies below {self._own} is put here")

        def send(url: str) -> None:
            # The length said in advance: otherwise the body would go in chunks, which not every store takes.
            self._done(self._http.urlopen("PUT", url, body=data, headers={"Content-Length": str(len(data))}).status)

        self._with_url(f"put {key} ({len(data)} bytes)", _Want(put=True, key=key), send)

    def get(self, key: str, limit: int) -> bytes:
        self._check_readable(key)
        return check_bytes(key, self._fetch(key, partial(self._http.collect, limit=limit)))

    def open(self, key: str, limit: int) -> Chunk:
        if limit > limits.CHUNK:
            return HeldChunk(self.get(key, limit), checked=True)
        self._check_readable(key)
        return receive_chunk(key, limit, lambda room: self._fetch(key, partial(self._http.receive, room=room)))

    def has(self, key: str) -> bool:
        """Always forbidden: whether an object is there cannot be asked by such URLs; put it again instead."""
        check_key(key)
        self._refuse(f"look for {key}: not possible by signed URLs")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Always forbidden: sites do not list."""
        check_prefix(prefix)
        self._refuse(f"list {prefix or 'everything'}: sites do not list what is stored")

    def delete(self, key: str) -> None:
        """Always forbidden: the aggregator sweeps."""
        check_key(key)
        self._refuse(f"delete {key}: only the aggregator deletes")

    def put_head(self, name: str, data: bytes) -> None:
        """Always forbidden: heads are the aggregator's."""
        check_head(name)
        self._refuse(f"put the head of {name}: only the aggregator does")

    def get_head(self, name: str, limit: int) -> bytes | None:
        """The current head as the aggregator sent it, got by URL if it is too large for that, or None."""
        key = head_key(check_head(name))
        head = self._requests.ask(Request(puts=(), gets=())).head
        if not head:
            try:
                return self._fetch(key, partial(self._http.collect, limit=limit))
            except Missing:
                return None
        if len(head) > limit:
            raise TooLarge(f"head of {name}: {len(head)} bytes, at most {limit} expected")
        return head

    def close(self) -> None:
        """Release connections; calls that are waiting to try again give up."""
        self._patience.close()

    def _check_readable(self, key: str) -> None:
        check_key(key)
        if not key.startswith(READABLE):
            self._refuse(f"get {key}: members read only below {' and '.join(READABLE)}")

    def _fetch(self, key: str, read: Callable[[BaseHTTPResponse, str], T]) -> T:
        def receive(url: str) -> T:
            response = self._http.urlopen("GET", url, preload_content=False)
            self._done(response.status)
            return read(response, f"{key} in {self._where}")

        return self._with_url(f"get {key}", _Want(put=False, key=key), receive)

    def _with_url(self, what: str, want: _Want, use: Callable[[str], T]) -> T:
        until = time.monotonic() + self._deadline
        for left in reversed(range(_FRESH)):
            url = self._checked(what, want.key, self._requests.url(want))
            try:
                return self._patience.call(what, partial(use, url), until=until)
            except Forbidden as error:
                if not left:
                    raise Forbidden(f"{error}, or of the machine that signed {_FRESH} URLs in a row") from None
        raise StoreError(f"{what}: no URL was tried")

    def _checked(self, what: str, key: str, url: str) -> str:
        """Return `url` if it leads to the object: a hub gone bad must not make us call on a neighbour."""
        if not self._url.addresses(url, key):
            self._refuse(
                f"{what}: the aggregator sent a URL that leads elsewhere; hub and site have to name the store by the"
                " same host, port, bucket and prefix"
            )
        return url

    def _done(self, status: int) -> None:
        if status != 200:
            raise ProtocolError(f"answer {status}")

    def _refuse(self, what: str) -> NoReturn:
        raise Forbidden(f"{what} (at {self._where}, which is used without credentials)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Want:
    put: bool
    key: str


class _Ticket:
    """One thread's want, and what came of it."""

    def __init__(self, want: _Want) -> None:
        self.want = want
        self.url: str | None = None
        self.trouble: StoreError | None = None

    @property
    def open(self) -> bool:
        return self.url is None and self.trouble is None


class _UrlRequests:
    """Asks for URLs; what other threads want while one request is on its way goes into the next one together."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: deque[_Ticket] = deque()
        self._turn = threading.Lock()

    def ask(self, request: Request) -> Grant:
        """The grant for `request`; whatever went wrong is a `StoreError`."""
        try:
            return self._ask(request)
        except TransportError as error:
            raise StoreError(f"the aggregator could not be asked for URLs: {error}") from error

    def url(self, want: _Want) -> str:
        """A fresh URL."""
        ticket = _Ticket(want)
        self._waiting.append(ticket)
        with self._turn:
            while ticket.open:
                self._serve([self._waiting.popleft() for _ in range(min(limits.URLS, len(self._waiting)))])
        if ticket.url is None:
            trouble = ticket.trouble or StoreError("no answer")
            raise type(trouble)(str(trouble)) from trouble
        return ticket.url

    def _serve(self, tickets: list[_Ticket]) -> None:
        puts = [ticket for ticket in tickets if ticket.want.put]
        gets = [ticket for ticket in tickets if not ticket.want.put]
        request = Request(
            puts=tuple(bytes.fromhex(ticket.want.key[-64:]) for ticket in puts),
            gets=tuple(ticket.want.key for ticket in gets),
        )
        try:
            urls = self.ask(request).urls
            if not urls:
                raise Forbidden("the aggregator gives this site no URLs for what it asked; ask its operator why")
            if len(urls) != len(tickets):
                raise StoreError(f"the aggregator sent {len(urls)} URLs where {len(tickets)} were asked for")
        except BaseException as error:
            # Whatever it is: the threads whose tickets these are must not wait for ever.
            for ticket in tickets:
                ticket.trouble = error if isinstance(error, StoreError) else StoreError(f"asking for URLs: {error!r}")
            if not isinstance(error, StoreError):
                raise
            return
        for ticket, url in zip((*puts, *gets), urls, strict=True):
            ticket.url = url
