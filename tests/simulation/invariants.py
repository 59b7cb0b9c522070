"""What must hold: a witness that follows every commit, ack and publish, and the reckoning at the end.

After every step:
- an update is journalled once; under one (site, epoch, sequence) there are never two;
- a delivery is acked only when its update is journalled or its refusal is in the outbox;
- a final state never changes, and the transaction that sets it holds the receipt that says so;
- a version follows the one before by one, from its digest; its members are validated at that moment, at most
  `updates_per_base` of a site, none merged before, none from the future, none too stale;
- a record that counts as issued for a registry can be read by each of its sites, and so can the specification it names;
- nothing is published that is not committed: receipts, announcements, heads;
- an outbox row is removed only after the broker has had it;
- only whoever took the database over last writes to it;
- a worker's version and head never go back (a restored backup excepted), it never signs two updates with one sequence,
  it drops nothing from its spool that is not settled, and acks a receipt only after it is noted.

At the end, when faults have stopped and everything has drained: see `reckon`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from aggregator.audit.replay import audit
from aggregator.domain import events, writes
from aggregator.domain.state import OUTCOME, UpdateState
from aggregator.journal.history import History
from aggregator.journal.tables import evaluations, ledger, members, outbox, states, updates, versions
from protocol import topology
from protocol.codec import unpack
from protocol.keys import Role
from protocol.messages import Kind, RunState
from tests.simulation.centre import RUN, product_digest
from tests.simulation.surroundings import Delivery, read_back, require, sha256
from worker.domain import writes as worker_writes
from worker.domain.state import Snapshot

if TYPE_CHECKING:
    from tests.simulation.centre import Centre
    from tests.simulation.hospital import Hospital
    from tests.simulation.surroundings import Process
    from tests.simulation.world import World

Key = tuple[str, bytes]


@dataclass(slots=True)
class Known:
    """An update as the journal's commits left it."""

    state: UpdateState
    base: int
    version: int = 0


@dataclass(slots=True)
class Site:
    """A worker as its journal's commits left it."""

    version: int = -1
    head: int = 0
    unsettled: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    sealed: dict[tuple[int, int], bytes] = field(default_factory=dict)
    restored: bool = False
    restores: int = 0


class Witness:
    """Sees everything that becomes durable or leaves a process, and objects at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.writer: Process | None = None
        self.version = 0
        self.digest = sha256(b"version 0")
        self.state = RunState.RUNNING
        self.updates: dict[Key, Known] = {}
        self.sequences: dict[tuple[str, int, int], bytes] = {}
        self.merged: dict[bytes, int] = {}
        self.answered: set[Key] = set()
        self.records: set[bytes] = set()
        self.head = 0
        self.accepted: set[bytes] = set()
        self.rows: dict[int, bytes] = {}
        self.confirmed: dict[Key, bytes] = {}
        self.received: dict[Key, list[dict[str, Any]]] = {}
        self.dead: set[Key] = set()
        self.reused: set[Key] = set()
        self.unsound: set[bytes] = set()
        """Updates of a script that must be refused."""
        self.sites: dict[str, Site] = {}

    # ---- the aggregator

    def take_over(self, process: Process) -> None:
        """This process opened the journal; it alone may write from now on."""
        self.writer = process

    def begun(self, record: bytes) -> None:
        """Version 0 is stored."""
        self.records.add(record)

    def committed(self, process: Centre, written: Any, answers: Any) -> None:
        """One transaction of the aggregator."""
        require(process is self.writer, "only the aggregator that took over last commits, not", process.name)
        for answer in answers:
            self._journalled(answer)
        final: dict[bytes, UpdateState] = {}
        receipts: dict[bytes, set[str]] = {}
        for write in written:
            match write:
                case writes.SetState(id=id, state=state, version=version):
                    self._moved(id, state, version)
                    if state.final:
                        final[id] = state
                case writes.CommitVersion():
                    self._advanced(write)
                case writes.ReplaceRecord(record=record, registry=number):
                    self._readable(record, number)
                    self.records.add(record)
                case writes.Send(kind=Kind.RECEIPT, body=body, recipient=site):
                    receipts.setdefault(body.message, set()).add(body.outcome.value)
                    self._world.saw(f"receipt: {body.outcome.value} {body.reason}")
                    self.answered.add((site, body.message))
                    if body.reason == "sequence_reused":
                        self.reused.add((site, body.message))
                case writes.SetRun(state=state):
                    self.state = state
                    self._world.saw(f"run: {state.value}")
                case writes.SetHead(number=number):
                    require(number > self.head, "the head's number rises")
                    self.head = number
                case writes.RemoveSent(row=row):
                    require(row in self.rows, "outbox row", row, "is removed only after the broker had it")
        for id, state in final.items():
            require(OUTCOME[state].value in receipts.get(id, ()), "a final state is committed with its receipt")
        for id, version in self.merged.items():
            if version == self.version:
                require(final.get(id, UpdateState.MERGED) == UpdateState.MERGED, "a member is marked merged")

    def _journalled(self, answer: Any) -> None:
        self._world.saw(f"journal: {type(answer).__name__}")
        if isinstance(answer, events.Reused):
            site = self.sites.get(answer.notice.site)
            require(site is None or site.restores > 0, "only a restored site reuses a sequence:", answer.notice.site)
        if not isinstance(answer, events.Journalled):
            return
        notice = answer.notice
        key = (notice.site, notice.id)
        number = (notice.site, notice.epoch, notice.sequence)
        require(key not in self.updates, "an update is journalled once:", notice.site, notice.id.hex()[:4])
        require(number not in self.sequences, "one sequence, one update:", number)
        self.updates[key] = Known(state=UpdateState.JOURNALLED, base=notice.base_version)
        self.sequences[number] = notice.id

    def _moved(self, id: bytes, state: UpdateState, version: int) -> None:
        keys = [key for key in self.updates if key[1] == id]
        require(len(keys) == 1, "a state belongs to one update, not to", len(keys))
        known = self.updates[keys[0]]
        require(not known.state.final, "a final state never changes:", known.state, "->", state)
        if state == UpdateState.MERGED:
            require(self.merged.get(id) == version, "what is called merged is in that version")
        require(state != UpdateState.VALIDATED or id not in self.unsound, "what is unsound is not validated")
        known.state, known.version = state, version
        self._world.saw(f"update: {state.value}")

    def _advanced(self, write: writes.CommitVersion) -> None:
        plan = write.plan
        require(plan.version == self.version + 1, "versions are contiguous:", self.version, "->", plan.version)
        require(plan.parent == self.digest, "a version builds on the one before")
        require(self.state == RunState.RUNNING, "nothing is merged while the run is", self.state)
        per_site: dict[str, int] = {}
        for member in plan.members:
            known = self.updates[member.site, member.id]
            require(known.state == UpdateState.VALIDATED, "members are validated, not", known.state)
            require(member.id not in self.merged, "an update is in one version only")
            require(0 <= member.staleness == self.version - member.base_version, "staleness is counted at the merge")
            self.merged[member.id] = plan.version
            per_site[member.site] = per_site.get(member.site, 0) + 1
        quota = self._world.rules.strategy.updates_per_base
        require(max(per_site.values()) <= quota, "at most", quota, "updates of a site in one version")
        self._readable(write.product.record, plan.registry)
        self.version, self.digest = plan.version, write.product.digest
        self.records.add(write.product.record)

    def _readable(self, record: bytes, number: int) -> None:
        """A record that counts as wrapped for a registry is, and so is the specification it names."""
        version = read_back(record)
        spec = read_back(self._world.store.records[version["spec_record"]])
        sites = self._sites_of(number) & self._sites_of(version["registry"])  # it may be wrapped for a newer one
        readable = sites <= set(version["to"]) and sites <= set(spec["to"])
        require(readable, "what is issued for registry", number, "is readable by all of", sorted(sites))

    def _sites_of(self, number: int) -> set[str]:
        [registry] = [registry for registry in self._world.registries.values() if registry.version == number]
        return {participant.name for participant in registry.members(Role.SITE)}

    def acked(self, delivery: Delivery) -> None:
        """A process let go of a delivery."""
        message = read_back(delivery.body)
        if delivery.queue.startswith("in.") and message["kind"] == "update":
            key = (message["site"], message["id"])
            known = self.updates.get(key)
            if message["site"] not in [p.name for p in self._world.registry.members(Role.SITE)]:
                self.dead.add(key)
            else:
                number = (message["site"], message["epoch"], message["sequence"])
                owner = self.sequences.get(number)
                same = known is not None and owner in (None, message["id"])
                require(same or key in self.answered, "an update is acked only when journalled or refused")
        elif message["kind"] == "receipt":
            key = (message["site"], message["message"])
            self.received.setdefault(key, []).append(message)
            site = self.sites.get(message["site"])
            final = message["outcome"] not in ("reupload", "sequence_reused")
            copies = [other for other in delivery.process.unacked if other.body == delivery.body]
            if site is not None and final and not copies:
                require(message["message"] not in site.unsettled, "a receipt is noted before its last copy is acked")

    def published(self, process: Process, row: int, exchange: str, key: str, body: bytes) -> None:
        """The broker took a message from a process's outbox."""
        if exchange.startswith("up."):
            message = read_back(body)
            if message["kind"] == "update":
                self.confirmed[message["site"], message["id"]] = body
            return
        if exchange != topology.COMMANDS:
            self.rows[row] = body
        if exchange in (topology.DEAD, topology.COMMANDS):
            return
        message = read_back(body)
        if message["kind"] == "receipt":
            known = self.updates.get((message["site"], message["message"]))
            state = known.state.value if known is not None else ""
            outcome = message["outcome"]
            if outcome in {state.value for state in OUTCOME} and message["reason"] != "sequence_gap":
                require(outcome == state, "a receipt says", outcome, "and the journal", state)
                require(known is None or message["version"] == known.version, "a receipt names the version")
        elif message["kind"] == "version":
            require(body in self.records, "only committed versions are announced")

    def waits(self, site: str, id: bytes) -> bool:
        """Whether an update waits, validated, for a version that will not come: the run does not go on."""
        known = self.updates.get((site, id))
        return self.state == RunState.PAUSED and known is not None and known.state == UpdateState.VALIDATED

    def forgotten(self, site: str, id: bytes) -> bool:
        """Whether a site's machine went back to a time before this update."""
        known = self.sites.get(site)
        return known is not None and known.restores > 0 and id not in known.unsettled

    def head_signed(self, raw: bytes) -> None:
        """The aggregator signed a head."""
        message = read_back(raw)
        require(message["number"] <= self.head, "a head's number is committed before it is signed")
        require(message["version"] <= self.version, "a head names a committed version")

    # ---- the workers

    def worker_started(self, name: str, snapshot: Snapshot) -> None:
        """A worker read its journal."""
        site = self.sites.setdefault(name, Site())
        version = max((run.version for run in snapshot.runs), default=-1)
        unsettled = {update.id: update.chunks for update in snapshot.updates}
        if not site.restored:
            require(version == site.version and snapshot.head == site.head, "a worker's journal remembers")
            require(unsettled == site.unsettled, "a worker's journal holds what is not settled")
        site.version, site.head, site.unsettled = version, snapshot.head, unsettled
        site.restored = False

    def restored(self, name: str) -> None:
        """A worker's machine went back to a backup: its memory is older now."""
        site = self.sites[name]
        site.restored = True
        site.restores += 1
        site.sealed.clear()

    def worker_committed(self, process: Hospital, written: Any) -> None:
        """One transaction of a worker."""
        site = self.sites[process.site]
        for write in written:
            match write:
                case worker_writes.NoteVersion(row=row):
                    require(row.version >= site.version, "a worker's version never goes back")
                    site.version = row.version
                case worker_writes.NoteHead(number=number):
                    require(number > site.head, "a worker's head never goes back")
                    site.head = number
                case worker_writes.AddUpdate(row=row) | worker_writes.ReplaceUpdate(row=row):
                    number = (row.epoch, row.sequence)
                    require(site.sealed.get(number, row.id) == row.id, "one sequence, one update at", process.site)
                    site.sealed[number] = row.id
                    site.unsettled[row.id] = row.chunks
                case worker_writes.SettleUpdate(row=row, reason=reason):
                    require(reason != "spool_lost", process.site, "lost what it had to send")
                    site.unsettled.pop(row.id, None)

    def dropping(self, name: str, chunks: tuple[bytes, ...]) -> None:
        """A worker deletes chunks."""
        needed = {chunk for named in self.sites[name].unsettled.values() for chunk in named}
        require(needed.isdisjoint(chunks), name, "keeps the chunks of what is not settled")


def reckon(world: World) -> None:
    """What must hold at the end.

    The journal: versions are contiguous and chain; members are exactly the updates called merged, each once; nothing is
    journalled or parked, and nothing is pending at all if the run has ended; the ledger's chain holds and has one entry
    per journalled update, per version and per other end; the stored weights follow from the journal (`audit`), and with
    them every version replays to its digest.

    Towards the sites: the outbox is empty; every update whose publish was confirmed is in the journal (or was refused
    with a receipt, or is a dead letter of a revoked site); every final state's receipt reached its site; every worker
    has settled everything, with the outcome and version the journal has; the head and the current version's records
    are in the store, name the current version, and are readable by every site of the registry.
    """
    history = History(world.centre_database.engine)
    witness = world.witness
    with history.engine.connect() as db:
        rows = {(row.site, row.id): row for row in db.execute(select(updates))}
        in_versions = list(db.execute(select(members).order_by(members.c.version, members.c.position)))
        numbers = list(db.scalars(select(versions.c.version).order_by(versions.c.version)))
        entries = [(row.kind, unpack(row.entry, 1 << 20)) for row in db.execute(select(ledger))]
        waiting = db.scalar(select(func.count()).select_from(outbox))
        streams = {row.version for row in db.execute(select(states.c.version))}
        evaluated = list(db.execute(select(evaluations.c.version)))
    require(numbers == list(range(witness.version + 1)), "versions are contiguous:", numbers)
    require(streams == set(numbers[1:]), "every version has its own streams")
    require(all(row.version <= numbers[-1] for row in evaluated), "evaluations are of versions that exist")
    _check_members(rows, in_versions)
    pending = {UpdateState.VALIDATED.value} if witness.state == RunState.PAUSED else set()
    for (site, id), row in rows.items():
        forgotten = row.state == UpdateState.PARKED.value and bool(pending) and witness.forgotten(site, id)
        allowed = UpdateState(row.state).final or row.state in pending or forgotten
        require(allowed, "at the end update", id.hex()[:4], "of", site, "is", row.state)
    _check_ledger(history, rows, entries, numbers)
    _check_replay(history)
    require(waiting == 0, "the outbox is empty at the end")
    _check_receipts(world, rows)
    _check_workers(world, rows)
    _check_head(world, history)


def _check_members(rows: dict[Key, Any], in_versions: list[Any]) -> None:
    merged = {key: row.version for key, row in rows.items() if row.state == UpdateState.MERGED.value}
    listed = [(row.site, row.id) for row in in_versions]
    require(len(listed) == len(set(listed)), "no update is in two versions")
    require({(row.site, row.id): row.version for row in in_versions} == merged, "members are the updates called merged")


def _check_ledger(history: History, rows: dict[Key, Any], entries: list[Any], numbers: list[int]) -> None:
    require(history.broken_link() is None, "the ledger's chain holds")
    require(audit(history, RUN) == [], audit(history, RUN))
    kinds = [kind for kind, _ in entries]
    require(kinds.count("journalled") == len(rows), "one ledger entry per journalled update")
    require(kinds.count("version") == len(numbers) - 1, "one ledger entry per version")
    told = [entry["id"] for kind, entry in entries if kind == "update"]
    told += [id for kind, entry in entries if kind == "version" for id in entry["members"]]
    final = [id for (_, id), row in rows.items() if UpdateState(row.state).final]
    require(sorted(told) == sorted(final), "the ledger tells the end of every update once")


def _check_replay(history: History) -> None:
    digest = sha256(b"version 0")
    for plan, stored in history.run(RUN).plans():
        require(plan.parent == digest, "version", plan.version, "follows from the one before")
        contents = [read_back(history.envelope(member.id))["content"] for member in plan.members]
        digest = product_digest(digest, plan, contents)
        require(digest == stored, "version", plan.version, "replays to the same digest")


def _check_receipts(world: World, rows: dict[Key, Any]) -> None:
    witness = world.witness
    members_now = {participant.name for participant in world.registry.members(Role.SITE)}
    for key in witness.confirmed:
        if key[0] not in members_now:
            continue  # what a revoked site sent last, and what it is told, may wait in queues that nobody reads
        refused = any(m["outcome"] == "rejected" for m in witness.received.get(key, ()))
        # Refused under a used sequence, and then forgotten because the machine went back to an older backup again.
        forgotten = key in witness.reused and witness.sites.get(key[0], Site()).restores > 0
        known = key in rows or refused or key in witness.dead or forgotten
        require(known, "what the broker confirmed is known:", key[0], key[1].hex()[:4])
    for key, row in rows.items():
        state = UpdateState(row.state)
        if state.final and key[0] in members_now:
            said = [(m["outcome"], m["version"]) for m in witness.received.get(key, ())]
            told = (OUTCOME[state].value, row.version)
            require(told in said, "a receipt", told, "reached", key[0], "for", key[1].hex()[:4], "not only", said)


def _check_workers(world: World, rows: dict[Key, Any]) -> None:
    members_now = {participant.name for participant in world.registry.members(Role.SITE)}
    for site, process in world.hospitals.items():
        if site in members_now:
            require(process.idle, site, "has settled everything")
        for receipt in process.journal.receipts():
            row = rows.get((site, receipt["id"]))
            if row is not None:
                require(
                    (receipt["outcome"], receipt["version"]) == (OUTCOME[UpdateState(row.state)].value, row.version),
                    f"{site} and the journal agree on {receipt['id'].hex()[:4]}:",
                    (receipt["outcome"], receipt["reason"], row.state),
                )
            else:
                require(receipt["reason"] == "sequence_gap", site, "settled what the journal does not know", receipt)
        if site in members_now and site not in world.without_workers:
            known = process.journal.load()
            version = max((run.version for run in known.runs), default=-1)
            if world.witness.state == RunState.PAUSED:
                require(version == world.witness.version, site, "has the newest version", version)
            require(known.head == world.witness.head, site, "knows the newest head")


def _check_head(world: World, history: History) -> None:
    witness = world.witness
    require(world.store.head is not None, "there is a head")
    head = read_back(world.store.head or b"")
    require(head["number"] == witness.head, "the head in the store is the newest:", head["number"], witness.head)
    require((head["version"], head["state"]) == (witness.version, witness.state.value), "the head tells the state")
    record = history.run(RUN).version_record(witness.version)
    require(head["record"] == sha256(record), "the head names the current version's record")
    require(world.store.records.get(sha256(record)) == record, "the current record is in the store")
    current = read_back(record)
    sites = tuple(participant.name for participant in world.registry.members(Role.SITE))
    require(current["to"] == sites, "the current record is for the sites of the registry", current["to"], sites)
    require(head["registry"] == sha256(world.registry_record), "the head names the registry in force")
    spec = world.store.records.get(current["spec_record"])
    require(spec is not None and read_back(spec)["to"] == sites, "so is the specification it names")
    require(topology.inbox_queue(topology.AGGREGATOR) in world.broker.queues, "the topology stands")
