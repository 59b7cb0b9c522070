"""An operator's end of the line: commands signed here, answers checked here; nothing but the broker is needed.

A command goes to the aggregator, which hands it on to the sites it is for. Every answer is signed by who gives it and
sealed for the operator; a kit whose registry is older than the federation's asks for the newest one by itself.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import nacl.utils
import structlog

from broker.blobs.base import BlobStore
from broker.transport.base import Delivery, Transport
from protocol import topology
from protocol.codec import Plain, Value
from protocol.commands import COMMANDS, CommandSpec
from protocol.envelope import body, seal, unlock, verify
from protocol.errors import ConfigError, Malformed, TransportError, Untrusted, WireError
from protocol.keys import Identity, Participant, Role
from protocol.messages import Command, Kind, Reply
from protocol.registry import Registry, open_registry

Arguments = Mapping[str, Value]
"""What is said with a command, by name."""
log = structlog.get_logger("operator")
GOOD_FOR_S = 600
"""Seconds until a command that has not arrived is refused."""
_LATELY_S = 60.0
"""Seconds below which nothing is said of when a site was last heard of: it may be busy, or the hub has just begun."""
_ANSWERS = frozenset({Kind.ANSWER, Kind.REPLY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to a command."""

    sender: str
    """`aggregator`, or a site."""
    ok: bool
    reason: str
    """`ok`, or the fixed word that says why not."""
    text: str
    """A sentence for people; escape control characters when it is shown."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """Plain values; a table is a tuple for each column, all of one length."""

    def column(self, name: str) -> tuple[Plain, ...]:
        """One column of the table; empty if the answer has no such column."""
        found = self.values.get(name)
        return found if isinstance(found, tuple) else ()

    @property
    def why(self) -> str:
        """Of a refusal: the sentence, or else the word."""
        return self.text or self.reason


@dataclass(slots=True)
class _Asked:
    """A command that is on its way."""

    id: bytes
    said: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KitAccess:
    """What a console does with its kit's files."""

    opened: Callable[[Console], AbstractContextManager[BlobStore]] | None = None
    """Opens the store for a console, when it is needed."""
    keep_registry: Callable[[bytes], None] = lambda record: None
    """Is given newer signed registries."""
    alone: Callable[[float], AbstractContextManager[object]] = nullcontext
    """Held while a command is answered, for at most so many seconds' wait: an operator has one inbox, and two readers
    would take each other's answers. By default no other process reads it."""


class Console:
    """Sends commands in one operator's name and collects the answers; one command at a time."""

    def __init__(
        self,
        identity: Identity,
        federation: str,
        root: bytes,
        registry: Registry,
        transport: Transport,
        kit: KitAccess | None = None,
    ) -> None:
        """Prepare; the transport stays the caller's to close."""
        self.name = identity.name
        self.registry = registry
        """The newest list of members known here."""
        self.identity = identity
        self.federation = federation
        self._root = root
        self._transport = transport
        self._kit = kit or KitAccess()
        self._counter = 0
        self._changed = threading.Condition()
        self._asked: _Asked | None = None
        self._strangers = False

    def store(self) -> AbstractContextManager[BlobStore]:
        """The store, opened anew; closed at the end of the block.

        Raises:
            ConfigError: this console has no way to it.
        """
        if self._kit.opened is None:
            raise ConfigError("this console has no way to the store; open it with a kit that names one")
        return self._kit.opened(self)

    def ask(
        self, command: str, arguments: Arguments, targets: Sequence[str] = (), timeout: float = 10.0
    ) -> list[Answer]:
        """Send a command and return what was answered within `timeout` seconds, the aggregator's word first.

        A command for sites is answered by each of them; for one that was not heard of in time, the answer
        `no_answer` says since when, and the command waits for it in its queue.

        Raises:
            ConfigError: there is no such command, or it needs sites, or one of them is unknown.
            TransportError: the broker does not take it.
        """
        spec = COMMANDS.get(command)
        if spec is None:
            raise ConfigError(f"there is no command {command!r}; `fledge ctl --help` lists what there is")
        if bool(targets) != spec.at_sites:
            raise ConfigError(f"{command}: {'name at least one site' if spec.at_sites else 'this is not for sites'}")
        deadline = time.monotonic() + timeout
        with self._kit.alone(timeout):
            inbox = self._transport.consume(topology.inbox_queue(self.name), self._take)
            try:
                return self._converse(spec, arguments, targets, deadline)
            finally:
                inbox.cancel()

    def _converse(
        self, spec: CommandSpec, arguments: Arguments, targets: Sequence[str], deadline: float
    ) -> list[Answer]:
        """Ask, and ask again if the list of members turned out to be too old."""
        command = spec.name
        if not self._sites().issuperset(targets):
            self._refresh(deadline)
        said = self._ask(command, arguments, targets, deadline)
        hub = said.get(topology.AGGREGATOR)
        if hub is not None and hub.reason == "replayed":  # given elsewhere in this name, by a clock that is ahead
            self._counter = max(self._counter, _number(hub.values.get("counter")))
            said = self._ask(command, arguments, targets, deadline)
        if self._strangers and time.monotonic() < deadline:
            self._refresh(deadline)
            said = self._ask(command, arguments, targets, deadline) if spec.repeatable else said
        return self._complete(said, targets)

    def _ask(self, command: str, arguments: Arguments, targets: Sequence[str], deadline: float) -> dict[str, Answer]:
        asked = _Asked(nacl.utils.random(16))
        with self._changed:
            self._asked, self._strangers = asked, False
        # Commands made at two places in one operator's name are told apart by the clock, not by a file.
        self._counter = max(self._counter + 1, time.time_ns() // 1_000_000)
        message = Command(
            counter=self._counter,
            expires=int(time.time()) + GOOD_FOR_S,
            command=command,
            arguments=dict(arguments),
            targets=tuple(targets),
        )
        raw = seal(
            self.identity,
            Kind.COMMAND,
            message,
            [*self.registry.members(Role.AGGREGATOR), *self._keys_of(targets)],
            federation=self.federation,
            message_id=asked.id,
            sequence=self._counter,
        )
        self._hand_in(raw, deadline)
        with self._changed:
            self._changed.wait_for(lambda: self._is_complete(asked, targets), max(0.0, deadline - time.monotonic()))
            self._asked = None
            return dict(asked.said)

    def _hand_in(self, raw: bytes, deadline: float) -> None:
        handed = self._transport.publish(topology.COMMANDS, "", raw)
        try:
            handed.result(max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            raise TransportError(
                f"the broker has not taken {self.name}'s command in time: it is away, or does not let {self.name} in "
                "(the hub runs `fledge deploy broker`); `fledge doctor --kit …` names what is in the way"
            ) from None

    def _is_complete(self, asked: _Asked, targets: Sequence[str]) -> bool:
        hub = asked.said.get(topology.AGGREGATOR)
        if hub is None:
            return False
        return not hub.ok or self._strangers or all(site in asked.said for site in targets)

    def _complete(self, said: Mapping[str, Answer], targets: Sequence[str]) -> list[Answer]:
        hub = said.get(topology.AGGREGATOR)
        if hub is None:
            text = (
                "the aggregator has not answered; the command waits in its queue and will be carried out "
                f"within {GOOD_FOR_S // 60} minutes, or never"
            )
            return [Answer(sender=topology.AGGREGATOR, ok=False, reason="no_answer", text=text), *said.values()]
        if not targets or not hub.ok:
            return [hub]
        seen = dict(zip(hub.column("site"), hub.column("seen"), strict=False))
        return [said.get(site) or _silent(site, seen.get(site)) for site in targets]

    def _sites(self) -> set[str]:
        return {member.name for member in self.registry.members(Role.SITE)}

    def _keys_of(self, targets: Sequence[str]) -> list[Participant]:
        try:
            return [self.registry.member(site) for site in targets]
        except Untrusted as error:
            raise ConfigError(f"{error}; `fledge ctl site list` shows who is") from None

    def _refresh(self, deadline: float) -> None:
        """Ask for the newest registry; the root's signature is checked here."""
        said = self._ask("registry", {}, (), deadline).get(topology.AGGREGATOR)
        if said is None or not said.ok:
            return
        try:
            record = base64.b64decode("".join(map(str, said.column("record"))))
        except ValueError as error:
            raise Malformed("the aggregator's registry is not base64; upgrade whichever of the two is older") from error
        newest = open_registry(record, self._root, self.federation)
        if newest.version > self.registry.version:
            self.registry = newest
            self._kit.keep_registry(record)

    def _take(self, delivery: Delivery) -> None:
        """Keep an answer to what is being asked; everything else in the inbox is of the past."""
        try:
            self._read(delivery.body)
        except Untrusted as error:
            if error.reason != "revoked":  # which no newer registry takes back
                with self._changed:
                    self._strangers = True
                    self._changed.notify_all()
        except WireError as error:
            log.debug("answer.refused", reason=error.reason)
        delivery.ack()

    def _read(self, raw: bytes) -> None:
        verified = verify(raw, self.registry, federation=self.federation, kinds=_ANSWERS)
        reply = body(verified, Reply, unlock(verified, self.identity))
        sender = verified.sender.name
        said = Answer(sender=sender, ok=reply.ok, reason=reply.reason, text=reply.text, values=reply.values)
        with self._changed:
            if self._asked is not None and self._asked.id == reply.message:
                self._asked.said.setdefault(sender, said)  # what comes again says nothing new
                self._changed.notify_all()


def _number(value: Value) -> int:
    return value if isinstance(value, int) else 0


def _silent(site: str, seen: Plain) -> Answer:
    """The answer in place of a site's own; `seen`: how many seconds ago it was, None for never."""
    seconds = float(seen) if isinstance(seen, int | float) else None
    since = "since the aggregator started" if seconds is None else f"for {_time(seconds)}"
    text = f"site {site} has not been seen {since}; the command is queued and will run when it returns"
    if seconds is not None and seconds < _LATELY_S:
        queued = "the command is queued and will run when it returns"
        text = f"site {site} has not answered in time (--timeout waits longer); {queued}"
    return Answer(sender=site, ok=False, reason="no_answer", text=text, values={})


def _time(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
