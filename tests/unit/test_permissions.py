"""Each stock role with each order there is: judged alike by the aggregator's intake and by the worker that obeys."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from aggregator.domain.events import CommandArrived
from aggregator.intake import Intake
from broker.blobs.memory import MemoryBlobs
from protocol.commands import COMMANDS
from protocol.envelope import seal
from protocol.keys import Identity, Role
from protocol.messages import Command, Kind
from protocol.registry import Registry
from protocol.rights import ROLES, STOCK, Organisation, Policy
from worker.intake import Reader
from worker.pipeline.context import SiteContext
from worker.policy import OPEN, SitePolicy
from worker.service.code_deployer import CodeDeployer
from worker.service.command_handler import CommandHandler, NoInspection
from worker.storage.code_store import CodeStore

FEDERATION = "clinics"
ALL = {"super", "lead_researcher", "site_researcher", "lead_it", "site_it"}
ELSEWHERE = {
    "upload": ALL,
    "deploy": {"super", "lead_researcher"},
    "view": {"super", "lead_researcher", "lead_it"},
    "train": {"super", "lead_researcher"},
    "operate": {"super", "lead_it"},
}
"""Who may do what at the hub, and at a site of another organisation."""
AT_HOME = {
    "deploy": ELSEWHERE["deploy"] | {"site_researcher"},
    "view": ALL,
    "train": ELSEWHERE["train"] | {"site_researcher"},
    "operate": ELSEWHERE["operate"] | {"site_it"},
}
"""Who may do what at a site of the own organisation."""
OF_OWN_SITES = {"status", "site.show", "update.list", "update.show", "update.receipt", "queue.list"}
"""What the hub also tells those who may only look at sites of their own, about these alone."""
HUB, NORTH, SOUTH = (
    Identity.generate("aggregator", Role.AGGREGATOR),
    Identity.generate("north", Role.SITE),
    Identity.generate("south", Role.SITE),
)
OPERATORS = {role: Identity.generate(role.replace("_", "-"), Role.OPERATOR) for role in ROLES}


def _registry() -> Registry:
    registry = Registry(version=0, entries=())
    for member, organisation in ((HUB, "centre"), (NORTH, "north-hospital"), (SOUTH, "south-hospital")):
        registry = registry.with_entry(member.public, organisation=organisation)
    for role, member in OPERATORS.items():
        registry = registry.with_entry(member.public, organisation="north-hospital", roles=(role,))
    general = tuple(
        Organisation(name=f"{name}", groups=("general",)) for name in ("centre", "north-hospital", "south-hospital")
    )
    return replace(registry, version=registry.version + 1, policy=Policy(groups=STOCK.groups, organisations=general))


REGISTRY = _registry()


def signed(role: str, command: str, *targets: str) -> bytes:
    order = Command(counter=1, expires=int(time.time()) + 60, command=command, arguments={}, targets=targets)
    to = [HUB.public, NORTH.public, SOUTH.public]
    return seal(OPERATORS[role], Kind.COMMAND, order, to, federation=FEDERATION, message_id=os.urandom(16))


def at_the_hub(raw: bytes) -> str:
    arrived = Intake(FEDERATION, HUB, REGISTRY).command(None, raw, time.time())
    assert isinstance(arrived, CommandArrived)
    return arrived.objection


def at_a_site(identity: Identity, raw: bytes) -> str:
    return orders_of(identity, OPEN).read(raw, None, time.time()).objection


def orders_of(identity: Identity, policy: SitePolicy) -> CommandHandler:
    """A site's end of the line; nothing is carried out, so that there is neither code nor a store."""
    reader, log = Reader(identity, FEDERATION, REGISTRY), structlog.get_logger()
    context = SiteContext(site=identity.name, reader=lambda: reader, tell=lambda event: None, log=log)
    runs = CodeDeployer(CodeStore(Path("nowhere")), MemoryBlobs(), policy, context)
    return CommandHandler(context, policy, NoInspection(), runs)


def verdict(allowed: bool) -> str:
    return "ok" if allowed else "not_authorized"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [order.name for order in COMMANDS.values() if not order.at_sites])
def test_the_hub_lets_a_role_do_what_the_table_says(role: str, name: str) -> None:
    action = COMMANDS[name].action.value
    may = ELSEWHERE[action] | (AT_HOME[action] if name in OF_OWN_SITES else set())
    assert at_the_hub(signed(role, name)) == verdict(role in may)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [order.name for order in COMMANDS.values() if order.at_sites])
@pytest.mark.parametrize(("site", "table"), [(NORTH, AT_HOME), (SOUTH, ELSEWHERE)], ids=("own", "other"))
def test_hub_and_site_let_a_role_do_what_the_table_says(
    role: str, name: str, site: Identity, table: dict[str, set[str]]
) -> None:
    expected = verdict(role in table[COMMANDS[name].action.value])
    raw = signed(role, name, site.name)
    assert (at_the_hub(raw), at_a_site(site, raw)) == (expected, expected)


@pytest.mark.parametrize("role", ROLES)
def test_an_order_for_both_needs_the_right_at_both(role: str) -> None:
    raw = signed(role, "site.drain", "north", "south")
    assert at_the_hub(raw) == verdict(role in AT_HOME["operate"] & ELSEWHERE["operate"])


def test_a_site_takes_no_order_for_another_and_none_for_the_hub() -> None:
    assert at_a_site(NORTH, signed("super", "site.drain", "south")) == "wrong_site"
    assert at_a_site(NORTH, signed("super", "run.abort", "north")) == "unknown_command"


def test_a_site_named_twice_is_an_error() -> None:
    assert at_the_hub(signed("super", "site.drain", "north", "north")) == "bad_argument"


def test_a_sites_own_policy_narrows_what_everybody_may() -> None:
    orders = orders_of(NORTH, OPEN.model_copy(update={"operators": ("lead-it",)}))
    assert orders.read(signed("super", "site.drain", "north"), None, time.time()).objection == "not_authorized"
    assert orders.read(signed("lead_it", "site.drain", "north"), None, time.time()).objection == "ok"


def test_a_revoked_operator_is_nobody() -> None:
    revoked = REGISTRY.revoke("super")
    raw = signed("super", "run.abort")
    refused = Intake(FEDERATION, HUB, replace(revoked)).command(None, raw, time.time())
    assert refused.reason == "revoked"


@pytest.mark.parametrize(("good_for", "why"), [(-1.0, "expired"), (60.0, "ok"), (90_000.0, "expired")])
def test_a_command_that_is_too_old_or_from_the_future_says_so(good_for: float, why: str) -> None:
    now = time.time()
    command = Command(counter=1, expires=int(now + good_for), command="status", arguments={})
    raw = seal(OPERATORS["super"], Kind.COMMAND, command, [HUB.public], federation=FEDERATION, message_id=bytes(16))
    arrived = Intake(FEDERATION, HUB, REGISTRY).command(None, raw, now)
    assert arrived.objection == why
    assert ("compare the clocks" in arrived.text) == (why == "expired")
