"""Intake: from a delivery's bytes to an event, or to the reason why not. No I/O; safe from any thread."""

from __future__ import annotations

from aggregator.domain import events
from aggregator.domain.state import SiteStatus, UpdateNotice
from aggregator.pipeline.envelope_cache import EnvelopeCache, OpenEnvelope
from broker.transport.base import Unacked
from protocol import topology
from protocol.commands import COMMANDS, COUNTER_AHEAD, LONGEST_COMMAND, TOLERANCE
from protocol.envelope import ContentKey, Verified, body, unlock, verify
from protocol.errors import Unauthorized, WireError
from protocol.keys import Identity, Role
from protocol.messages import Command, Evaluation, Event, Kind, Reply, Request, Update
from protocol.registry import Registry

FROM_SITES = frozenset({Kind.UPDATE, Kind.EVALUATION, Kind.REPLY, Kind.REQUEST})
LIVE_EVENTS = frozenset({Kind.EVENT})
COMMAND_KINDS = frozenset({Kind.COMMAND})


class Intake:
    """Reads messages under the registry in force."""

    def __init__(
        self, federation: str, identity: Identity, registry: Registry, opened: EnvelopeCache | None = None
    ) -> None:
        """`opened` is told of every update's blob, for those who will read it."""
        self._federation = federation
        self._identity = identity
        self._opened = opened
        self.registry = registry
        """Replaced as a whole when a newer one comes."""

    def update(self, site: str, delivery: Unacked, raw: bytes) -> events.FromSite:
        """What arrived in `in.<site>`: an update, evaluation, reply or request, or `DeliveryRefused`."""
        return self._read(site, topology.in_queue(site), delivery, raw, FROM_SITES)

    def live(
        self, site: str, delivery: Unacked, raw: bytes
    ) -> tuple[events.SiteSeen | events.DeliveryRefused, SiteStatus | None]:
        """What arrived in `events.<site>`: `SiteSeen` and the sign of life, or `DeliveryRefused` and None."""
        queue = topology.event_queue(site)
        try:
            verified, key = self._open(site, raw, LIVE_EVENTS)
            sign = SiteStatus(body(verified, Event, key), verified.core.run, verified.core.version)
            return events.SiteSeen(delivery=delivery, site=site, alive=sign.alive), sign
        except WireError as error:
            return events.DeliveryRefused(delivery=delivery, site=site, queue=queue, reason=error.reason, raw=raw), None

    def command(self, delivery: Unacked, raw: bytes, now: float) -> events.CommandArrived | events.DeliveryRefused:
        """What arrived in the aggregator's inbox: a `CommandArrived` or `DeliveryRefused`; `now` is the wall clock."""
        queue = topology.inbox_queue(topology.AGGREGATOR)
        try:
            verified, key = self._open(None, raw, COMMAND_KINDS)
            said = body(verified, Command, key)
        except WireError as error:
            return events.DeliveryRefused(delivery=delivery, site="", queue=queue, reason=error.reason, raw=raw)
        operator = verified.sender.name
        only: frozenset[str] | None = frozenset()
        objection, text = self._objection(said, now)
        if objection == "ok":
            try:
                only = self._reach(operator, said)
            except Unauthorized as error:
                objection, text = error.reason, str(error)
        return events.CommandArrived(
            delivery=delivery,
            operator=operator,
            counter=said.counter,
            command=said.command,
            signer=verified.core.sender,
            id=verified.core.id,
            arguments=said.arguments,
            targets=said.targets,
            raw=raw,
            objection=objection,
            text=text,
            only=only,
        )

    def _objection(self, said: Command, now: float) -> tuple[str, str]:
        """Why a genuine command is not to be carried out: a word and a sentence."""
        if said.counter > (now + TOLERANCE) * 1000:
            return COUNTER_AHEAD, "the order's number is from the future; set this machine's clock and send it again"
        if len(set(said.targets)) != len(said.targets):
            return "bad_argument", "a site is named twice"
        if not now < said.expires <= now + LONGEST_COMMAND + TOLERANCE:
            return "expired", "the command is too old or from the future; compare the clocks and send it again"
        return "ok", ""

    def _reach(self, operator: str, said: Command) -> frozenset[str] | None:
        """The sites that the answer may be about, None for all; of what nobody knows there is no answer.

        Raises:
            Unauthorized: the operator may not give this command.
        """
        known = COMMANDS.get(said.command)
        if known is None:
            return frozenset()
        if known.of_sites:
            return self.registry.rights.reach(operator, known.action, topology.AGGREGATOR)
        self.registry.rights.check(operator, known.action, said.targets if known.at_sites else (topology.AGGREGATOR,))
        return None

    def _read(self, site: str, queue: str, delivery: Unacked, raw: bytes, kinds: frozenset[Kind]) -> events.FromSite:
        try:
            verified, key = self._open(site, raw, kinds)
            if verified.kind == Kind.REPLY:
                return self._reply(site, delivery, verified, body(verified, Reply, key))
            if verified.kind == Kind.REQUEST:
                request = body(verified, Request, key)
                return events.RequestArrived(delivery=delivery, site=site, id=verified.core.id, request=request)
            if verified.kind == Kind.EVALUATION:
                return events.EvaluationArrived(
                    delivery=delivery,
                    site=site,
                    run=verified.core.run,
                    version=verified.core.version,
                    evaluation=body(verified, Evaluation, key),
                )
            return events.UpdateArrived(delivery=delivery, notice=_notice(site, verified, body(verified, Update, key)))
        except WireError as error:
            return events.DeliveryRefused(delivery=delivery, site=site, queue=queue, reason=error.reason, raw=raw)

    def _reply(self, site: str, delivery: Unacked, verified: Verified, reply: Reply) -> events.ReplyArrived:
        operators = self.registry.members(Role.OPERATOR)
        return events.ReplyArrived(
            delivery=delivery,
            site=site,
            command=reply.message,
            ok=reply.ok,
            reason=reply.reason,
            operators=tuple(each.name for each in operators if each.box_kid in verified.recipients),
            raw=verified.raw,
        )

    def _open(self, site: str | None, raw: bytes, kinds: frozenset[Kind]) -> tuple[Verified, ContentKey]:
        verified = verify(raw, self.registry, federation=self._federation, kinds=kinds)
        if site is not None and verified.sender.name != site:
            raise WireError(f"{verified.sender.name} wrote into the queue of {site}", "wrong_site")
        key = unlock(verified, self._identity)
        if verified.manifest is not None and self._opened is not None:
            self._opened.put(raw, OpenEnvelope(verified.sender.name, verified.manifest, key))
        return verified, key


def _notice(site: str, verified: Verified, body: Update) -> UpdateNotice:
    core = verified.core
    return UpdateNotice(
        id=core.id,
        site=site,
        run=core.run,
        epoch=core.epoch,
        sequence=core.sequence,
        base_version=core.version,
        spec=core.spec,
        length=core.length,
        encoding=body.encoding.name,
        examples=body.examples,
        seconds=body.seconds,
        absent=body.absent,
        envelope=verified.raw,
        bundle=body.bundle,
        steps=body.steps,
        metrics=body.metrics,
    )
