"""The worker's rules, driven by hand: events in, writes and effects out."""

from __future__ import annotations

import itertools
import random
from typing import Any, TypeVar

from broker.runtime.actor import Step, Tick
from protocol.messages import Head, Outcome, Receipt, RunHead, RunState
from worker.domain import effects, events, writes
from worker.domain.state import Sealed, Snapshot, UpdateRow
from worker.policy import OPEN, SitePolicy
from worker.rules.worker import WorkerRules, WorkerTerms

T = TypeVar("T")


SEALED = Sealed(envelope=b"signed", chunks=(b"c" * 32,), key=b"wrapped")


KNOWN_REGISTRY = b"r" * 32


def rules(snapshot: Snapshot | None = None, policy: SitePolicy = OPEN, *, own_trainer: bool = True) -> WorkerRules:
    ids = itertools.count(1)
    return WorkerRules(
        snapshot or Snapshot(registry=1, registry_digest=KNOWN_REGISTRY),
        WorkerTerms(heartbeat=20.0, policy=policy, own_trainer=own_trainer),
        site="alpha",
        new_id=lambda: next(ids).to_bytes(16, "big"),
        dice=random.Random(1),
    )


def turn(machine: WorkerRules, *events: Any, now: float = 0.0) -> Step:
    """What the actor does with a batch: every event, then a tick."""
    steps = [machine.step(event, now) for event in (*events, Tick())]
    return Step(
        tuple(write for step in steps for write in step.writes),
        tuple(effect for step in steps for effect in step.effects),
    )


def only(kind: type[T], values: tuple[Any, ...]) -> T:
    found = [value for value in values if isinstance(value, kind)]
    assert len(found) == 1, found
    return found[0]


def some(kind: type[T], values: tuple[Any, ...]) -> list[T]:
    return [value for value in values if isinstance(value, kind)]


def version(
    number: int,
    *,
    run: str = "r",
    quota: int = 1,
    evaluate: bool = False,
    digest: bytes = b"",
    bundle: bytes = b"",
) -> Any:
    return events.VersionSeen(
        delivery=f"delivery {number}",
        run=run,
        version=number,
        record=b"record %d" % number,
        digest=digest or number.to_bytes(32, "big"),
        updates_per_base=quota,
        evaluate=evaluate,
        bundle=bundle,
    )


def head(
    number: int,
    *runs: tuple[str, RunState, int],
    registry: bytes = KNOWN_REGISTRY,
    not_after: int = 2_000,
    wall: float = 1_000.0,
) -> events.HeadSeen:
    listed = tuple(
        RunHead(run=run, state=state, reason="ok", version=at, record=at.to_bytes(32, "big")) for run, state, at in runs
    )
    told = Head(number=number, issued=1, not_after=not_after, registry=registry, runs=listed)
    return events.HeadSeen(delivery=None, head=told, wall=wall)


def receipt(update: UpdateRow, outcome: Outcome, *, highest: int = 0, merged: int = 0) -> events.ReceiptSeen:
    said = Receipt(
        message=update.id,
        epoch=update.epoch,
        sequence=update.sequence,
        outcome=outcome,
        reason="ok",
        highest_epoch=highest,
    )
    return events.ReceiptSeen(delivery="receipt", receipt=said, version=merged, raw=b"signed receipt")


def trained(machine: WorkerRules, seen: events.VersionSeen, now: float = 0.0) -> UpdateRow:
    """Show a version, let it be trained from, and return the update that was journalled."""
    training = only(effects.Train, turn(machine, seen, now=now).effects)
    step = turn(machine, events.Trained(id=training.id, sealed=SEALED), now=now)
    return only(writes.AddUpdate, step.writes).row


def sent(machine: WorkerRules, update: UpdateRow, now: float = 0.0) -> None:
    turn(machine, events.Uploaded(row=update.row), now=now)
    turn(machine, events.Published(row=update.row), now=now)
