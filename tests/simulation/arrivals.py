"""The same arrivals, whatever happens to them: what is the same in every order, and what follows from the order.

A handful of sites sends a fixed set of updates, all from version 0, sound and unsound. The run's rules make the outcome
of each independent of order and time: nothing is too stale, nobody has so many updates that newer ones supersede older
ones, every buffer is flushed in the end. Then, with any faults and in any order,

1. the set of merged updates is the set of sound ones, and each unsound one is rejected with the same reason;
2. the history is the one that a single aggregator without any fault makes when the members of each version come to it
   one after the other in their journal order: the same members, scalars and digests, version by version.

How the updates are cut into versions is *not* the same for every order, and neither are the digests: first come, first
merged is a rule, and a sum in float64 depends on its order. Given the order, everything else follows, and that is 2.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from sqlalchemy import select

from aggregator.domain import effects, events
from aggregator.domain.state import RunRules
from aggregator.journal.history import History
from aggregator.journal.journal import Journal
from aggregator.journal.tables import SCHEMA, metadata, updates
from aggregator.rules.federation import AggregatorRules
from aggregator.strategy.plan import MergePlan, Product
from aggregator.strategy.stopping import Stopping
from aggregator.strategy.strategies import strategy
from broker.runtime.actor import Actor
from protocol import topology
from protocol.registry import Registry
from tests.simulation.centre import (
    LENGTH,
    RUN,
    SPEC,
    new_run,
    norm_of,
    notice,
    product_digest,
    read_back,
    update_message,
)
from tests.simulation.hospital import Script
from tests.simulation.invariants import reckon
from tests.simulation.surroundings import Database, require, sha256
from tests.simulation.world import Parts, World

FLAWS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"run": "another"}, "wrong_run"),
    ({"spec": sha256(b"another")}, "wrong_spec"),
    ({"base": 3_000}, "future_base"),
    ({"flaw": "not_finite"}, "not_finite"),
)
SITES = ("alpha", "beta", "gamma")
MAX_WAIT = 20.0


def rules_of(dice: random.Random) -> RunRules:
    """Rules under which no update's fate depends on when it comes."""
    chosen: dict[str, Any] = {"buffer": dice.choice([1, 2, 3, 5]), "stale_limit": 1_000, "updates_per_base": 12}
    return RunRules(
        run=RUN,
        spec=SPEC,
        update_length=LENGTH,
        names=frozenset({"weight", "bias"}),
        strategy=strategy(dice.choice(["fedbuff", "fedasync", "fedadam"]), **chosen),
        parameters=chosen,
        stopping=Stopping(),
        min_sites=1,
        max_wait=MAX_WAIT,
        grace=30.0,
        heartbeat=1e9,  # everybody counts as live for ever
        release_decay=0.8,
    )


def arrivals(dice: random.Random) -> tuple[dict[str, list[dict[str, Any]]], dict[bytes, tuple[str, str]]]:
    """What each site sends, and what has to become of it."""
    sent: dict[str, list[dict[str, Any]]] = {}
    expected: dict[bytes, tuple[str, str]] = {}
    for site in SITES:
        sent[site] = []
        for sequence in range(1, dice.randint(2, 7)):
            changes, reason = dice.choice(FLAWS) if dice.random() < 0.2 else ({}, "ok")
            id = dice.randbytes(16)
            sent[site].append(update_message(site, id, sha256(id), sequence=sequence, **changes))
            expected[id] = ("rejected", reason) if changes else ("merged", "ok")
    return sent, expected


def play(content: int, faults: int) -> World:
    """Let the arrivals drawn by `content` happen in the world drawn by `faults`, to the end.

    Raises:
        Violation: something of what is promised above does not hold.
    """
    dice = random.Random(content)
    world = World(faults, Parts(often=("crash", "fuse")), rules=rules_of(dice))
    world.faults -= {"command", "registry", "restore", "chunk", "noise", "announcement"}
    sent, expected = arrivals(dice)
    for site in SITES:
        world.enrol(site)
        world.without_workers.add(site)
    world.broker.declare(topology.topology(SITES))
    world.start_centre()
    for site, messages in sent.items():
        world.scripts.append(Script(world, site, messages))
    world.play(world.dice.randint(60, 300))
    world.settle()
    world.drain()
    outcomes = {id: outcome for script in world.scripts for id, outcome in script.outcomes.items()}
    require(outcomes == expected, "what becomes of each update does not depend on faults:", outcomes, expected)
    world.command("run.stop")
    world.drain()
    reckon(world)
    history = History(world.centre_database.engine)
    require(
        serial(world, history) == [digest for _, digest in history.run(RUN).plans()],
        "the history follows from its order",
    )
    return world


@cache
def _second() -> Database:
    return Database(metadata, SCHEMA)


def serial(world: World, history: History) -> list[bytes]:
    """The digests that the same updates give when they come one by one, in the journal's order, without a fault."""
    database, now, dice = _second(), 0.0, random.Random(0)
    database.restore()
    asked: list[MergePlan] = []

    def perform(effect: Any) -> None:
        if isinstance(effect, effects.Merge):
            asked.append(effect.plan)

    journal = Journal(None, lambda write: b"receipt", engine=database.engine)
    journal.begin(new_run(world.rules, b"record", b"spec", world.registry.version))
    registry: Registry = world.registry
    snapshot = journal.load(registry)
    rules = AggregatorRules({RUN: world.rules}, snapshot, new_id=lambda: dice.randbytes(16), now=now)
    actor = Actor(rules, journal.commit, perform, clock=lambda: now)
    digests = []
    for plan, _ in history.run(RUN).plans():
        contents = []
        for member in plan.members:
            raw = history.envelope(member.id)
            contents.append(read_back(raw)["content"])
            actor.turn([events.UpdateArrived(delivery=None, notice=notice(read_back(raw), raw))])
            actor.turn([events.Admitted(id=member.id, norm=norm_of(contents[-1]))])
        if not asked:
            now += MAX_WAIT
            actor.turn([])
        require(len(asked) == 1, "version", plan.version, "is due")
        made = asked.pop()
        require([m.id for m in made.members] == [m.id for m in plan.members], "version", plan.version, "is the same")
        digests.append(product_digest(made.parent, made, contents))
        product = Product(digest=digests[-1], record=b"record", states={})
        actor.turn([events.Merged(plan=made, product=product)])
    with database.engine.connect() as db:
        require(all(row.state == "merged" for row in db.execute(select(updates))), "one by one, all are merged")
    return digests
