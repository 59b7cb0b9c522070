"""Calls to a store over HTTP that are repeated until they succeed, cannot, or have taken too long."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog
from urllib3.exceptions import HTTPError, SSLError

from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.url import S3Url
from broker.net.backoff import full_jitter
from broker.net.proxy import Proxy, proxy_for
from broker.net.tls import check_plain
from protocol.errors import Forbidden, Missing, StoreError

_LASTING = frozenset({301, 302, 307, 308, 400, 405, 411, 413, 501})
_FULL = frozenset(
    {
        "InsufficientStorage",
        "QuotaExceeded",
        "ServiceQuotaExceeded",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
"""What servers say when there is no room, some of them with a status that usually means something else."""
_ELSEWHERE = frozenset(
    {"AuthorizationHeaderMalformed", "AuthorizationQueryParametersError", "PermanentRedirect", "TemporaryRedirect"}
)
_LONGEST_PAUSE_S = 5.0
_WARN_AT = frozenset({2, 4, 8, 16, 32, 64})  # one hiccup is no one's business, an outage is, but not at every try

_SILENT_S = 10.0
"""For how long one try has to have gone on for its failure to be told at once."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class NotYet(Exception):
    """What was asked for may work when it is tried again; says what is missing."""


class Patience:
    """Repeats a call with growing random pauses, and says in our own errors what the end of it was."""

    def __init__(
        self,
        http: BoundedPool,
        where: str,
        deadline: float,
        *,
        proxy: Proxy | None,
        faults: tuple[type[Exception], ...],
    ) -> None:
        """`where` names the store in errors, `deadline` is in seconds, `faults` are what a failed call raises."""
        self._http = http
        self._where = where
        self._deadline = deadline
        self._proxy = proxy
        self._faults = faults
        self._closed = threading.Event()

    def call(self, what: str, action: Callable[[], T], *, until: float | None = None) -> T:
        """Do `action` until it succeeds, cannot, or the deadline (`until`, by `time.monotonic`) is over.

        Raises:
            Missing: the server has no such object.
            Forbidden: it refuses this identity or this signature.
            StoreError: anything else that was the end of it.
        """
        deadline = time.monotonic() + self._deadline if until is None else until
        trouble = "none, there was no time left"
        # Full jitter keeps many workers from coming back together after an outage.
        for tries, pause in enumerate(full_jitter(random.Random(), base=0.1, cap=_LONGEST_PAUSE_S), 1):
            begun = time.monotonic()
            with self._http.until(deadline):
                try:
                    return action()
                except self._faults as error:
                    said = self._judge(what, error)
                    # The last try is often cut short by the deadline, which tells nothing of what is wrong.
                    trouble = said if tries == 1 or time.monotonic() < deadline else trouble
            silent = tries == 1 and time.monotonic() - begun > _SILENT_S
            if silent or tries in _WARN_AT:  # only the kind of trouble: what libraries say may hold a signed URL
                log.warning("store.retry", store=self._where, tries=tries, trouble=trouble.partition(":")[0])
            if time.monotonic() + pause >= deadline or self._closed.wait(pause):
                break
        ended = "the store was closed" if self._closed.is_set() else f"not done within {self._deadline:g} s"
        raise StoreError(f"{what} at {self._where}: {ended}; last trouble: {trouble}; it can be tried again later")

    def close(self) -> None:
        """Make calls that are waiting to try again give up, and release the connections."""
        self._closed.set()
        self._http.clear()

    def _judge(self, what: str, error: Exception) -> str:
        """Say in words what happened if trying again may help; raise what it means otherwise.

        Bodies of answers are not repeated: servers put access keys and signatures into them.
        """
        answer = self._http.answer
        if isinstance(error, SSLError) and any(isinstance(e, ssl.SSLCertVerificationError) for e in error.args):
            behind = "" if self._proxy is None else f" behind proxy {self._proxy}, which may be reading along"
            raise StoreError(
                f"{what} at {self._where}: the server's certificate is not trusted{behind}: {error}"
            ) from None
        if answer is None:
            return f"{type(error).__name__}: {error}"
        if isinstance(error, NotYet):
            return str(error)
        if answer.code in _FULL or answer.status == 507:
            return f"the store has no room left ({answer}), whoever runs it has to make some"
        if answer.status == 404:
            kind = "bucket" if answer.code == "NoSuchBucket" else "object"
            raise Missing(f"{what} at {self._where}: no such {kind} ({answer})") from None
        if answer.region and (answer.code in _ELSEWHERE or (not answer.code and answer.status in _LASTING)):
            raise StoreError(
                f"{what} at {self._where}: the bucket is in region {answer.region!r} ({answer}); whoever signs has to"
                f" write its host, or ?region={answer.region}, into the store's URL"
            ) from None
        if answer.status in (401, 403) or str(answer) == "400 AccessDenied":
            raise Forbidden(
                f"{what} at {self._where}: the store refused this identity ({answer});"
                " check access key, secret, this machine's clock and what the identity may do"
            ) from None
        if answer.status in _LASTING and answer.code != "RequestTimeout":
            raise StoreError(f"{what} at {self._where}: the store will not do this ({answer})") from None
        if answer.status == 500:
            return f"answer {answer}; the server's log says why, and a full disk is one reason"
        return f"answer {answer}" if answer.status >= 300 else f"{type(error).__name__}: {error}"


def open_http(
    url: S3Url,
    *,
    insecure: bool,
    proxy: str | None,
    environ: Mapping[str, str],
    faults: tuple[type[Exception], ...] = (HTTPError, OSError, ValueError),
) -> tuple[BoundedPool, Patience]:
    """Connections to the server of `url`, by its certificates and its proxy, and the patience for calls over them.

    Raises:
        ConfigError: plain text is not allowed there, or a certificate file or the proxy's URL is wrong.
    """
    check_plain(f"store {url}", url.host, encrypted=url.encrypted, insecure=insecure)
    if url.encrypted:
        url.files.context(f"store {url}")  # a wrong file is told now, not when the first call gives up
    way = proxy_for(url.host, url.port, encrypted=url.encrypted, explicit=proxy, environ=environ)
    http = BoundedPool(tls=url.files, proxy=way)
    return http, Patience(http, str(url), url.deadline, proxy=way, faults=faults)
