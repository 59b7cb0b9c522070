"""The aggregator's rules on a real journal in memory, driven by hand: events in, receipts and effects out."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import select

from aggregator.config import RunConfig, kept
from aggregator.domain import effects, events, writes
from aggregator.domain.state import NewRun, RunRules, UpdateNotice, UpdateState
from aggregator.journal.journal import Journal
from aggregator.journal.tables import SCHEMA, metadata, updates
from aggregator.rules.federation import AggregatorRules
from aggregator.rules.run import Run
from aggregator.strategy.base import Strategy
from aggregator.strategy.plan import MergePlan, Product
from aggregator.strategy.stopping import Stopping
from aggregator.strategy.strategies import strategy
from broker.runtime.actor import Actor
from broker.runtime.database import open_database
from protocol.codec import encode
from protocol.keys import Participant, Role
from protocol.messages import Evaluation, Outcome, Receipt, RunState
from protocol.registry import Registry

T = TypeVar("T")
RUN, SPEC, LENGTH = "run", b"s" * 32, 64
GENESIS = b"0" * 32
RULES: Mapping[str, Any] = {
    "run": RUN,
    "spec": SPEC,
    "update_length": LENGTH,
    "names": frozenset({"weight", "bias"}),
    "parameters": {},
    "stopping": Stopping(),
    "min_sites": 1,
    "max_wait": 1000.0,
    "grace": 30.0,
    "heartbeat": 1e9,
    "release_decay": 0.8,
}

RULES_OF_RUN = RunRules(**{**RULES, "strategy": strategy("fedbuff", buffer=2)})


def registry(*sites: str) -> Registry:
    """A registry of these sites."""
    made = Registry(version=0, entries=())
    for site in sites:
        keys = [hashlib.sha256(f"{site} {use}".encode()).digest() for use in ("verify", "box")]
        made = made.with_entry(Participant(name=site, role=Role.SITE, verify_key=keys[0], box_key=keys[1]))
    return made


def new_run(rules: RunRules, registry: int, state: RunState = RunState.RUNNING) -> NewRun:
    """A run with its version 0, as it is taken over."""
    return NewRun(
        rules=rules,
        config=kept(RunConfig(name=rules.run)),
        digest=GENESIS,
        record=b"record 0",
        spec=b"",
        spec_record=b"spec",
        code_record=b"",
        registry=registry,
        state=state,
    )


class Desk:
    """Rules, journal and a clock; `turn` does what the loop does, except that nobody performs the effects."""

    def __init__(self, *sites: str, chosen: Strategy | None = None, **changes: Any) -> None:
        self.now = 0.0
        self.registry = registry(*(sites or ("alpha", "beta")))
        self.run = RunRules(**{**RULES, "strategy": chosen or strategy("fedbuff", buffer=2), **changes})
        self.run_rules = {RUN: self.run}
        self.engine = open_database(None, metadata, SCHEMA)
        weakref.finalize(self, self.engine.dispose)
        self.receipts: list[Receipt] = []
        self.effects: list[Any] = []
        self.writes: list[Any] = []
        self._ids = itertools.count(1)
        self._sequences: dict[tuple[str, int], Any] = {}
        self.journal = Journal(None, self._seal, engine=self.engine)
        self.journal.begin(new_run(self.run, self.registry.version))
        self.start()

    def _seal(self, write: writes.Send) -> bytes:
        self.receipts.append(write.body)
        return encode(write.body)

    def start(self) -> None:
        """A fresh life on the same database."""
        self.journal = Journal(None, self._seal, engine=self.engine)
        snapshot = self.journal.load(self.registry)
        self.rules = AggregatorRules(self.run_rules, snapshot, new_id=self.new_id, now=self.now)
        self.actor = Actor(self.rules, self._commit, self.effects.append, clock=lambda: self.now)
        self.turn(events.Started())

    @property
    def state_of_run(self) -> Run:
        """The run's machine."""
        return self.rules.runs[RUN]

    def _commit(self, writes: Any) -> Any:
        self.writes += writes
        return self.journal.commit(writes)

    def new_id(self) -> bytes:
        """The next id."""
        return next(self._ids).to_bytes(16, "big")

    def turn(self, *batch: Any, seconds: float = 0.0) -> list[Any]:
        """Let `seconds` pass, then hand over a batch; returns what there is to do."""
        self.now += seconds
        self.effects.clear()
        self.writes.clear()
        self.receipts.clear()
        self.actor.turn(list(batch))
        return list(self.effects)

    def notice(self, site: str = "alpha", **changes: Any) -> UpdateNotice:
        """A sound update with the site's next sequence number."""
        epoch = changes.get("epoch", 0)
        counter = self._sequences.setdefault((site, epoch), itertools.count(1))
        values = {
            "id": self.new_id(),
            "site": site,
            "run": RUN,
            "epoch": epoch,
            "sequence": changes.pop("sequence", None) or next(counter),
            "base_version": 0,
            "spec": SPEC,
            "length": LENGTH,
            "encoding": "dense-f32",
            "examples": 10,
            "seconds": 1.0,
            "absent": (),
            **changes,
        }
        values.setdefault("envelope", repr(sorted(values.items())).encode())
        return UpdateNotice(**values)

    def arrive(self, notice: UpdateNotice) -> list[Any]:
        """The update comes, on a delivery called by its id."""
        return self.turn(events.UpdateArrived(delivery=notice.id, notice=notice))

    def validate(self, site: str = "alpha", *, norm: float = 1.0, **changes: Any) -> UpdateNotice:
        """An update that comes and is admitted."""
        notice = self.notice(site, **changes)
        self.arrive(notice)
        self.turn(events.Admitted(id=notice.id, norm=norm))
        return notice

    def product(self, plan: MergePlan) -> Product:
        """What the merge would make."""
        digest = hashlib.sha256(plan.parent + b"".join(m.id for m in plan.members)).digest()
        return Product(digest=digest, record=b"record %d" % plan.version, states={"released": b"state"})

    def merge(self) -> MergePlan:
        """Carry out the merge that the last turn asked for."""
        plan = self.only(effects.Merge).plan
        self.turn(events.Merged(plan=plan, product=self.product(plan)))
        return plan

    def advance(self, versions: int = 1) -> None:
        """Make versions, each from one update of each site."""
        for _ in range(versions):
            base = self.state_of_run.version
            for participant in self.registry.members(Role.SITE):
                if self.state_of_run._merging is None:
                    self.validate(participant.name, base_version=base)
            self.merge()

    def evaluate(self, site: str, version: int, accuracy: float) -> list[Any]:
        """A site says how a version did."""
        evaluation = Evaluation(examples=10, metrics={"accuracy": accuracy})
        return self.turn(
            events.EvaluationArrived(delivery="evaluation", site=site, run=RUN, version=version, evaluation=evaluation)
        )

    def command(self, command: str, counter: int, operator: str = "olga") -> list[Any]:
        """An operator's order."""
        return self.turn(events.CommandArrived(delivery="command", operator=operator, counter=counter, command=command))

    def state(self, notice: UpdateNotice) -> tuple[UpdateState, str]:
        """What the journal says of an update."""
        with self.engine.connect() as db:
            row = db.execute(select(updates).where(updates.c.id == notice.id)).one()
        return UpdateState(row.state), row.reason

    def told(self) -> list[tuple[bytes, Outcome, str]]:
        """The receipts of the last turn."""
        return [(receipt.message, receipt.outcome, receipt.reason) for receipt in self.receipts]

    def only(self, kind: type[T]) -> T:
        """The one effect of this kind in the last turn."""
        [found] = self.some(kind)
        return found

    def some(self, kind: type[T]) -> list[T]:
        """The effects of this kind in the last turn."""
        return [effect for effect in self.effects if isinstance(effect, kind)]
