"""The world: a seeded scheduler over simulated processes, a clock that moves when it says so, and faults.

`run(seed)` plays one seed in three acts. *Chaos*: every action is drawn by the dice, the seed's faults among them.
*Calm*: faults stop, everything that was killed is up again, and the run has to get on. *Drain*: the operator ends the
run (or pauses it), everything that is under way comes to its end, and `reckon` looks at what is left.
A seed decides everything; `Violation` carries the last actions and the line that plays it again.
"""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import aggregator.journal.tables
import worker.journal.journal
from aggregator.domain.state import RunRules
from aggregator.journal.journal import Journal
from aggregator.rules.federation import AggregatorRules
from aggregator.rules.head import HEAD_EVERY
from aggregator.strategy.stopping import Stopping
from aggregator.strategy.strategies import strategy
from broker.runtime.actor import Actor
from protocol import topology
from protocol.codec import encode
from protocol.keys import Participant, Role
from protocol.messages import RunState
from protocol.registry import Registry
from tests.simulation.centre import LENGTH, RUN, SPEC, Centre, command_message, update_message
from tests.simulation.hospital import Disk, Hospital, Script
from tests.simulation.invariants import Witness, reckon
from tests.simulation.surroundings import (
    Broker,
    Database,
    Delivery,
    Process,
    Store,
    Violation,
    require,
    sha256,
    write_down,
)
from worker.journal.journal import Journal as WorkerJournal
from worker.rules.fetching import HEAD_EVERY as PULL_EVERY
from worker.rules.worker import WorkerRules

COMMANDS = (
    *("run.pause", "run.resume", "run.pause", "run.resume", "run.start"),
    *("run.abort", "run.stop", "run.start", "run.start", "unknown"),
)
"""Orders given in mid-run; what was ended goes on again by the next start."""
Action = tuple[float, str, Callable[[], object]]
LAST = 40
FAULTS = ("crash", "fuse", "takeover", "reconnect", "restore", "registry", "command", "chunk", "noise", "announcement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the processes are made of; a mutant replaces one."""

    rules: Any = AggregatorRules
    journal: Any = Journal
    actor: Any = Actor
    centre: type[Centre] = Centre
    worker_rules: Any = WorkerRules
    worker_journal: Any = WorkerJournal
    worker_actor: Any = Actor
    hospital: type[Hospital] = Hospital
    schema: Callable[[str], str] | None = None
    """Rewrites the definitions of the aggregator's tables."""
    faults: tuple[str, ...] = ()
    """Faults that every seed has; the others come and go with the seed."""
    often: tuple[str, ...] = ()
    """Faults that every seed has six times as often as usual."""
    fuse: float | None = None
    """How often a turn is played with a fuse that kills the process at one of its next points; None: by the seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What came of a seed."""

    seed: int
    actions: int
    version: int
    updates: int
    crashes: int
    trace: int
    """A checksum over every action: two runs of a seed are the same run."""
    sights: Counter[str]
    """What was seen, and how often."""


class Operator(Process):
    """Whoever gives orders: from a machine that never crashes, until the broker has them."""

    ready = True
    orders = 0

    def send(self, body: bytes) -> None:
        """Publish an order."""
        self.orders += 1
        self.relay(self.orders, topology.COMMANDS, "", body, lambda: None)

    def turn(self, events: int | None = None) -> None:
        """There is nothing to do about a confirm."""
        self.mailbox.clear()


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened so far."""

    actions: int = 0
    crashes: int = 0
    trace: int = 0
    sights: Counter[str] = field(default_factory=Counter)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST))


class World:
    """Everything there is under one seed."""

    def __init__(self, seed: int, parts: Parts, *, rules: RunRules | None = None) -> None:
        """`rules`: those of the run; without any, the seed draws them."""
        self.parts = parts
        self.dice = random.Random(seed)
        self.counts = Counts()
        self.now = 1000.0
        self.faulty = True
        self.fuse = parts.fuse if parts.fuse is not None else self.dice.choice([0.03, 0.1, 0.3])
        self.faults = {name for name in FAULTS if self.dice.random() < 0.5} | {*parts.faults, *parts.often}
        self.beginners = self.dice.choice([1, 2, 2, 3])
        self.rules = rules or self._rules()
        self.evaluate = self.dice.random() < 0.4
        self.store = Store()
        self.broker = Broker(limit=self.dice.choice([3, 6, 20]))
        self.witness = Witness(self)
        self.registries: dict[bytes, Registry] = {}
        self.registry = Registry(version=0, entries=())
        self.registry_record = b""
        self.without_workers: set[str] = set()
        self._commands = 0
        self._took_over = 0
        self.centre_database = _database("aggregator", parts.schema)
        self.centre_database.restore()
        self.centres: list[Centre] = []
        self.hospitals: dict[str, Hospital] = {}
        self.scripts: list[Script] = []
        self.operator = Operator(self, "operator")
        self.disks: dict[str, Disk] = {}

    def _rules(self) -> RunRules:
        dice = self.dice
        name = dice.choice(["fedbuff", "fedbuff", "fedbuff", "fedasync", "fedavg", "fedadam"])
        chosen: dict[str, Any] = {}
        if name in ("fedbuff", "fedadam"):
            chosen["buffer"] = dice.choice([None, 1, 2, 3])
            chosen["stale_limit"] = dice.choice([None, None, 0, 2])
        if name != "fedavg":
            chosen["updates_per_base"] = dice.choice([1, 2, 2, 3])
        ends = dice.random() < 0.2
        return RunRules(
            run=RUN,
            spec=SPEC,
            update_length=LENGTH,
            names=frozenset({"weight", "bias"}),
            strategy=strategy(name, **chosen),
            parameters=chosen,
            stopping=Stopping(max_versions=dice.choice([3, 6]) if ends else None),
            min_sites=dice.choice([1, min(2, self.beginners)]),
            max_wait=dice.choice([None, 5.0, 600.0]),
            grace=30.0,
            heartbeat=dice.choice([60.0, 300.0]),
            release_decay=0.8,
        )

    # ---- what the processes ask for

    def new_id(self) -> bytes:
        """Sixteen bytes from the dice."""
        return self.dice.randbytes(16)

    def chance(self, probability: float) -> bool:
        """Whether something goes wrong now; never in calm times."""
        return self.faulty and self.dice.random() < probability

    def saw(self, what: str) -> None:
        """Count something worth having been seen."""
        self.counts.sights[what] += 1

    def tell(self, what: str) -> None:
        """Write down what happens."""
        self.counts.trace = zlib.crc32(what.encode(), self.counts.trace)
        self.counts.last.append(f"{self.counts.actions:5d} {self.now:9.1f} {what}")

    # ---- who there is

    def enrol(self, site: str) -> None:
        """The next registry, with one more site."""
        public = Participant(
            name=site, role=Role.SITE, verify_key=sha256(b"v", site.encode()), box_key=sha256(b"b", site.encode())
        )
        self.put_in_force(self.registry.with_entry(public))

    def put_in_force(self, registry: Registry) -> None:
        """From now on the operator's registry is this one."""
        self.registry = registry
        self.registry_record = encode(registry)
        self.registries[sha256(self.registry_record)] = registry

    def join(self, site: str) -> None:
        """A hospital with a fresh machine."""
        disk = Disk(_database(f"worker {len(self.disks)}", None))
        disk.database.restore()
        self.disks[site] = disk
        self.broker.declare(topology.topology(sorted(self.disks)))
        self.start_hospital(site)

    def start_centre(self) -> None:
        """Start an aggregator; if one runs already, this one takes over."""
        self._took_over += 1
        centre = self.parts.centre(self, f"aggregator {self._took_over}")
        self._light_fuse(centre, 0.2)
        if centre.guarded(centre.start):
            self.centres.append(centre)

    def start_hospital(self, site: str) -> None:
        """Start a site's worker."""
        hospital = self.parts.hospital(self, site, self.disks[site])
        self._light_fuse(hospital, 0.1)
        if hospital.guarded(hospital.start):
            self.hospitals[site] = hospital
        else:
            self.hospitals.setdefault(site, hospital)

    def processes(self) -> list[Process]:
        """Everybody alive."""
        everybody = [*self.centres, *self.hospitals.values(), *self.scripts, self.operator]
        return [process for process in everybody if process.alive]

    def _taking_part(self) -> list[Process]:
        """Everybody whose work the end waits for; who is revoked tries to send for ever."""
        revoked = set() if self.faulty else self._revoked()
        return [process for process in self.processes() if process.name not in revoked]

    def _light_fuse(self, process: Process, probability: float) -> None:
        if "fuse" in self.faults and self.chance(probability):
            process.fuse = self.dice.randrange(12)

    # ---- the scheduler

    def play(self, actions: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Draw and do up to `actions` actions; whether `until` came true."""
        for _ in range(actions):
            if until():
                return True
            choices = self._choices()
            if not choices:
                return until()
            [(_, what, action)] = self.dice.choices(choices, [weight for weight, _, _ in choices])
            self.counts.actions += 1
            self.tell(what)
            if what.startswith("fault"):
                self.saw(what)
            action()
        return until()

    def _choices(self) -> list[Action]:
        choices: list[Action] = []
        consumers: dict[str, list[Process]] = {}
        for process in self._taking_part():
            if process.mailbox:
                choices.append((4.0, f"{process.name}: turn", lambda p=process: self._turn(p)))
            elif not isinstance(process, Script | Operator):
                deadline = process.actor.deadline()
                if deadline is not None and deadline <= self.now:
                    choices.append((4.0, f"{process.name}: tick", process.turn))
            if process.jobs:
                choices.append((4.0, f"{process.name}: work", lambda p=process: self._work(p)))
            for queue in process.queues:
                consumers.setdefault(queue, []).append(process)
        for queue, messages in self.broker.queues.items():
            takers = [process for process in consumers.get(queue, ()) if process.ready]
            if messages and takers:
                choices.append((2.0, f"deliver from {queue}", lambda q=queue, t=takers: self._deliver(q, t)))
        if len(choices) < 2 or self.faulty:
            choices.append((1.0, "time passes", self._pass_time))
        choices += [
            (6.0, f"{name} starts again", lambda n=name: self.start_hospital(n))
            for name, hospital in self.hospitals.items()
            if not hospital.alive
        ]
        self.centres = [centre for centre in self.centres if centre.alive]
        if self.witness.writer not in self.centres:
            choices.append((6.0, "an aggregator starts", self.start_centre))
        return choices + self._faults() if self.faulty else choices

    def _turn(self, process: Process) -> None:
        self._light_fuse(process, self.fuse)
        process.turn(self.dice.randint(1, len(process.mailbox)))

    def _work(self, process: Process) -> None:
        job = self.dice.choice(process.jobs)
        self.tell(f"  {job.label}")
        self.saw(f"work: {job.label.split()[0]}")
        if job.run() and job in process.jobs:
            process.jobs.remove(job)

    def _deliver(self, queue: str, takers: list[Process]) -> None:
        messages = self.broker.queues[queue]
        index = self.dice.randrange(len(messages)) if self.chance(0.3) else 0
        process = self.dice.choice(takers)
        repeat = self.chance(0.1) and not queue.startswith("events.")
        body = messages[index] if repeat else messages.pop(index)
        delivery = Delivery(queue, body, process)
        process.unacked.append(delivery)
        process.take(delivery)

    def _pass_time(self) -> None:
        deadlines = [
            deadline
            for process in self._taking_part()
            if not isinstance(process, Script | Operator) and (deadline := process.actor.deadline()) is not None
        ]
        due = min(deadlines, default=self.now + 60.0)
        self.now = due if due > self.now else self.now + self.dice.random()

    # ---- faults

    def _faults(self) -> list[Action]:
        everybody = [process for process in self.processes() if not isinstance(process, Script | Operator)]
        sites = [name for name, hospital in self.hospitals.items() if hospital.alive]
        kinds: dict[str, Callable[[], object]] = {
            "crash": lambda: self._kill(self.dice.choice(everybody)),
            "takeover": self.start_centre,
            "reconnect": lambda: self.dice.choice(everybody).reconnect(),
            "restore": lambda: self._restore(self.dice.choice(sites)),
            "registry": self._change_registry,
            "command": lambda: self.command(self.dice.choice(COMMANDS)),
            "chunk": self._lose_chunk,
            "noise": lambda: self._noise(self.dice.choice(list(self.disks))),
            "announcement": lambda: self._lose_announcements(self.dice.choice(list(self.disks))),
        }
        rates = {"takeover": 0.08, "restore": 0.2, "registry": 0.1, "command": 0.1, "noise": 0.15}
        return [
            (rates.get(kind, 0.2) * (6 if kind in self.parts.often else 1), f"fault: {kind}", act)
            for kind, act in kinds.items()
            if kind in self.faults and (everybody if kind in ("crash", "takeover", "reconnect") else sites)
        ]

    def _kill(self, process: Process) -> None:
        self.counts.crashes += 1
        self.tell(f"  {process.name}")
        process.die()

    def _restore(self, site: str) -> None:
        disk, hospital = self.disks[site], self.hospitals[site]
        if disk.backup is None or self.dice.random() < 0.2:
            disk.back_up()
            return
        self.tell(f"  {site} goes back to a backup")
        hospital.die()
        disk.restore()
        if self.dice.random() < 0.5:
            disk.backup = None  # the next one is made of the restored machine
        self.witness.restored(site)

    def _change_registry(self) -> None:
        sites = [participant.name for participant in self.registry.members(Role.SITE)]
        joining = f"late{len(self.disks)}"
        if len(self.disks) < 5 and self.dice.random() < 0.6:
            self.enrol(joining)
            self.join(joining)
        elif len(set(sites) - self.without_workers) > 2:
            self.put_in_force(self.registry.revoke(self.dice.choice(sites)))
        for centre in self.centres:
            if centre.alive:
                centre.update_registry(self.registry, self.registry_record)

    def command(self, command: str) -> None:
        """The operator gives an order, and gives it again until the broker has it."""
        self._commands += 1
        self.operator.send(command_message(self._commands, command))

    def _lose_chunk(self) -> None:
        lost = [key for key in self.store.chunks if key[0] in self.disks and key[1] in self.disks[key[0]].spool]
        if lost:
            del self.store.chunks[self.dice.choice(lost)]

    def _lose_announcements(self, site: str) -> None:
        self.broker.queues[topology.down_queue(site)].clear()

    def _noise(self, site: str) -> None:
        kind = self.dice.randrange(3)
        if kind == 0:
            self.broker.publish(topology.up_exchange(site), "", write_down({"kind": "noise", "n": self.new_id()}))
        elif self.scripts and kind == 1 and self.dice.random() < 0.4:
            for index in range(7):  # sound, and more than wait for a site: the oldest have to make room
                numbers = {"sequence": 10 + self.counts.actions + index, "base": self.witness.version}
                script = self.scripts[0]
                script.send(update_message(script.site, self.new_id(), sha256(self.new_id()), **numbers))
        elif self.scripts:
            flaws: list[dict[str, Any]] = [
                {"base": self.witness.version + 7},
                {"run": "another"},
                {"spec": sha256(b"another")},
                {"length": 1},
                {"encoding": "int8"},
                {"absent": ["unheard-of"]},
                {"flaw": "not_finite"},
                {"sequence": 100_000},
                {"sequence": 1},
            ]
            script = self.scripts[0]
            changes = {"sequence": 10 + self.counts.actions, **self.dice.choice(flaws)}
            update = update_message(script.site, self.new_id(), sha256(self.new_id()), **changes)
            if update["sequence"] not in (1, 100_000):
                self.witness.unsound.add(update["id"])
            script.send(update)

    # ---- the acts

    def settle(self) -> None:
        """Faults stop: nothing is lost, repeated or killed any more."""
        self.faulty = False
        for process in self.processes():
            process.fuse = None
        # Nobody reads what a revoked site is told; its queue must not fill up and hold the outbox for ever.
        self.broker.unbounded |= {topology.inbox_queue(site) for site in self._revoked()}
        self.tell("calm")

    def drain(self) -> None:
        """Let everything come to its end, then let the head be signed once more and reach everybody."""
        # Whoever was fenced may have put an old head over a newer one; the next signing puts it right, and the next
        # pull tells the sites.
        for seconds in (0.0, HEAD_EVERY, PULL_EVERY):
            self.now += seconds
            require(self.play(1500, self._quiet), "everything comes to its end:", self._noisy())

    def _quiet(self) -> bool:
        busy = any(process.mailbox or process.jobs for process in self.processes() if isinstance(process, Centre))
        return not busy and not self._noisy()

    def _noisy(self) -> list[str]:
        """What is still under way, apart from what never ends."""
        revoked = self._revoked()
        ignored = {topology.DEAD_LETTERS} | {topology.event_queue(site) for site in self.disks}
        read_by_nobody = (topology.in_queue, topology.down_queue, topology.inbox_queue)
        ignored |= {queue(site) for site in revoked for queue in read_by_nobody}
        queues = self.broker.queues.items()
        found = [f"{len(messages)} in {name}" for name, messages in queues if messages and name not in ignored]
        found += [f"{name} is down" for name, hospital in self.hospitals.items() if not hospital.alive]
        # One that was fenced and has nothing to commit learns of it when it next signs the head.
        found += [] if any(centre is self.witness.writer for centre in self.centres) else ["no aggregator"]
        members = self._taking_part()
        found += [f"{process.name}: {what}" for process in members for what in self._business(process)]
        if not found:  # asked last, because it reads the databases
            sites = [process for process in members if isinstance(process, Hospital | Script)]
            found += [f"{process.name} has something to send" for process in sites if not process.idle]
        return found

    def _revoked(self) -> set[str]:
        return {entry.name for entry in self.registry.entries if entry.revoked is not None}

    def _business(self, process: Process) -> list[str]:
        found = [f"mailbox: {type(event).__name__}" for event in process.mailbox]
        found += [job.label for job in process.jobs]
        found += [f"unacked from {delivery.queue}" for delivery in process.unacked]
        if isinstance(process, Centre):
            # What waits for a chunk of a site that has forgotten the update waits until the run goes on.
            found += ["tries an update again" for at in process.rules.runs[RUN]._retry_at.values() if at < math.inf]
        if not isinstance(process, Script | Operator) and (process.actor.deadline() or self.now + 1) <= self.now:
            found.append("a deadline has passed")
        if isinstance(process, Centre | Hospital) and process.actor._held:
            found.append("holds back a commit")
        return found

    def end(self) -> None:
        """The operator ends or pauses the run."""
        command = self.dice.choice(["run.stop", "run.stop", "run.abort", "run.pause"])
        self.command(command)


@cache
def _database(name: str, change: Callable[[str], str] | None) -> Database:
    """One engine per role, emptied and used again by every seed; making one takes as long as half a seed."""
    if name == "aggregator":
        return Database(aggregator.journal.tables.metadata, aggregator.journal.tables.SCHEMA, change=change)
    return Database(worker.journal.journal._metadata, worker.journal.journal.SCHEMA)


def run(seed: int, parts: Parts | None = None, *, last: int = LAST) -> Told:
    """Play a seed; a violation comes with the `last` actions.

    Raises:
        Violation: a promise was broken.
    """
    world = World(seed, parts or Parts())
    world.counts.last = deque(maxlen=last)
    try:
        _acts(world)
    except Exception as error:
        last = "\n".join(world.counts.last)
        raise Violation(
            f"seed {seed}: {type(error).__name__}: {error}\n{last}\n"
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"play it again: python -m tests.simulation --from {seed} --seeds 1 --last 1000"
        ) from error
    return Told(
        seed=seed,
        actions=world.counts.actions,
        version=world.witness.version,
        updates=len(world.witness.updates),
        crashes=world.counts.crashes,
        trace=world.counts.trace,
        sights=world.counts.sights,
    )


def _acts(world: World) -> None:
    dice = world.dice
    for index in range(world.beginners):
        world.enrol(f"site{index}")
    script = "script"
    if "noise" in world.faults:
        world.enrol(script)
        world.without_workers.add(script)
    world.broker.declare(topology.topology(p.name for p in world.registry.members(Role.SITE)))
    world.start_centre()
    for participant in world.registry.members(Role.SITE):
        if participant.name == script:
            world.scripts.append(Script(world, script, []))
        else:
            world.join(participant.name)
    world.play(dice.randint(80, 400))
    world.settle()
    world.command("run.resume")
    reached = world.witness.version + 1
    ended = (RunState.STOPPED, RunState.ABORTED)
    went_on = world.play(1500, lambda: world.witness.version >= reached or world.witness.state in ended)
    require(went_on, "the run gets on once faults have stopped; version", world.witness.version)
    world.play(dice.randint(0, 60))
    world.end()
    world.drain()
    reckon(world)
