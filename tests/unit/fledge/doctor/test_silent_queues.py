"""What the doctor says of queues that are there and do not answer, as those without a leader."""

from __future__ import annotations

from typing import cast

from broker.transport.rabbitmq.probe import DONE, FAILED, NO_ANSWER, Operation, Probe, ProbeReply
from fledge.doctor.checks.broker import _rights
from fledge.doctor.checks.permissions import own
from fledge.doctor.findings import Finding, Server
from protocol.keys import Role
from protocol.topology import topology

BROKER = Server(name="broker", host="broker.example", port=443, encrypted=True, purpose="messages")


class Broker:
    """Says nothing to whatever has this word in it, and the right thing to the rest."""

    def __init__(self, dead: str) -> None:
        self.dead = dead
        self.asked: list[str] = []

    def attempt(self, operation: Operation) -> ProbeReply:
        self.asked.append(operation.what)
        if self.dead in operation.what:
            return ProbeReply(code=NO_ANSWER)
        return ProbeReply(code=FAILED if operation.what.startswith("exchange") else DONE)


def found_at(broker: Broker) -> dict[str, Finding]:
    found: list[Finding] = []
    _rights(cast(Probe, broker), own(Role.SITE, "north", topology(["north"])), BROKER, found)
    return {finding.check: finding for finding in found}


def test_a_queue_that_does_not_answer_is_named_and_nobody_is_said_to_lack_rights() -> None:
    found = found_at(Broker("queue down.north"))
    assert found["broker.queues"].code == "silent"
    assert "queue down.north" in found["broker.queues"].cause
    assert "quorum_status" in found["broker.queues"].advice
    assert "broker.rights" not in found  # neither lacking nor proved


def test_no_more_is_tried_once_two_got_no_answer() -> None:
    broker = Broker("")
    assert found_at(broker)["broker.queues"].code == "silent"
    assert len(broker.asked) == 2
