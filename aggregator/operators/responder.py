"""The responder: operators are answered, sites that ask for something are served. Nothing here changes a run."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

import nacl.utils
import structlog

from aggregator.domain import effects, events
from aggregator.domain.state import SiteStatus
from aggregator.operators.admin_access import AdminAccess
from aggregator.operators.attestations import attest
from aggregator.operators.letter_replay import Again, LetterReplay
from aggregator.operators.queries import look_up
from aggregator.operators.view import QueryContext
from broker.blobs.s3.grants import Granted
from broker.transport.base import Transport
from protocol import limits, topology
from protocol.codec import Value, encode
from protocol.envelope import seal
from protocol.errors import ConfigError, FledgeError
from protocol.keys import Identity
from protocol.messages import Grant, Kind, Reply, Request

log = structlog.get_logger("aggregator")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LATER = frozenset({"queue.list", "registry.put", "upload.urls", "download.urls"})
"""Commands that wait for others than the journal."""
_TEXT = 1024
_LOGIN_STAYS = (
    "the site is revoked, but its login at the broker stays, since this aggregator has no FLEDGE_MANAGEMENT: delete the"
    " site's user there by hand, or sign a registry that revokes it and run `fledge deploy broker`"
)
_STORE_STAYS = "the site is cut off; an identity of its own at the store stays until whoever runs that takes it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubActions:
    """What the responder has others do."""

    head: Callable[[], bytes]
    """Gives the newest signed head."""
    again: Again
    """Hands refused bytes to intake once more."""
    tell: Callable[[events.Prepared], None]
    """Tells the rules what came of slow work."""
    put_registry: Callable[[bytes], None]
    """Puts a newer signed registry in force."""
    later: Callable[[Callable[[], None]], object]
    """Runs what has to wait for others on a thread of its own."""


class Responder:
    """Answers operators and serves sites, on the thread that owns the journal; publishing never waits."""

    def __init__(
        self,
        federation: str,
        identity: Identity,
        transport: Transport,
        *,
        queries: QueryContext,
        access: AdminAccess,
        actions: HubActions,
    ) -> None:
        """`queries`: what there is to look at, as it was when the aggregator began."""
        self.registry = queries.registry
        self._federation = federation
        self._identity = identity
        self._transport = transport
        self._queries = queries
        self._access = access
        self._actions = actions
        self._signs: dict[str, SiteStatus] = {}

    def seen(self, site: str, sign: SiteStatus) -> None:
        """Note a site's newest sign of life; safe from any thread."""
        self._signs[site] = sign.after(self._signs.get(site))

    def serve(self, effect: effects.Answering) -> None:
        """Carry out an effect that answers somebody."""
        match effect:
            case effects.AnswerCommand():
                self._tell(effect)
            case effects.LookUp(command=command) if command.command == "dead.replay":
                self._replay(command)
            case effects.LookUp(command=command) if command.command in _LATER:
                self._actions.later(partial(self._obey, effect))
            case effects.LookUp():
                self._obey(effect)
            case effects.GrantUrls(request=request):
                self._actions.later(partial(self._grant, request))  # signing hundreds of URLs takes a while
            case effects.CutOff(site=site):
                self._actions.later(partial(self._cut_off, site))
            case _:
                assert_never(effect)

    def _tell(self, told: effects.AnswerCommand) -> None:
        sites = sorted(told.seen)
        values: dict[str, Value] = {"site": tuple(sites), "seen": tuple(round(told.seen[site], 1) for site in sites)}
        values = values if 0 < len(sites) <= limits.PLAINS else {}
        if told.counter:
            values["counter"] = told.counter
        text = told.text
        if told.cut_off:
            text = _STORE_STAYS if self._access.cut_off is not None else _LOGIN_STAYS
        self._answer(told.operator, told.command, told.reason, text, {**values, **told.values})

    def _obey(self, asked: effects.LookUp) -> None:
        command = asked.command
        reason, text, values = "ok", "", dict[str, Value]()
        try:
            values = self._values(asked)
        except FledgeError as error:
            reason, text = "not_possible", str(error)[:_TEXT]
        except Exception as error:  # a question that finds a defect of ours is answered, too
            log.exception("question.failed", command=command.command)
            reason, text = "not_possible", f"the aggregator could not answer ({type(error).__name__}); see its log"
        self._answer(command.operator, command.id, reason, text, values)

    def _values(self, asked: effects.LookUp) -> dict[str, Value]:
        match asked.command.command:
            case "registry.put":
                return self._take_registry(asked.command)
            case "upload.urls" | "download.urls":
                return self._sign(asked.command)
            case _:
                return self._look_up(asked)

    def _look_up(self, asked: effects.LookUp) -> dict[str, Value]:
        command = asked.command
        view = replace(self._queries, registry=self.registry, signs=dict(self._signs), seen=asked.seen)
        view = view.narrowed(command.only)
        values = look_up(command.command, command.arguments, view)
        if command.command == "update.receipt":
            values |= attest(view, command.arguments, self._identity, self._federation, time.time())
        return values

    def _replay(self, command: events.CommandArrived) -> None:
        """Its answer comes from the rules, once they are done with all messages."""
        try:
            LetterReplay(self._queries.history, command, self._actions.tell).start(self._actions.again)
        except FledgeError as error:
            self._answer(command.operator, command.id, "not_possible", str(error)[:_TEXT], {})

    def _take_registry(self, command: events.CommandArrived) -> dict[str, Value]:
        """The root has signed a newer registry, and an operator brings it; only the signature counts."""
        lines = command.arguments.get("record", ())
        texts = [line for line in lines if isinstance(line, str)] if isinstance(lines, tuple) else []
        if not isinstance(lines, tuple) or len(texts) != len(lines):
            raise ConfigError("record: the signed registry in base64, a list of lines, is needed")
        try:
            record = base64.b64decode("".join(texts), validate=True)
        except ValueError as error:
            raise ConfigError(f"record: {error}; the signed registry in base64 is needed") from error
        self._actions.put_registry(record)
        return {}

    def _answer(self, operator: str, command: bytes, reason: str, text: str, values: dict[str, Value]) -> None:
        reply = Reply(message=command, ok=reason == "ok", reason=reason, text=text, values=values)
        if len(encode(reply)) > limits.BODY:
            text = "the answer is too large for a message; ask for fewer rows, by a limit"
            reply = Reply(message=command, ok=False, reason="too_large", text=text, values={})
        self._send(operator, Kind.ANSWER, reply)

    def _grant(self, asked: events.RequestArrived) -> None:
        request, granter, now = asked.request, self._access.granter, time.time()
        if not (request.puts or request.gets):
            granted = Granted(urls=(), expires=int(now))
        elif granter is None:
            refused = "this aggregator signs no URLs; give the site credentials for the store"
            granted = Granted(urls=(), expires=int(now), refused=refused)
        else:
            granted = granter.grant(asked.site, request, now)
        if granted.refused:
            log.warning("grant.refused", site=asked.site, why=granted.refused)
        self._send(asked.site, Kind.GRANT, granted.answer(asked.id, self._actions.head()))

    def _sign(self, command: events.CommandArrived) -> dict[str, Value]:
        """URLs for an operator without credentials for the store."""
        if self._access.granter is None:
            raise ConfigError("this aggregator signs no URLs; operators need credentials for the store here")
        request = Request(puts=_digests(command.arguments.get("puts")), gets=_texts(command.arguments.get("gets")))
        granted = self._access.granter.grant_operator(command.operator, request, time.time())
        if granted.refused:
            raise ConfigError(granted.refused)
        return {"urls": granted.urls, "expires": granted.expires}

    def _cut_off(self, site: str) -> None:
        """A broker that cannot be told now is told at the next start; the site's signatures count no more anyway."""
        if self._access.cut_off is None:
            log.warning("site.login_kept", site=site, todo="delete the site's user at the broker")
            return
        try:
            self._access.cut_off(site)
            log.info("site.cut_off", site=site)
        except Exception as error:  # whatever it is, the operator has to hear of it
            log.error("site.not_cut_off", site=site, kind=type(error).__name__, error=str(error))

    def _send(self, name: str, kind: Kind, body: Reply | Grant) -> None:
        try:
            raw = seal(
                self._identity,
                kind,
                body,
                [self.registry.member(name)],
                federation=self._federation,
                message_id=nacl.utils.random(16),
            )
            self._transport.publish(topology.DIRECT, name, raw)
        except FledgeError as error:
            log.warning("answer.dropped", to=name, error=str(error))


def _digests(given: object) -> tuple[bytes, ...]:
    texts = _texts(given)
    if not all(_DIGEST.fullmatch(text) for text in texts):
        raise ConfigError("puts: SHA-256 digests in hexadecimal digits are needed")
    return tuple(map(bytes.fromhex, texts))


def _texts(given: object) -> tuple[str, ...]:
    if not isinstance(given, tuple | None) or not all(isinstance(text, str) for text in given or ()):
        raise ConfigError("puts and gets: lists of texts are needed")
    return given or ()
