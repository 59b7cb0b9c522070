"""Operators' commands, as they reach a site: checked here again, whatever the aggregator thinks, and carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import nacl.utils

from broker.transport.base import Unacked
from protocol.codec import Value
from protocol.commands import COMMANDS, COUNTER_AHEAD, LONGEST_COMMAND, TOLERANCE
from protocol.envelope import body, seal, unlock, verify
from protocol.errors import ConfigError, FledgeError, Unauthorized, Untrusted, WireError
from protocol.messages import Command, Kind, Reply
from protocol.registry import Registry
from worker.domain.events import CommandSeen, Drain, Obeyed, Undrain
from worker.domain.state import Leaving
from worker.pipeline.context import SiteContext
from worker.policy import SitePolicy
from worker.service.code_deployer import RUN_COMMANDS, CodeDeployer

_TEXT = 1024
_LEAVING: Mapping[str, Leaving] = {"site.restart": "restart", "site.shutdown": "shutdown"}


class Inspection(Protocol):
    """What answers questions about this machine; `worker.inspection.inspector` has the real one."""

    def answer(self, command: str, arguments: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
        """A sentence and values.

        Raises:
            FledgeError: it cannot be answered; the text may leave the site.
        """


class NoInspection:
    """A worker that answers no questions about its machine."""

    def answer(self, command: str, arguments: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"this worker answers no {command}; it was started without a folder to look at")


Checks = Callable[[], Mapping[str, Value]]
"""The site's own checks, as a table that may leave the site."""


def no_checks() -> Mapping[str, Value]:
    """The checks of a worker that has none."""
    return {}


class CommandHandler:
    """Carries out what operators command one site."""

    def __init__(
        self,
        context: SiteContext,
        policy: SitePolicy,
        inspection: Inspection,
        runs: CodeDeployer,
        *,
        checks: Checks = no_checks,
    ) -> None:
        self._site = context.site
        self._reader = context.reader
        self._tell = context.tell
        self._log = context.log
        self._policy = policy
        self._inspection = inspection
        self._runs = runs
        self._checks = checks

    # ---- reading

    def read(self, raw: bytes, delivery: Unacked, wall: float) -> CommandSeen:
        """What an operator commands, and whether it may be.

        Raises:
            WireError: it is not a genuine command for this site.
        """
        reader = self._reader()
        verified = verify(raw, reader.registry, federation=reader.federation, kinds=(Kind.COMMAND,))
        command = body(verified, Command, unlock(verified, reader.identity))
        operator = verified.sender.name
        objection, text = self._objection(operator, command, reader.registry, wall)
        return CommandSeen(
            delivery=delivery,
            operator=operator,
            signer=verified.core.sender,
            counter=command.counter,
            id=verified.core.id,
            command=command.command,
            arguments=command.arguments,
            objection=objection,
            text=text,
        )

    def _objection(self, operator: str, command: Command, registry: Registry, wall: float) -> tuple[str, str]:
        if self._site not in command.targets:
            return "wrong_site", f"the command is for {', '.join(command.targets)[:200] or 'the aggregator'}"
        if not wall - TOLERANCE < command.expires <= wall + LONGEST_COMMAND + TOLERANCE:
            return "expired", "the command is too old or from the future; compare the clocks and send it again"
        if command.counter > (wall + TOLERANCE) * 1000:
            return (
                COUNTER_AHEAD,
                "the order's number is from the future; set the clock where it was given, and send it again",
            )
        known = COMMANDS.get(command.command)
        if known is None or not known.at_sites:
            return "unknown_command", f"a worker knows no command {command.command}; its software may be older"
        try:
            registry.rights.check(operator, known.action, (self._site,))
            self._policy.may_order(operator, command.command)
        except Unauthorized as error:
            return error.reason, str(error)
        return "ok", ""

    # ---- obeying

    def obey(self, seen: CommandSeen) -> None:
        """Carry out a command and tell the rules the signed answer; on a thread that may take its time.

        What is commanded about runs the rules decide, once everything is at hand; they have it answered.
        """
        if not self._still_known(seen):
            return
        reason, text = seen.objection, seen.text
        values: dict[str, Value] = {}
        if reason == "ok":
            try:
                if seen.command in RUN_COMMANDS:
                    self._tell(self._runs.prepare(seen))
                    return
                text, values = self._carry_out(seen)
            except WireError as error:
                reason, text = error.reason, str(error)
            except FledgeError as error:
                reason, text = "not_possible", str(error)
        self.answer(seen, reason, text, values)

    def answer(self, seen: CommandSeen, reason: str, text: str, values: Mapping[str, Value]) -> None:
        """Sign the answer to a command and tell it to the rules."""
        leaving = _LEAVING.get(seen.command, "") if reason == "ok" else ""
        self._log.info("order.obeyed", operator=seen.operator, command=seen.command, outcome=reason)
        try:
            envelope = self._reply(seen, reason, text, values)
        except (WireError, OverflowError):  # an answer over the limits
            envelope = self._reply(seen, "too_large", "the answer is too large; ask for less", {})
        self._tell(Obeyed(envelope=envelope, leaving=leaving))

    def _still_known(self, seen: CommandSeen) -> bool:
        """Whether the operator's keys still hold: a command may have waited here while they were revoked."""
        try:
            self._reader().registry.signer(seen.signer)
        except Untrusted as error:
            self._log.warning("order.obeyed", operator=seen.operator, command=seen.command, outcome=error.reason)
            return False
        return True

    def _carry_out(self, seen: CommandSeen) -> tuple[str, dict[str, Value]]:
        match seen.command:
            case "site.drain":
                self._tell(Drain())
                return "what is trained is finished and sent; nothing new begins until `site undrain`", {}
            case "site.undrain":
                self._tell(Undrain())
                return "trains again", {}
            case "site.restart":
                return "ends in order and is started again by its supervisor", {}
            case "site.shutdown":
                return "ends in order and stays down; somebody at the site has to start it again", {}
            case "site.doctor":
                return "", dict(self._checks())
            case _:
                return self._inspection.answer(seen.command, seen.arguments)

    def _reply(self, seen: CommandSeen, reason: str, text: str, values: Mapping[str, Value]) -> bytes:
        reader = self._reader()
        reply = Reply(message=seen.id, ok=reason == "ok", reason=reason, text=text[:_TEXT], values=dict(values))
        return seal(
            reader.identity,
            Kind.REPLY,
            reply,
            [*reader.aggregators, reader.registry.member(seen.operator)],
            federation=reader.federation,
            message_id=nacl.utils.random(16),
        )
