"""An HTTP connection pool for a store that is not trusted: every wait has an end and every answer a largest size."""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError, ProtocolError

from broker.net.proxy import HopError, Proxy, connect_through
from broker.net.tls import Tls
from protocol.errors import ConfigError, TooLarge

# It logs whole addresses, and any holder of a signed one may use it.
logging.getLogger("urllib3").setLevel(logging.ERROR)

CONNECT_S = 5.0
PROXIED_S = 15.0
"""Seconds for a connection through a proxy, which resolves names, dials and inspects at its own pace."""
SILENCE_S = 30.0
_PIECE = 256 * 1024
_MAX_ANSWER = 4 * 1024 * 1024
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_REGION = re.compile(rb"<Region>([A-Za-z0-9-]{1,64})</Region>")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What the server said to a request."""

    status: int
    code: str = ""
    """The code word of an S3 error; empty if there was none."""
    region: str = ""
    """The region that a signature was expected for; empty if the server named none."""

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


class BoundedPool(PoolManager):
    """Connections for use by many threads; each thread sets the deadline of its own calls.

    Bodies are sent in pieces, because a socket's timeout covers one whole send: eight megabytes in one piece would
    have to be through within the five seconds meant for connecting. Certificates are read anew for every connection.
    """

    def __init__(self, *, tls: Tls | None = None, proxy: Proxy | None = None, connections: int = 16) -> None:
        """Prepare; `tls` is for https alone, and whether its files can be used shows with the first connection."""
        super().__init__(maxsize=connections, retries=False, blocksize=_PIECE)
        self._connect_s = CONNECT_S if proxy is None else PROXIED_S
        self._calls = threading.local()
        self.pool_classes_by_scheme = _pools(tls or Tls(), proxy, self._calls, self.check_deadline)

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Let this thread's calls end at `deadline` (`time.monotonic`) and forget the last answer."""
        self._calls.deadline = deadline
        self._calls.answer = self._calls.body = None
        try:
            yield
        finally:
            del self._calls.deadline, self._calls.body

    @property
    def answer(self) -> HttpAnswer | None:
        """What the server said last to this thread; None if the request got no answer."""
        answer: HttpAnswer | None = getattr(self._calls, "answer", None)
        return answer

    def check_deadline(self) -> float:
        """Seconds left for this thread's call; `TimeoutError` when none are."""
        left: float = self._calls.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed during the transfer")
        return left

    # The library's own signature ends in **kw as well.
    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, *, preload_content: bool = True, **kw: object
    ) -> BaseHTTPResponse:
        """Send one request, follow nothing, repeat nothing; answers that are read here are bounded."""
        left = self.check_deadline()
        self._calls.answer = None
        body = kw.get("body")
        if isinstance(body, bytes | bytearray | memoryview) and body:
            kw["body"] = self._pieces(memoryview(body))
        kw["timeout"] = Timeout(connect=min(self._connect_s, left), read=min(SILENCE_S, left))
        response = super().urlopen(method, url, redirect=False, preload_content=False, **kw)
        if response.status == 200 and not preload_content:
            self._calls.answer = HttpAnswer(response.status)
            return response
        data = b"" if method == "HEAD" else self.read(response, _MAX_ANSWER)
        response.release_conn()
        if len(data) > _MAX_ANSWER:
            response.close()
            raise ProtocolError(f"the answer is longer than {_MAX_ANSWER} bytes")
        self._calls.answer = _answer_of(response, data)
        return HTTPResponse(
            io.BytesIO(data),
            headers=response.headers,
            status=response.status,
            request_method=method,
            decode_content=False,
            enforce_content_length=False,
        )

    def read(self, response: BaseHTTPResponse, limit: int) -> bytes:
        """The body, or its first `limit` + 1 bytes or a little more if it is longer; never decompressed."""
        body = bytearray()  # one block, where pieces kept until the end would leave the heap full of holes
        while len(body) <= limit:
            self.check_deadline()
            piece = response.read(min(_PIECE, limit + 1 - len(body)), decode_content=False)
            if not piece:
                break
            body += piece
        return bytes(body)

    def collect(self, response: BaseHTTPResponse, what: str, limit: int) -> bytes:
        """The whole body of a streamed answer, whose connection is given back or, after any error, closed.

        Raises:
            TooLarge: it has more than `limit` bytes; checked before they are read if the server declares its size.
        """
        with _read_whole(response, what, limit):
            data = self.read(response, limit)
            if len(data) > limit:
                raise TooLarge(f"{what}: more than the expected {limit} bytes; reading was stopped")
        return data

    def receive(self, response: BaseHTTPResponse, what: str, room: memoryview) -> tuple[int, str]:
        """As `collect`, but into `room`, which is the limit, and without a copy; call it where the answer was got.

        Returns:
            The body's size, and its SHA-256 in hex: each piece is hashed while the processor's cache still holds it.
        """
        body: http.client.HTTPResponse = self._calls.body
        size, found = 0, hashlib.sha256()
        with _read_whole(response, what, len(room)) as declared:
            try:
                while got := self._receive(body, room[size : size + _PIECE]):
                    found.update(room[size : size + got])
                    size += got
                if size == len(room) and self._receive(body, memoryview(bytearray(1))):
                    raise TooLarge(f"{what}: more than the expected {size} bytes; reading was stopped")
            except http.client.HTTPException as error:
                raise ProtocolError(f"the answer is cut short or garbled: {error!r}") from error
            if declared is not None and size != declared:
                raise ProtocolError(f"the answer ends after {size} of {declared} bytes")
            body.close()
        return size, found.hexdigest()

    def _receive(self, body: http.client.HTTPResponse, room: memoryview) -> int:
        self.check_deadline()
        return body.readinto(room) if room else 0

    def _pieces(self, data: memoryview) -> Iterator[memoryview]:
        """A body on its way out: views of it; the next one fails once the deadline has passed."""
        for start in range(0, len(data), _PIECE):
            self.check_deadline()
            yield data[start : start + _PIECE]


@contextmanager
def _read_whole(response: BaseHTTPResponse, what: str, limit: int) -> Iterator[int | None]:
    """Give the connection back once the body was read, or close it after any error; yields the size that is declared.

    Raises:
        TooLarge: it is over the limit.
    """
    try:
        said = response.headers.get("Content-Length", "")
        declared = int(said) if said.isdecimal() else None
        if declared is not None and declared > limit:
            raise TooLarge(f"{what}: {declared} bytes, at most {limit} expected; refused unread")
        yield declared
    except BaseException:
        response.close()
        raise
    response.release_conn()


def _answer_of(response: BaseHTTPResponse, data: bytes) -> HttpAnswer:
    if response.status < 300:
        return HttpAnswer(response.status)
    code, told = _CODE.search(data), response.headers.get("x-amz-bucket-region", "").encode("latin-1", "replace")
    region = _REGION.search(data) or _REGION.fullmatch(b"<Region>%b</Region>" % told)
    return HttpAnswer(response.status, code[1].decode() if code else "", region[1].decode() if region else "")


# A server that refuses a large body answers and closes while it is still being sent. urllib3 then reads the answer
# after a BrokenPipeError, but not after the two other errors by which the same thing shows itself.
_HUNG_UP = (ConnectionResetError, ssl.SSLEOFError)


class _Connection(HTTPConnection):
    proxy_hop: Proxy | None = None

    def _new_conn(self) -> socket.socket:
        return _through(self, self.proxy_hop) or super()._new_conn()

    def send(self, data: Any) -> None:  # as http.client has it: the type of what can be sent has no public name
        try:
            super().send(data)
        except _HUNG_UP as error:
            raise BrokenPipeError(str(error)) from error


class _TlsConnection(_Connection, HTTPSConnection):
    files = Tls()

    def connect(self) -> None:
        try:
            self.ssl_context = self.files.context("this connection")
        except ConfigError as error:  # files that are just being replaced fit again soon
            raise NewConnectionError(self, str(error)) from error
        super().connect()


def _pools(
    tls: Tls, proxy: Proxy | None, calls: threading.local, left: Callable[[], float]
) -> dict[str, type[HTTPConnectionPool]]:
    """The classes of pools whose connections are made like that: urllib3 makes both by itself.

    Args:
        calls: gets the `body` of this thread's last answer, which can be read into a buffer; urllib3's own copies.
        left: seconds that a call still has; `TimeoutError` when there are none.
    """

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
            super().__init__(sock, debuglevel, method)
            self.fp = io.BufferedReader(_Heard(self.fp.detach(), sock, left))
            calls.body = self

    class Connection(_Connection):
        proxy_hop = proxy
        response_class = Answer

    class TlsConnection(_TlsConnection):
        proxy_hop = proxy
        files = tls
        response_class = Answer

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    return {"http": Pool, "https": TlsPool}


def _through(connection: HTTPConnection, proxy: Proxy | None) -> socket.socket | None:
    if proxy is None:
        return None
    try:
        return connect_through(proxy, connection.host, connection.port, float(connection.timeout or CONNECT_S))
    except HopError as error:
        raise NewConnectionError(connection, str(error)) from error


class _Heard(io.RawIOBase):
    """What a server says, heard until the deadline: one that says a little now and then gets no more time by it.

    A socket's timeout covers one read, and of status lines, headers, `100 Continue` and sizes of chunks the library
    reads as many as the server sends.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, left: Callable[[], float]) -> None:
        self._raw = raw
        self._sock = sock
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:  # Python 3.11 has no public name for what can be filled
        wait = min(SILENCE_S, self._left())
        if wait != self._sock.gettimeout():  # setting it is a call to the kernel, for each 16 KiB over TLS
            self._sock.settimeout(wait)
        return self._raw.readinto(buffer)

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()
