"""What has to hold after every ordeal, told from the databases, the logs, the store and the wire."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from aggregator.audit.replay import Replay, audit, read_version
from fledge.bootstrap import open_kept
from protocol import topology
from protocol.messages import Kind
from tests.e2e.rig import RUN, Rig

FAILURES = {"work.failed", "aggregator.failed", "worker.failed", "observer.failed", "head.stale"}
AWAY = {"StoreError", "Missing", "DiskFull"}
"""A training may fail because the store is away or the disk full; it is tried again."""
_KIND = 5  # where the kind stands in an envelope


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers for the summary."""

    updates: int
    merged: int
    rejected: int
    versions: int


def violations(rig: Rig) -> list[str]:
    """Every promise that was broken; none after a good run. The programs have been stopped before."""
    return [
        *rig.ended_by_themselves(),
        *_journal(rig),
        *_receipts(rig),
        *_announcements(rig),
        *_logs(rig),
        *_replay(rig),
    ]


def tally(rig: Rig) -> Tally:
    """What the run came to."""
    states = Counter(state for (state,) in rig.ask("SELECT state FROM updates"))
    return Tally(
        updates=sum(states.values()),
        merged=states["merged"],
        rejected=sum(states.values()) - states["merged"],
        versions=rig.version,
    )


def _journal(rig: Rig) -> Iterator[str]:
    """Versions follow one another, and nothing is there twice."""
    numbers = [number for (number,) in rig.ask("SELECT version FROM versions ORDER BY version")]
    if numbers != list(range(len(numbers))):
        yield f"versions are {numbers}"
    for what, columns in (("updates", "site, id"), ("updates", "site, epoch, sequence"), ("members", "id")):
        for row in rig.ask(f"SELECT {columns}, count(*) FROM {what} GROUP BY {columns} HAVING count(*) > 1"):
            yield f"{what}: {row[-1]} rows with the same {columns}"
    merged = set(rig.ask("SELECT id, version FROM updates WHERE state = 'merged'"))
    counted = set(rig.ask("SELECT id, version FROM members"))
    if merged != counted:
        yield f"{len(merged ^ counted)} updates are merged and not counted, or counted and not merged"
    if open_ := rig.ask("SELECT count(*) FROM updates WHERE state IN ('journalled', 'validated', 'parked')")[0][0]:
        yield f"{open_} updates are in no final state after the run's end"


def _receipts(rig: Rig) -> Iterator[str]:
    """Every update a site ever made has a receipt that says the same as the aggregator's journal."""
    journal = {
        (site, id): (state, reason, version)
        for site, id, state, reason, version in rig.ask("SELECT site, id, state, reason, version FROM updates")
    }
    known = set()
    for site, worker in rig.workers.items():
        if pending := rig.ask_site(site, "SELECT count(*) FROM updates")[0][0]:
            yield f"{site}: {pending} updates never got a receipt"
        receipts = rig.ask_site(site, "SELECT id, outcome, reason, version FROM receipts")
        for id, *said in receipts:
            known.add((site, id))
            if journal.get((site, id)) != tuple(said):
                yield f"{site}: update {id.hex()[:8]} has the receipt {said}, the journal {journal.get((site, id))}"
        short = {id.hex()[:8] for id, *_ in receipts}
        spooled = {line["update"] for line in worker.events if line.get("event") == "update.spooled"}
        if lost := spooled - short:
            yield f"{site}: nobody knows what became of {sorted(lost)}"
    for site, id in journal.keys() - known:
        yield f"{site}: update {id.hex()[:8]} is journalled and its site has no receipt"


def _announcements(rig: Rig) -> Iterator[str]:
    """Whatever was announced is committed, byte for byte."""
    committed = {record for (record,) in rig.ask("SELECT record FROM versions")}
    for raw in rig.announced():
        if raw[_KIND] == Kind.VERSION and raw not in committed:
            yield f"a version was announced that is not in the journal ({hashlib.sha256(raw).hexdigest()[:8]})"
    for site in rig.sites:
        if waiting := rig.vhost.open().depth(topology.in_queue(site)):
            yield f"{waiting} messages of {site} were never taken"
    if dead := rig.vhost.open().depth(topology.DEAD_LETTERS):
        yield f"{dead} dead letters"


def _logs(rig: Rig) -> Iterator[str]:
    for program in rig.programs:
        if program.strange:
            yield f"{program.name} said {''.join(program.strange)[-2000:]}"
        for line in program.events:
            broken = line.get("event") == "training.failed" and line.get("kind") not in AWAY
            if broken or line.get("event") in FAILURES:
                yield f"{program.name} logged {line}"[:2000]


def _replay(rig: Rig) -> Iterator[str]:
    """The journal's account leads to the very bytes that were published."""
    centre = rig.centre
    with open_kept(centre, RUN) as kept:
        yield from audit(kept.history, RUN)
        records = kept.records
        replay = Replay(
            federation=records.federation,
            run=records.run,
            identity=records.identity,
            registry=kept.registry,
            history=kept.history,
            store=records.store,
        )
        last = b""
        for version in replay.versions():
            last = version.digest
            if not version.same:
                yield f"version {version.version} is not what its replay gives"
        newest = kept.run.version_record(kept.run.newest())
        published = hashlib.sha256()
        for record in read_version(records, kept.registry, newest, {}, released=False):
            published.update(record)
        if published.digest() != last:
            yield "the published model is not what the replay gives"
