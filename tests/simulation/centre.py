"""The aggregator in the simulation: the product's rules and journal in a shell whose slow work is done by the dice."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from aggregator.domain import effects, events, writes
from aggregator.domain.state import NewRun, RunRules, UpdateNotice
from aggregator.service.service import may_wait
from aggregator.strategy.plan import MergePlan, Product
from protocol import topology
from protocol.keys import Role
from protocol.messages import Evaluation, RunState
from protocol.registry import Registry
from tests.simulation.surroundings import PREFETCH, Delivery, Process, read_back, require, sha256, write_down

if TYPE_CHECKING:
    from tests.simulation.world import World

RUN = "run"
SPEC = sha256(b"the model")
LENGTH = 4096
ENCODING = "dense-f32"
RELEASED = "released"
OPERATOR = "operator"


def version_record(
    world: World, version: int, digest: bytes, parent: bytes | None, registry: Registry, spec_record: bytes
) -> bytes:
    """A signed version record: like a real one it has other bytes each time it is made."""
    strategy = world.rules.strategy
    return write_down(
        {
            "kind": "version",
            "run": RUN,
            "version": version,
            "digest": digest,
            "parent": parent,
            "spec_record": sha256(spec_record),
            "updates_per_base": strategy.updates_per_base,
            "evaluate": world.evaluate,
            "registry": registry.version,
            "to": [participant.name for participant in registry.members(Role.SITE)],
            "nonce": world.new_id(),
        }
    )


def norm_of(content: bytes) -> float:
    """The norm of a delta, here a function of its name."""
    return 0.5 + content[0] / 256


def product_digest(parent: bytes, plan: MergePlan, contents: list[bytes]) -> bytes:
    """The digest of a version: a function of its parent, its members in order, and every scalar."""
    scalars = [m.weight for m in plan.members]
    numbers = struct.pack(f">{len(scalars) + 3}d", plan.divisor, plan.rate, plan.release_decay, *scalars)
    return sha256(parent, plan.strategy.encode(), numbers, *(m.id for m in plan.members), *contents)


class Centre(Process):
    """One life of the aggregator."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.newest_head = b""
        self.head_to_put = self.head_to_announce = False
        self.seals = 0

    def start(self) -> None:
        """What the service does before its first turn; it may be killed in between."""
        world, parts = self.world, self.world.parts
        self.journal = parts.journal(None, self.seal, engine=world.centre_database.engine)
        self.slow_writes(self.journal)
        self.registry = world.registry
        self.registry_digest = world.store.put_record(world.registry_record)
        world.witness.take_over(self)
        self.journal.store_registry(self.registry.version, world.registry_record)
        if not self.journal.names():
            spec_record = write_down({"kind": "spec", "to": self.sites()})
            record = version_record(world, 0, sha256(b"version 0"), None, self.registry, spec_record)
            world.store.put_record(record)
            world.store.put_record(spec_record)
            self.point("before version 0 is stored")
            self.journal.begin(new_run(world.rules, record, spec_record, self.registry.version))
            world.witness.begun(record)
        self.point("before the journal is loaded")
        snapshot = self.journal.load(self.registry)
        run = self.journal.run(RUN)
        self.record = run.version_record(run.newest())
        self.spec_record = run.spec_record()
        self.rules = parts.rules({RUN: world.rules}, snapshot, new_id=world.new_id, now=world.now)
        self.actor = parts.actor(self.rules, self.commit, self.perform, may_wait=may_wait, clock=lambda: world.now)
        self.mailbox = [events.Started()]
        self.subscribe()

    def sites(self) -> list[str]:
        """The sites of the registry in force."""
        return [participant.name for participant in self.registry.members(Role.SITE)]

    def subscribe(self) -> None:
        """Declare and consume the queues of all sites."""
        self.world.broker.declare(topology.topology(sorted(self.sites())))
        self.queues = tuple(
            [topology.inbox_queue(topology.AGGREGATOR)]
            + [queue(site) for site in self.sites() for queue in (topology.in_queue, topology.event_queue)]
        )

    def seal(self, write: writes.Send) -> bytes:
        """The bytes of a receipt: made anew for every transaction, like a signature with a fresh key."""
        body = write.body
        self.seals += 1
        return write_down(
            {
                "kind": "receipt",
                "site": self.registry.former(write.recipient).name,
                "message": body.message,
                "epoch": body.epoch,
                "sequence": body.sequence,
                "outcome": body.outcome.value,
                "reason": body.reason,
                "highest_epoch": body.highest_epoch,
                "version": write.version,
            }
        )

    def update_registry(self, registry: Registry, record: bytes) -> None:
        """The operator puts a newer registry in force."""
        self.world.store.put_record(record)
        self.world.broker.declare(topology.topology(sorted(p.name for p in registry.members(Role.SITE))))
        self.registry = registry
        self.mailbox.append(events.RegistryChanged(registry=registry, record=record))

    # ---- deliveries

    @property
    def ready(self) -> bool:
        """Whether the broker may deliver more."""
        return len(self.unacked) < PREFETCH

    def take(self, delivery: Delivery) -> None:
        """What intake makes of a delivery."""
        message, queue = read_back(delivery.body), delivery.queue
        site = queue.partition(".")[2]
        if queue == topology.inbox_queue(topology.AGGREGATOR):
            event: Any = events.CommandArrived(
                delivery=delivery, operator=OPERATOR, counter=message["counter"], command=message["command"]
            )
        elif message["kind"] == "noise" or site not in self.sites():
            reason = "malformed" if message["kind"] == "noise" else "revoked"
            event = events.DeliveryRefused(delivery=delivery, site=site, queue=queue, reason=reason, raw=delivery.body)
        elif message["kind"] == "event":
            event = events.SiteSeen(delivery=delivery, site=site)
        elif message["kind"] == "evaluation":
            evaluation = Evaluation(examples=message["examples"], metrics=message["metrics"])
            event = events.EvaluationArrived(
                delivery=delivery, site=site, run=RUN, version=message["version"], evaluation=evaluation
            )
        else:
            event = events.UpdateArrived(delivery=delivery, notice=notice(message, delivery.body))
        self.mailbox.append(event)

    # ---- commits

    def commit(self, written: Any) -> Any:
        """The shell's commit: the journal, then what is kept beside it."""
        self.point("before the commit")
        answers = self.journal.commit(written)
        for write in written:
            if isinstance(write, writes.CommitVersion):
                self.record = write.product.record
            elif isinstance(write, writes.ReplaceRecord):
                self.record, self.spec_record = write.record, write.spec_record
        self.world.witness.committed(self, written, answers)
        self.point("after the commit")
        return answers

    # ---- effects

    def effect(self, effect: Any) -> None:
        """What the service does about each effect."""
        world = self.world
        match effect:
            case effects.Settle(delivery=delivery):
                delivery.ack()
            case effects.Publish(row=row):
                if row in self.journal.fresh:
                    self.hand_over(row)
            case effects.Admit(id=id):
                self.answer(f"admit {id.hex()[:4]}", partial(self.admit, id, read_back(self.journal.envelope(id))))
            case effects.Merge(plan=plan):
                envelopes = [read_back(self.journal.envelope(member.id)) for member in plan.members]
                require(read_back(self.record)["digest"] == plan.parent, "a merge starts from the current version")
                inputs = (plan, envelopes, self.rules.registry, self.spec_record)
                self.answer(f"merge {plan.version}", partial(self.merge, *inputs))
            case effects.PutHead():
                self.newest_head = self.head(effect)
                world.witness.head_signed(self.newest_head)
                self.head_to_put = True
                self.begin_head()
            case effects.AnnounceHead():
                self.head_to_announce = True
                self.begin_head()
            case effects.UseRegistry(registry=registry):
                self.follow(registry)
            case effects.AnswerCommand() | effects.LookUp():
                pass  # an answer that is lost is asked for again
            case effects.Reissue(registry=registry, version=version):
                self.answer(
                    f"reissue {version} for registry {registry.version}",
                    partial(self.reissue, version, registry, self.record, self.spec_record),
                )
            case effects.Ended():
                pass
            case _:
                raise TypeError(f"the simulated aggregator does not know {effect}")

    def hand_over(self, row: int) -> None:
        """Give an outbox row to the relay."""
        message = self.journal.fresh[row]
        self.relay(row, message.exchange, message.key, message.body, partial(events.Published, row=row))

    def admit(self, id: bytes, update: dict[str, Any]) -> Any:
        """Admission; what is wrong with the tensors stands in the simulated envelope."""
        if self.world.chance(0.1):
            return events.NotAdmitted(id=id, reason="store_away", retry=True)
        if not all((update["site"], name) in self.world.store.chunks for name in update["chunks"]):
            return events.NotAdmitted(id=id, reason="chunk_missing", retry=True, missing=True)
        if update["flaw"]:
            return events.NotAdmitted(id=id, reason=update["flaw"], retry=False)
        return events.Admitted(id=id, norm=norm_of(update["content"]))

    def merge(self, plan: MergePlan, updates: list[dict[str, Any]], registry: Registry, spec_record: bytes) -> Any:
        """The side-by-side walk, reduced to a digest of everything that goes into it."""
        if self.world.chance(0.15):
            return events.MergeFailed(plan=plan, reason="merge_failed", bad=None)
        for update in updates:
            if not all((update["site"], name) in self.world.store.chunks for name in update["chunks"]):
                return events.MergeFailed(plan=plan, reason="blob_missing", bad=update["id"])
        digest = product_digest(plan.parent, plan, [update["content"] for update in updates])
        record = version_record(self.world, plan.version, digest, plan.parent, registry, spec_record)
        self.world.store.put_record(record)
        names = (RELEASED, *self.world.rules.strategy.state)
        states = {name: write_down({"kind": "state", "stream": name, "nonce": self.world.new_id()}) for name in names}
        return events.Merged(plan=plan, product=Product(digest=digest, record=record, states=states))

    def head(self, effect: effects.PutHead) -> bytes:
        """A signed head."""
        [place] = effect.runs
        return write_down(
            {
                "kind": "head",
                "number": effect.number,
                "registry": self.registry_digest,
                "state": place.state.value,
                "reason": place.reason,
                "version": place.version,
                "record": sha256(self.record),
                "not_after": int(self.world.now) + 24 * 3600,
            }
        )

    def begin_head(self) -> None:
        """Wake the head writer."""
        if not any(job.label == "put the head" for job in self.jobs):
            self.job("put the head", self.put_head)

    def put_head(self) -> bool:
        """The head writer's turn: the newest head wins, a store that is away is tried again, then it is announced."""
        away = self.head_to_put and self.world.chance(0.2)
        if self.head_to_put and not away:
            self.world.store.head = self.newest_head
        if self.head_to_announce and not self.world.chance(0.2):
            self.world.broker.publish(topology.GLOBAL, "", self.newest_head)
        self.head_to_put, self.head_to_announce = away, False
        return not away

    def follow(self, registry: Registry) -> None:
        """Consume the queues of new sites, name the registry in heads."""
        self.registry = registry
        record = self.journal.registry_record()
        if record is not None:
            self.registry_digest = sha256(record)
        self.subscribe()

    def reissue(self, version: int, registry: Registry, record: bytes, spec_record: bytes) -> Any:
        """Both records with wraps for the sites of `registry`."""
        if self.world.chance(0.2):
            return events.ReissueFailed(run=RUN)
        sites = [participant.name for participant in registry.members(Role.SITE)]
        spec_record = write_down({**read_back(spec_record), "to": sites, "nonce": self.world.new_id()})
        digest = self.world.store.put_record(spec_record)
        record = write_down(
            {
                **read_back(record),
                "to": sites,
                "registry": registry.version,
                "spec_record": digest,
                "nonce": self.world.new_id(),
            }
        )
        self.world.store.put_record(record)
        return events.Reissued(
            run=RUN, version=version, registry=registry.version, record=record, spec_record=spec_record
        )


def new_run(rules: RunRules, record: bytes, spec_record: bytes, registry: int) -> NewRun:
    """A run with its version 0, as it is taken over."""
    return NewRun(
        rules=rules,
        config="",
        digest=sha256(b"version 0"),
        record=record,
        spec=b"",
        spec_record=spec_record,
        code_record=b"",
        registry=registry,
        state=RunState.RUNNING,
    )


def notice(message: dict[str, Any], raw: bytes) -> UpdateNotice:
    """What intake reads from an update."""
    return UpdateNotice(
        id=message["id"],
        site=message["site"],
        run=message["run"],
        epoch=message["epoch"],
        sequence=message["sequence"],
        base_version=message["base"],
        spec=message["spec"],
        length=message["length"],
        encoding=message["encoding"],
        examples=message["examples"],
        seconds=message["seconds"],
        absent=tuple(message["absent"]),
        envelope=raw,
    )


def update_message(site: str, id: bytes, content: bytes, **changes: Any) -> dict[str, Any]:
    """A sound update; `changes` make it another one, or an unsound one."""
    message = {
        "kind": "update",
        "site": site,
        "id": id,
        "run": RUN,
        "epoch": 0,
        "sequence": 1,
        "base": 0,
        "spec": SPEC,
        "length": LENGTH,
        "encoding": ENCODING,
        "examples": 10 + content[1],
        "seconds": 1.0 + content[2],
        "absent": [],
        "content": content,
        "flaw": "",
        **changes,
    }
    core = write_down({name: message[name] for name in ("id", "epoch", "sequence", "content")})
    message["chunks"] = [sha256(core, bytes([index])) for index in range(1 + content[3] % 2)]
    return message


def command_message(counter: int, command: str) -> bytes:
    """An operator's order."""
    return write_down({"kind": "command", "counter": counter, "command": command})
