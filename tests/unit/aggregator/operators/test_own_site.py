"""What hospital IT is told by the hub: of its own site everything, of the others nothing, whatever it asks."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.operators.admin_access import AdminAccess
from fledge.operator.console import Answer
from fledge.receipts import SignedReceipt
from protocol import topology
from protocol.commands import COMMANDS
from protocol.envelope import seal
from protocol.keys import Identity, Role
from protocol.messages import Evaluation, Event, Kind, Outcome
from protocol.rights import STOCK, Action, Organisation, Policy
from tests.support.federation import FEDERATION, RUN
from tests.support.running_aggregator import ONE, Hub, one

OWN, OTHERS = "site-0", ("site-1", "site-2")
SECRETS = ("70001", "0.7077", "4242", "0.1234", "closed-ward", "31.4159", "0.6661")
"""Of the other sites: examples, a measure, a queue's depth, progress, software, seconds, a loss."""


def hospitals(hub: Hub) -> Identity:
    """Give every site an organisation of its own and return the keys of one who looks after the first."""
    person = Identity.generate("ines", Role.OPERATOR)
    registry = hub.federation.registry.with_entry(person.public, organisation="of-site-0", roles=("site_it",))
    entries = tuple(
        replace(entry, organisation=f"of-{entry.name}") if entry.role == Role.SITE else entry
        for entry in registry.entries
    )
    organisations = [Organisation(name=name, groups=("general",)) for name in ("clinic", "of-site-0", "of-site-1")]
    policy = Policy(groups=STOCK.groups, organisations=tuple(organisations))
    hub.federation.registry = replace(registry, entries=entries, policy=policy)
    return person


def sent(hub: Hub, site: str, kind: Kind, body: object) -> None:
    exchange = topology.event_exchange(site) if kind == Kind.EVENT else topology.up_exchange(site)
    to = [hub.federation.aggregator.public]
    raw = seal(
        hub.federation.members[site],
        kind,
        body,
        to,
        federation=FEDERATION,
        message_id=os.urandom(16),
        run=RUN,
        version=0 if kind == Kind.EVENT else 1,
    )
    hub.transport.publish(exchange, "", raw).result(10)


class Asker:
    """A federation in which much has happened at three hospitals, and one of them asking."""

    def __init__(self, hub: Hub) -> None:
        self.person = hospitals(hub)
        depths = [(queue, 4242, 1) for site in OTHERS for queue in topology.queues_of(site)]
        depths += [(topology.in_queue(OWN), 3, 1), ("inbox.aggregator", 4242, 1)]
        hub.access = AdminAccess(depths=lambda: depths)
        hub.start()
        for site in (OWN, *OTHERS):
            other = site != OWN
            examples, seconds, progress = (70001, 31.4159, 0.1234) if other else (11, 2.0, 0.5)
            loss = 0.6661 if other else 0.25
            hub.send(site, hub.sites[site].update(ONE, examples=examples, seconds=seconds, metrics={"loss": loss}))
            software = "closed-ward" if other else "test"
            sent(hub, site, Kind.EVENT, Event(state="idle", progress=progress, metrics={}, software=software))
        hub.wait_outcome(OWN, Outcome.MERGED)
        for site in (OWN, *OTHERS):
            examples, measured = (11, 0.5) if site == OWN else (70001, 0.7077)
            sent(hub, site, Kind.EVALUATION, Evaluation(examples=examples, metrics={"accuracy": measured}))
        hub.send(OTHERS[0], hub.sites[OTHERS[0]].update({n: np.full_like(v, np.nan) for n, v in ONE.items()}))
        for site in (OWN, OTHERS[1]):
            hub.send(site, b"nonsense")
        hub.wait(lambda: len(hub.dead()) == 2)
        hub.wait(lambda: "rejected" in hub.happened)
        hub.wait(lambda: len([word for word in hub.happened if word == "idle"]) == 3)
        self.hub = hub
        listed = one(hub.console().ask("update.list", {})).values
        self.ids: dict[str, list[str]] = {site: [] for site in (OWN, *OTHERS)}
        for update, site in zip(listed["update"], listed["site"], strict=True):
            self.ids[site].append(update)

    def ask(self, command: str, arguments: dict[str, Any], targets: tuple[str, ...] = ()) -> list[Answer]:
        return self.hub.console(self.person).ask(command, arguments, targets, timeout=1)


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    asker = Asker(hub)
    yield asker
    hub.stop()


def revealing(asker: Asker, answers: list[Answer], typed: str) -> list[str]:
    """What of other sites stands in answers and was not in the question."""
    told = " ".join(f"{each.text} {each.reason} {dict(each.values)}" for each in answers)
    names = [*OTHERS, *(id for site in OTHERS for id in asker.ids[site])]
    return [word for word in (*names, *SECRETS) if word in told and word not in typed]


def test_hospital_it_sees_its_site_its_updates_with_their_reasons_and_its_queues(asker: Asker) -> None:
    status = one(asker.ask("status", {})).values
    assert (status["run"], status["site"], status["doing"]) == (RUN, (OWN,), ("idle",))
    assert (status["loss"], status["measured_here"]) == ((0.25,), (0.5,))
    for arguments in ({}, {"site": OWN}):
        shown = one(asker.ask("site.show", arguments)).values
        assert (shown["site_name"], shown["state"], shown["reason"]) == (OWN, ("merged",), ("ok",))
    updates = one(asker.ask("update.list", {})).values
    assert (updates["site"], updates["update"]) == ((OWN,), tuple(asker.ids[OWN]))
    assert updates["arrived"][0] <= updates["settled"][0]
    update = one(asker.ask("update.show", {"update": asker.ids[OWN][0]})).values
    assert (update["examples"], update["version"]) == (11, 1)
    assert 0 < update["weight"] <= 1
    assert "position" not in update
    assert one(asker.ask("queue.list", {})).values == {"queue": ("in.site-0",), "ready": (3,), "consumers": (1,)}


def test_the_signed_word_on_an_update_tells_its_weight_and_its_times(asker: Asker) -> None:
    answer = one(asker.ask("update.receipt", {"update": asker.ids[OWN][0]}))
    record = base64.b64decode("".join(map(str, answer.column("record"))))
    facts = SignedReceipt(record).facts(asker.hub.federation.registry, FEDERATION)
    assert (facts["site"], facts["run"], facts["outcome"], facts["version"]) == (OWN, RUN, "merged", 1)
    assert facts["weight"] == answer.values["weight"]
    assert None not in (facts["update_sha256"], facts["model_sha256"])
    assert str(facts["arrived"]) <= str(facts["settled"]) <= str(facts["issued"])


@pytest.mark.parametrize("command", ["site.show", "update.list"])
def test_another_site_is_refused_in_the_same_words_as_one_that_is_not_there(asker: Asker, command: str) -> None:
    said = {one(asker.ask(command, {"site": site})).text for site in (*OTHERS, "site-9")}
    assert said == {"with your roles you see site-0 alone; name a site of these"}
    other = {one(asker.ask("update.show", {"update": asker.ids[OTHERS[0]][0]})).reason}
    assert other == {one(asker.ask("update.show", {"update": "abcdef012345"})).reason}


ARGUMENTS = {
    "site": st.sampled_from([OWN, *OTHERS, "site-9", ("site-1",), 7]),
    "run": st.sampled_from([RUN, "another"]),
    "update": st.integers(0, 3),
    "version": st.integers(-1, 2),
    "limit": st.integers(0, 200),
    "since": st.integers(0, 3),
    "kind": st.sampled_from(["command", "version", "journalled"]),
    "state": st.sampled_from(["merged", "rejected"]),
    "id": st.integers(0, 3),
    "name": st.just("model"),
    "channel": st.just("production"),
    "as": st.just("copy"),
    "gets": st.just(("models/" + "a" * 64,)),
    "puts": st.just(("a" * 64,)),
}
COMMAND = st.sampled_from(sorted(COMMANDS))


@given(COMMAND, st.fixed_dictionaries({}, optional=ARGUMENTS), st.sampled_from(OTHERS))
@settings(max_examples=150, deadline=None)
def test_no_answer_to_hospital_it_holds_another_sites_name_or_numbers(
    asker: Asker, command: str, arguments: dict[str, Any], other: str
) -> None:
    if "update" in arguments:
        ids = [id for site in (OWN, *OTHERS) for id in asker.ids[site]]
        arguments = arguments | {"update": ids[arguments["update"] % len(ids)]}
    targets = (other,) if COMMANDS[command].at_sites else ()
    answers = asker.ask(command, arguments, targets)
    assert revealing(asker, answers, f"{arguments} {targets}") == []
    if COMMANDS[command].action == Action.VIEW and not COMMANDS[command].of_sites:
        assert not any(each.ok for each in answers)
