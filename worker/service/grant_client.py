"""Hello to the hub, and URLs from it: signed requests up, signed grants back, nothing of it written down.

A grant is the proof that the hub knows this site now: its signature, sealed for this site, about a request made here.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import nacl.utils

from broker.runtime.health import Health
from broker.transport.base import Transport
from protocol.envelope import body, seal, unlock, verify
from protocol.errors import FledgeError, StoreError
from protocol.messages import Grant, Kind, Request
from protocol.topology import up_exchange
from worker.domain.events import HubAnswered
from worker.pipeline.context import SiteContext

_WAIT_S = 30.0
"""Seconds in which the hub answers, or is taken to be away."""
_HELLO = Request(puts=(), gets=())


class GrantClient:
    """One site's requests on their way; safe from any thread."""

    def __init__(self, context: SiteContext, transport: Transport, health: Health) -> None:
        self._context = context
        self._site = context.site
        self._reader = context.reader
        self._log = context.log
        self._transport = transport
        self._health = health
        self.accepted = threading.Event()
        """Set when the hub has answered this process for the first time."""
        self._changed = threading.Condition()
        self._waiting: dict[bytes, Grant | None] = {}
        self._hellos: deque[bytes] = deque(maxlen=8)

    def hello(self) -> None:
        """Ask for nothing but an answer; a hello that is lost is said again at the next connection."""
        id = nacl.utils.random(16)
        self._hellos.append(id)
        try:
            self._publish(id, _HELLO)
        except FledgeError as error:
            self._log.debug("hello.dropped", error=str(error))

    def ask(self, request: Request) -> Grant:
        """Ask and wait for the answer; from a thread that may wait.

        Raises:
            StoreError: the aggregator has not answered in time, or the broker is away; asking again may help.
        """
        id = nacl.utils.random(16)
        with self._changed:
            self._waiting[id] = None
        try:
            self._publish(id, request)
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[id] is not None, _WAIT_S)
        except FledgeError as error:
            raise StoreError(f"the hub cannot be asked for URLs: {error}") from error
        finally:
            with self._changed:
                granted = self._waiting.pop(id)
        if granted is None:
            raise StoreError(
                f"the hub has granted nothing within {_WAIT_S:.0f} s; it is away or does not know this site"
            )
        return granted

    def take(self, raw: bytes) -> None:
        """A grant has come; one that answers no request of this process says nothing about now.

        Raises:
            WireError: it is not one for this site.
        """
        reader = self._reader()
        verified = verify(raw, reader.registry, federation=reader.federation, kinds=(Kind.GRANT,))
        grant = body(verified, Grant, unlock(verified, reader.identity))
        with self._changed:
            if grant.message in self._waiting:
                self._waiting[grant.message] = grant
                self._changed.notify_all()
            elif grant.message not in self._hellos:
                self._log.debug("grant.not_asked_for")
                return
        self._accepted(grant.head)

    def _accepted(self, head: bytes) -> None:
        """The hub has answered: it knows this site now; `head` is the signed head it sent along, maybe empty."""
        self._health.accepted()
        self._context.tell(HubAnswered())
        if not self.accepted.is_set():
            self.accepted.set()
            self._log.info("worker.accepted")
        if head:
            self._context.tell(self._reader().head(head, time.time()))

    def _publish(self, id: bytes, request: Request) -> None:
        reader = self._reader()
        raw = seal(
            reader.identity, Kind.REQUEST, request, reader.aggregators, federation=reader.federation, message_id=id
        )
        self._transport.publish(up_exchange(self._site), "", raw)
