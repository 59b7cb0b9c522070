"""Who is killed when: a plan that follows from a seed, carried out by the rig's supervisors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.e2e.program import Death, Move
from tests.e2e.rig import Rig

AGGREGATOR_BUSY = ("aggregator.admitting", "aggregator.admitted", "aggregator.merging", "aggregator.merged")
"""Crash points inside an admission or a merge."""
AGGREGATOR_OTHER = (
    "aggregator.received",
    "aggregator.journalled",
    "aggregator.acked",
    "aggregator.committed",
    "aggregator.publishing",
)
WORKER_BUSY = ("worker.uploading",)
WORKER_OTHER = (
    "worker.noted",
    "worker.trained",
    "worker.spooled",
    "worker.uploaded",
    "worker.published",
    "worker.confirmed",
    "worker.receipt",
)
AGGREGATOR_EVENTS = ("admission.started", "merge.started")
WORKER_EVENTS = ("upload.started",)
_IDLE_EVENTS = ("training.started", "update.validated", "version.committed", "update.published")
_WITHIN = 0.03  # seconds after a begin that are nearly always before its end, for the 20 MB model
_ANY = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves by program."""

    moves: Mapping[str, Sequence[Move]]

    @property
    def kills(self) -> int:
        """All moves together."""
        return sum(len(moves) for moves in self.moves.values())


def make_plan(seed: int, sites: Sequence[str], kills: int) -> Plan:
    """`kills` moves: two fifths for the aggregator, the rest for the workers in turn; four of five hit busy moments."""
    dice = random.Random(seed)
    aggregator = max(3, round(kills * 2 / 5))
    each, rest = divmod(kills - aggregator, len(sites))
    moves = {"aggregator": _moves(dice, aggregator, AGGREGATOR_BUSY, AGGREGATOR_EVENTS, AGGREGATOR_OTHER)}
    for index, site in enumerate(sites):
        moves[site] = _moves(dice, each + (index < rest), WORKER_BUSY, WORKER_EVENTS, WORKER_OTHER)
    return Plan(moves)


def _moves(
    dice: random.Random, count: int, busy: Sequence[str], begins: Sequence[str], other: Sequence[str]
) -> list[Move]:
    made = []
    for index in range(count):
        match index % 5:
            case 0 | 2:
                made.append(Move("label", dice.choice(busy), dice.randint(1, 4)))
            case 1 | 3:
                made.append(Move("event", dice.choice(begins), dice.randint(1, 3), dice.uniform(0, _WITHIN)))
            case _ if dice.random() < 0.7:
                made.append(Move("label", dice.choice(other), dice.randint(1, 4)))
            case _:
                made.append(Move("event", dice.choice((*begins, *_IDLE_EVENTS)), 1, dice.uniform(0, _ANY)))
    dice.shuffle(made)
    return made


def deal(rig: Rig, plan: Plan) -> None:
    """Give every program its moves; before `rig.start`."""
    for program in rig.programs:
        program.moves.extend(plan.moves[program.name])


def carry_out(rig: Rig, plan: Plan, timeout: float) -> list[Death]:
    """Wait until every kill of the plan has happened; returns them all."""
    rig.wait(
        lambda: len(rig.kills) >= plan.kills,
        lambda: f"{len(rig.kills)} of {plan.kills} kills; left: {[(p.name, len(p.moves)) for p in rig.programs]}",
        timeout,
    )
    return rig.kills


def in_flight(deaths: Sequence[Death]) -> int:
    """How many died with an upload, admission or merge begun and not ended, as their logs prove."""
    return sum(bool(death.in_flight) for death in deaths)
