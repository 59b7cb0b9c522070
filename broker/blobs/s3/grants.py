"""What members without credentials for the store may have URLs for; pure but for the signers, which compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from broker.blobs.base import is_key
from protocol import limits
from protocol.messages import Grant, Request
from protocol.topology import bundle_key, head_key, update_chunk

VALID_S = 3600
"""Seconds a URL is good for."""
READABLE = ("models/", "records/")
"""Where objects lie that every member may get."""


class Signer(Protocol):
    """Signs URLs of one bucket without asking its server; `S3Blobs` does."""

    def presign_put(self, key: str, seconds: int, *, at: float | None = None) -> str:
        """A URL to put the object, good for `seconds` from `at` (seconds since the epoch)."""

    def presign_get(self, key: str, seconds: int, *, at: float | None = None) -> str:
        """A URL to get the object, good for `seconds` from `at`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The URLs, one for each thing asked for in that order, or why there are none."""

    urls: tuple[str, ...]
    expires: int
    """Seconds since the epoch."""
    refused: str = ""
    """Empty unless the request was refused as a whole; never holds a URL."""

    def answer(self, message: bytes, head: bytes | None) -> Grant:
        """The grant to send: `message` is the request's id, `head` the newest one, left out if it is too large."""
        told = head if head is not None and len(head) <= limits.HEAD else b""
        return Grant(message=message, head=told, urls=self.urls, expires=self.expires)


class Granter:
    """Turns requests into URLs: what is one's own up; models, records and (for sites) the head down; no more."""

    def __init__(self, up: Signer, down: Signer, federation: str) -> None:
        """Take the signers: `up` an identity that can only put `up/*` and `bundles/*`, `down` one that only gets.

        Both must be opened by the URL under which members reach the store, because its host is part of the signature.
        """
        self._up = up
        self._down = down
        self._head = head_key(federation)

    def grant(self, site: str, request: Request, now: float) -> Granted:
        """What `site`, whose signature was verified, gets for `request`; all it asks for or nothing."""
        return self._grant(partial(update_chunk, site), self._readable, request, now)

    def grant_operator(self, operator: str, request: Request, now: float) -> Granted:
        """What `operator` gets: `request.puts` below their own prefix, `request.gets` among what is published."""
        return self._grant(partial(bundle_key, operator), _published, request, now)

    def _grant(
        self, key_of: Callable[[str], str], readable: Callable[[str], bool], request: Request, now: float
    ) -> Granted:
        expires = int(now) + VALID_S
        asked = len(request.puts) + len(request.gets)
        if asked > limits.URLS:
            return Granted(urls=(), expires=expires, refused=f"{asked} URLs at once, at most {limits.URLS}")
        foreign = sum(not readable(key) for key in request.gets)
        if foreign:  # their names are the asker's words and are not repeated
            return Granted(urls=(), expires=expires, refused=f"{foreign} of {asked} objects are not published")
        puts = [self._up.presign_put(key_of(name.hex()), VALID_S, at=now) for name in request.puts]
        gets = [self._down.presign_get(key, VALID_S, at=now) for key in request.gets]
        return Granted(urls=(*puts, *gets), expires=expires)

    def _readable(self, key: str) -> bool:
        return key == self._head or _published(key)


def _published(key: str) -> bool:
    return key.startswith(READABLE) and is_key(key)
