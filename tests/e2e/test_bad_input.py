"""Bad input never gets further than it must: refused with a reason, memory unmoved, the next good update merged."""

from __future__ import annotations

import base64
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select

from aggregator.audit.replay import audit
from aggregator.journal.tables import ledger, members, updates
from broker.blobs.memory import MemoryBlobs
from broker.blobs.open import open_blobs
from broker.transport.memory import MemoryTransport
from protocol import limits, topology
from protocol.messages import Outcome
from tests.e2e.attacks import ATTACKER, LETTERS, REJECTED, REVOKED, VICTIM, Attack
from tests.e2e.centre import WAIT_S, Centre, memory, message_id, peak_memory, reset_peak, running, small_delta
from tests.support.federation import RUN, Federation, wide
from tests.support.rabbit import RabbitNode, RabbitVhost, require_rabbit
from tests.support.s3 import S3Server

GROWTH = 64 * 1024 * 1024
SITES = 6


def revoked_federation() -> Federation:
    """A federation one of whose sites has been revoked."""
    federation = Federation(sites=SITES)
    federation.registry = federation.registry.revoke(REVOKED)
    return federation


@pytest.fixture(scope="module", params=["memory", pytest.param("servers", marks=pytest.mark.servers)])
def centre(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    """One aggregator for all attacks, in memory and over RabbitMQ and S3; what one attack broke, the next would see."""
    state = tmp_path_factory.mktemp("state")
    federation = revoked_federation()
    if request.param == "memory":
        transport, store = MemoryTransport(), MemoryBlobs()
        with running(federation, transport, store, state) as made:
            yield made
        transport.close()
        return
    require_rabbit()
    node: RabbitNode = request.getfixturevalue("rabbit_node")
    s3: S3Server = request.getfixturevalue("s3_server")
    vhost = RabbitVhost(node)
    s3_store = open_blobs(s3.url(f"b{os.urandom(8).hex()}"))
    try:
        with running(federation, vhost.open(), s3_store, state) as made:
            yield made
    finally:
        s3_store.close()
        vhost.close()


@pytest.fixture(autouse=True)
def nothing_else_disturbed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around each attack: memory stays where it was, and afterwards another site's update is merged."""
    if "centre" not in request.fixturenames:
        yield
        return
    made: Centre = request.getfixturevalue("centre")
    reset_peak()
    before = memory()
    yield
    assert peak_memory() - before < GROWTH
    version = made.service.rules.runs[RUN].version
    assert made.merged(VICTIM, made.good(VICTIM)).version == version + 1


@pytest.mark.parametrize("attack", LETTERS, ids=lambda attack: attack.name)
def test_what_is_not_a_genuine_update_becomes_a_dead_letter_with_the_reason(centre: Centre, attack: Attack) -> None:
    raw = attack.make(centre)
    rows = count(centre, updates)

    centre.send(ATTACKER, raw).result(WAIT_S)

    letter = centre.letter(raw)
    assert (letter["reason"], letter["queue"]) == (attack.reason, topology.in_queue(ATTACKER))
    assert letter["size"] == len(raw)
    assert count(centre, updates) == rows


@pytest.mark.parametrize("attack", REJECTED, ids=lambda attack: attack.name)
def test_a_genuine_but_unusable_update_is_rejected_by_a_receipt_with_the_reason(centre: Centre, attack: Attack) -> None:
    while centre.service.rules.runs[RUN].version <= 4:  # so that there is a past to come from
        centre.merged(VICTIM, centre.good(VICTIM))
    raw = attack.make(centre)
    version, merged = centre.service.rules.runs[RUN].version, count(centre, members)

    centre.send(ATTACKER, raw).result(WAIT_S)

    word = centre.receipt(ATTACKER, message_id(raw, centre.federation))
    assert (word.receipt.outcome, word.receipt.reason) == (attack.outcome, attack.reason)
    assert (centre.service.rules.runs[RUN].version, count(centre, members)) == (version, merged)


def test_a_replayed_update_gets_the_same_receipt_again_and_is_not_counted_twice(centre: Centre) -> None:
    raw = centre.good("site-3")
    first = centre.merged("site-3", raw)
    rows, version = count(centre, updates), centre.service.rules.runs[RUN].version

    for _ in range(3):
        centre.send("site-3", raw).result(WAIT_S)

    centre.sites["site-3"].sequence += 1
    wait_until_words(centre, "site-3", 4)
    assert {(word.receipt, word.version) for word in centre.words("site-3")[-4:]} == {(first.receipt, first.version)}
    assert (count(centre, updates), centre.service.rules.runs[RUN].version) == (rows, version)


def test_other_bytes_under_a_used_sequence_number_are_told_to_take_a_new_epoch(centre: Centre) -> None:
    site = centre.sites["site-4"]
    centre.merged("site-4", centre.good("site-4"))
    site.sequence -= 1
    raw = centre.good("site-4", seed=1)

    centre.send("site-4", raw).result(WAIT_S)

    word = centre.receipt("site-4", message_id(raw, centre.federation))
    assert (word.receipt.outcome, word.receipt.highest_epoch) == (Outcome.SEQUENCE_REUSED, 0)
    assert count(centre, updates, updates.c.id == message_id(raw, centre.federation)) == 0


def test_an_update_whose_chunk_is_missing_is_asked_for_again_and_then_merged(centre: Centre) -> None:
    held: dict[bytes, bytes] = {}
    raw = centre.sites[ATTACKER].update(
        small_delta(centre.spec), base=centre.service.rules.runs[RUN].version, emit=held.__setitem__
    )
    id = message_id(raw, centre.federation)
    centre.send(ATTACKER, raw).result(WAIT_S)
    assert centre.receipt(ATTACKER, id).receipt.outcome == Outcome.REUPLOAD

    for name, chunk in held.items():
        centre.store.put(topology.update_chunk(ATTACKER, name.hex()), chunk)
    centre.send(ATTACKER, raw).result(WAIT_S)

    assert centre.receipt(ATTACKER, id, Outcome.MERGED).version == centre.service.rules.runs[RUN].version


def test_an_update_whose_chunk_was_damaged_in_the_store_is_asked_for_again_and_then_merged(centre: Centre) -> None:
    held: dict[bytes, bytes] = {}
    raw = centre.sites[ATTACKER].update(
        small_delta(centre.spec), base=centre.service.rules.runs[RUN].version, emit=held.__setitem__
    )
    id = message_id(raw, centre.federation)
    for name, chunk in held.items():
        # A put of other bytes is what a broken disk or a malicious store does; the site itself is honest.
        centre.store.put(topology.update_chunk(ATTACKER, name.hex()), b"\0" * len(chunk))
    centre.send(ATTACKER, raw).result(WAIT_S)
    assert centre.receipt(ATTACKER, id).receipt.outcome == Outcome.REUPLOAD

    for name, chunk in held.items():
        centre.store.put(topology.update_chunk(ATTACKER, name.hex()), chunk)
    centre.send(ATTACKER, raw).result(WAIT_S)

    assert centre.receipt(ATTACKER, id, Outcome.MERGED).version == centre.service.rules.runs[RUN].version


def test_everything_that_was_refused_stands_in_an_unbroken_ledger(centre: Centre) -> None:
    raw = os.urandom(99)
    before = count(centre, ledger, ledger.c.kind == "refused")
    centre.send(ATTACKER, raw).result(WAIT_S)
    centre.letter(raw)

    assert count(centre, ledger, ledger.c.kind == "refused") == before + 1
    assert audit(centre.service.journal, RUN) == []


# ---- clients that do not keep to the limits


def test_an_oversized_message_becomes_a_dead_letter(tmp_path: Path) -> None:
    federation, transport, raw = Federation(), MemoryTransport(), os.urandom(limits.MESSAGE + 1)
    with running(federation, transport, MemoryBlobs(), tmp_path) as centre:
        broker: Any = transport._broker  # past the check that an honest client makes
        broker.publish(topology.up_exchange(ATTACKER), "", raw)

        letter = centre.letter(raw)

        assert (letter["reason"], letter["size"]) == ("too_large", len(raw))
        centre.merged(VICTIM, centre.good(VICTIM))
    transport.close()


@pytest.mark.servers
def test_an_oversized_message_on_rabbitmq_is_dead_lettered_by_the_broker(
    rabbit_broker: RabbitVhost, tmp_path: Path
) -> None:
    federation, raw = Federation(), os.urandom(limits.MESSAGE + 1)
    rabbit_broker.apply(topology.topology(federation.members))
    with running(federation, rabbit_broker.open(), MemoryBlobs(), tmp_path, letters=False) as centre:
        body = {"properties": {}, "routing_key": "", "payload": base64.b64encode(raw).decode()}
        body["payload_encoding"] = "base64"
        where = ("exchanges", rabbit_broker.vhost, topology.up_exchange(ATTACKER), "publish")
        assert rabbit_broker.node.api("POST", *where, body=body)["routed"]
        while not (letters := held(rabbit_broker, topology.DEAD_LETTERS)):
            centre.merged(VICTIM, centre.good(VICTIM))  # nobody else is disturbed meanwhile

        (death,) = letters[0]["properties"]["headers"]["x-death"]
        assert base64.b64decode(letters[0]["payload"]) == raw
        assert (death["reason"], death["queue"]) == ("rejected", topology.in_queue(ATTACKER))


# ---- a site whose key is revoked while the aggregator runs


def test_a_site_revoked_in_mid_run_is_cut_off_at_once(tmp_path: Path) -> None:
    federation, transport = Federation(), MemoryTransport()
    with running(federation, transport, MemoryBlobs(), tmp_path) as centre:
        centre.merged("site-0", centre.good("site-0"))
        federation.registry = federation.registry.revoke("site-0")
        centre.service.update_registry(federation.registry_record)

        raw = centre.good("site-0")
        centre.send("site-0", raw).result(WAIT_S)

        assert centre.letter(raw)["reason"] == "revoked"
        centre.merged("site-1", centre.good("site-1"))
    transport.close()


# ---- no room


def test_a_full_disk_at_the_aggregator_stops_nothing_but_the_acks(tmp_path: Path) -> None:
    """SQLite itself says that the database is full; nothing is acked until there is room, and nothing is lost."""
    federation, transport = Federation(), MemoryTransport()
    with running(federation, transport, MemoryBlobs(), tmp_path) as centre:
        centre.merged("site-0", centre.good("site-0"))
        room = Room(centre.service.journal.engine)
        room.take_away()
        raws = [centre.good("site-1") for _ in range(2)]
        for raw in raws:
            centre.send("site-1", raw).result(WAIT_S)
        assert room.refused.wait(WAIT_S)
        assert centre.words("site-1") == []

        room.give_back()

        for raw in raws:
            centre.receipt("site-1", message_id(raw, federation), Outcome.MERGED)
        assert audit(centre.service.journal, RUN) == []
    transport.close()


def test_memory_stays_flat_while_a_site_floods_its_queue(tmp_path: Path) -> None:
    """More than the site's queue can hold, each message as large as messages get."""
    federation, transport = Federation(), MemoryTransport()
    with running(federation, transport, MemoryBlobs(), tmp_path, spec=wide(1000)) as centre:
        before = memory()
        reset_peak()
        pending = [centre.send(ATTACKER, os.urandom(limits.MESSAGE)) for _ in range(300)]
        for future in pending:
            future.exception(WAIT_S)  # what the bounded queue pushed back stays with the sender
        centre.merged(VICTIM, centre.good(VICTIM))
        # The queue itself lives in this process here, as the dead letters do; both are bounded.
        assert peak_memory() - before < GROWTH + 2 * 300 * limits.MESSAGE
    transport.close()


# ---- helpers


class Room:
    """The pages a SQLite database may have, taken away and given back; tells when that was felt."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limit: int | None = None
        self.refused = threading.Event()
        event.listen(engine, "begin", self._apply)
        event.listen(engine, "rollback", self._noticed)

    def take_away(self) -> None:
        """From the next transaction on the database must not grow."""
        self._limit = 1  # SQLite takes the present size where it is larger

    def give_back(self) -> None:
        """As much as the disk has."""
        self._limit = 1 << 30

    def _apply(self, connection: Any) -> None:
        if self._limit is not None:
            connection.exec_driver_sql(f"PRAGMA max_page_count={self._limit}")

    def _noticed(self, connection: Any) -> None:
        if "full" in str(sys.exc_info()[1]):
            self.refused.set()


def count(centre: Centre, table: Any, *conditions: Any) -> int:
    """Rows of one of the aggregator's tables."""
    with centre.service.journal.engine.connect() as db:
        return int(db.scalar(select(func.count()).select_from(table).where(*conditions)) or 0)


def wait_until_words(centre: Centre, site: str, least: int) -> None:
    """Wait until a site has got this many receipts."""
    centre.inbox(site).wait_for(least, WAIT_S)


def held(vhost: RabbitVhost, queue: str) -> list[Any]:
    """What lies in a queue."""
    question = {"count": 10, "ackmode": "ack_requeue_true", "encoding": "base64"}
    found: list[Any] = vhost.node.api("POST", "queues", vhost.vhost, queue, "get", body=question)
    return found
