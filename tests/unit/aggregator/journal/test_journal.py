"""The aggregator's journal: what its unique keys answer, what it loads again, and who may write to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from aggregator.domain import events, writes
from aggregator.domain.state import UpdateNotice, UpdateState
from aggregator.journal import history
from aggregator.journal.command_writes import write_command
from aggregator.journal.history import History, ledger_hash
from aggregator.journal.journal import Journal
from aggregator.journal.tables import ledger, members, outbox, update_times, updates, versions
from aggregator.strategy.plan import Member, MergePlan, Product
from protocol.codec import encode, unpack
from protocol.errors import Fenced, StateError
from protocol.messages import Evaluation, Kind, Outcome, Receipt, RunState
from tests.support.aggregator_rules import RULES_OF_RUN, RUN, new_run, registry

REGISTRY = registry("alpha", "beta")
NOON = 1_790_000_000.1234


def opened(path: Path, *, begin: bool = False) -> Journal:
    journal = Journal(path / "aggregator.db", lambda write: b"sealed " + encode(write.body), clock=lambda: NOON)
    if begin:
        journal.begin(new_run(RULES_OF_RUN, 2))
    return journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = opened(tmp_path, begin=True)
    yield journal
    journal.close()


def notice(number: int, site: str = "alpha", **changes: Any) -> UpdateNotice:
    values = {
        "id": bytes([number]) * 16,
        "site": site,
        "run": "run",
        "epoch": 0,
        "sequence": number,
        "base_version": 0,
        "spec": b"s" * 32,
        "length": 64,
        "encoding": "dense-f32",
        "examples": 10 + number,
        "seconds": 0.5,
        "absent": ("bias",),
        "envelope": b"envelope %d of %s" % (number, site.encode()),
        **changes,
    }
    return UpdateNotice(**values)


def journalled(journal: Journal, *notices: UpdateNotice, objection: str = "ok", delivery: Any = None) -> list[Any]:
    return journal.commit([writes.JournalUpdate(delivery=delivery, notice=n, objection=objection) for n in notices])


def receipt(row: int, number: int = 1) -> writes.Send:
    body = Receipt(
        message=bytes([number]) * 16,
        epoch=0,
        sequence=number,
        outcome=Outcome.MERGED,
        reason="ok",
        highest_epoch=0,
    )
    return writes.Send(
        row=row,
        id=bytes(16),
        exchange="direct",
        key="alpha",
        kind=Kind.RECEIPT,
        body=body,
        recipient="alpha",
        run="run",
    )


def version(number: int, *notices: UpdateNotice) -> writes.CommitVersion:
    made = tuple(
        Member(
            id=n.id,
            order=index + 1,
            site=n.site,
            base_version=n.base_version,
            staleness=number - 1 - n.base_version,
            staleness_weight=1.0,
            examples=n.examples,
            seconds=n.seconds,
            example_weight=1.0,
            norm=1.5,
            clip=1.0,
            absent=n.absent,
        )
        for index, n in enumerate(notices)
    )
    plan = MergePlan(
        run="run",
        version=number,
        parent=bytes([number - 1]) * 32,
        strategy="fedbuff",
        parameters={"buffer": 2},
        members=made,
        population=("alpha",),
        divisor=2.0,
        rate=1.25,
        release_decay=0.5,
        ids=(b"a" * 16, b"b" * 16),
        registry=2,
    )
    product = Product(digest=bytes([number]) * 32, record=b"record %d" % number, states={"released": b"average"})
    return writes.CommitVersion(plan=plan, product=product, elapsed=12.5)


def count(journal: Journal, table: Any) -> int:
    with journal.engine.connect() as db:
        return int(db.scalar(select(func.count()).select_from(table)) or 0)


# ---- the unique keys


def test_a_new_update_gets_the_next_place_and_its_delivery_back(journal: Journal) -> None:
    [first, second] = journalled(journal, notice(1), notice(2), delivery="delivery", objection="wrong_run")
    assert (first.order, second.order) == (1, 2)
    assert first == events.Journalled(delivery="delivery", order=1, notice=notice(1), objection="wrong_run")


def test_the_same_bytes_are_a_duplicate_and_come_with_what_became_of_the_first(journal: Journal) -> None:
    journalled(journal, notice(1))
    journal.commit([writes.SetState(id=notice(1).id, state=UpdateState.MERGED, version=3)])
    [answer] = journalled(journal, notice(1), delivery="again")
    assert answer == events.Duplicate(
        delivery="again", notice=notice(1), state=UpdateState.MERGED, reason="ok", version=3
    )
    assert count(journal, updates) == 1


def test_what_became_of_the_first_in_the_same_transaction_is_told_too(journal: Journal) -> None:
    journalled(journal, notice(1))
    answers = journal.commit(
        [
            writes.SetState(id=notice(1).id, state=UpdateState.REJECTED, reason="not_finite"),
            writes.JournalUpdate(delivery=None, notice=notice(1), objection="ok"),
        ]
    )
    assert [(answer.state, answer.reason) for answer in answers] == [(UpdateState.REJECTED, "not_finite")]


def test_another_update_under_a_used_sequence_comes_with_the_sites_highest_epoch(journal: Journal) -> None:
    journalled(journal, notice(1), notice(2, epoch=4), notice(3, "beta", epoch=9))
    other = notice(7, sequence=1)
    [answer] = journalled(journal, other, delivery="other")
    assert answer == events.Reused(delivery="other", notice=other, highest_epoch=4)


def test_a_sequence_is_a_sites_own_and_an_epochs_own(journal: Journal) -> None:
    answers = journalled(journal, notice(1), notice(2, "beta", sequence=1), notice(3, sequence=1, epoch=1))
    assert [type(answer) for answer in answers] == [events.Journalled] * 3


def test_a_known_id_with_a_new_sequence_is_the_same_update_sealed_again(journal: Journal) -> None:
    journalled(journal, notice(1))
    [answer] = journalled(journal, notice(1, epoch=1, sequence=1, envelope=b"sealed again"))
    assert (type(answer), answer.state) == (events.Duplicate, UpdateState.JOURNALLED)
    assert journal.envelope(notice(1).id) == notice(1).envelope


def test_other_bytes_under_a_known_id_and_sequence_are_not_taken_for_the_same_update(journal: Journal) -> None:
    journalled(journal, notice(1))
    [answer] = journalled(journal, notice(1, envelope=b"something else"))
    assert isinstance(answer, events.Reused)


def test_an_id_belongs_to_one_site(journal: Journal) -> None:
    journalled(journal, notice(1))
    [answer] = journalled(journal, notice(1, "beta", sequence=50))
    assert isinstance(answer, events.Reused)
    assert count(journal, updates) == 1


def test_an_update_cannot_be_in_two_versions(journal: Journal) -> None:
    journalled(journal, notice(1))
    journal.commit([version(1, notice(1))])
    with pytest.raises(IntegrityError):
        journal.commit([version(2, notice(1))])
    assert count(journal, versions) == 2


# ---- transactions


def test_a_transaction_is_written_whole_or_not_at_all(journal: Journal) -> None:
    journalled(journal, notice(1))
    before = journal.load(REGISTRY)
    with pytest.raises(StateError, match="does not know how to write str"):
        journal.commit(
            [
                writes.JournalUpdate(delivery=None, notice=notice(2), objection="ok"),
                writes.SetState(id=notice(1).id, state=UpdateState.REJECTED),
                receipt(1),
                writes.SetHead(number=5, elapsed={"run": 1.0}),
                "nonsense",
            ]
        )
    after = journal.load(REGISTRY)
    assert (after.runs["run"].rows, after.head, after.outbox, after.runs["run"].elapsed) == (
        before.runs["run"].rows,
        0,
        [],
        0.0,
    )
    assert journal.fresh == {}
    journal.commit([writes.SetHead(number=1, elapsed={"run": 1.0})])
    assert (journal.load(REGISTRY).runs["run"].rows, journal.load(REGISTRY).outbox) == (before.runs["run"].rows, [])


def test_whoever_opens_it_last_may_write_and_the_one_before_is_fenced(journal: Journal, tmp_path: Path) -> None:
    journalled(journal, notice(1))
    successor = opened(tmp_path)
    with pytest.raises(Fenced, match="taken over"):
        journalled(journal, notice(2))
    journalled(successor, notice(3))
    assert [row.sequence for row in successor.load(REGISTRY).runs["run"].rows] == [1, 3]
    successor.close()


def test_being_fenced_leaves_nothing_behind_and_stays(journal: Journal, tmp_path: Path) -> None:
    opened(tmp_path).close()
    for _ in range(2):
        with pytest.raises(Fenced):
            journal.commit([receipt(1), writes.SetHead(number=9, elapsed={})])
    assert journal.load(REGISTRY).head == 0


def test_a_journal_whose_tables_are_not_ours_is_refused_by_its_name(journal: Journal, tmp_path: Path) -> None:
    with journal.engine.begin() as db:
        db.exec_driver_sql("ALTER TABLE lease RENAME COLUMN epoch TO something")
    with pytest.raises(StateError, match=r"aggregator\.db: cannot be opened .*epoch"):
        opened(tmp_path)


# ---- loading


def test_everything_the_rules_need_comes_back(journal: Journal, tmp_path: Path) -> None:
    journalled(journal, notice(1), notice(2), notice(3, "beta"), notice(4, "beta", epoch=2))
    journalled(journal, notice(5), objection="wrong_run")
    journal.commit(
        [
            version(1, notice(1)),
            writes.SetState(id=notice(1).id, state=UpdateState.MERGED, norm=1.5, version=1),
            writes.SetState(id=notice(2).id, state=UpdateState.VALIDATED, norm=2.5),
            writes.SetState(id=notice(3).id, state=UpdateState.PARKED, reason="store_away"),
            receipt(1),
            writes.SendRaw(row=2, exchange="global", key="", body=b"record 1"),
            writes.SetHead(number=4, elapsed={"run": 20.0}),
            writes.SetCounter(key="olga", counter=7),
            writes.SetRun(run="run", state=RunState.PAUSED, reason="pause-by-olga", elapsed=30.0),
            writes.StoreEvaluation(
                run="run", site="beta", version=1, evaluation=Evaluation(examples=5, metrics={"accuracy": 0.5})
            ),
        ]
    )
    journal.close()
    with closing(opened(tmp_path)) as again:
        snapshot = again.load(REGISTRY)
    run = snapshot.runs["run"]
    assert (run.version, run.digest, run.record_registry) == (1, b"\x01" * 32, 2)
    assert (run.state, run.reason, run.elapsed) == (RunState.PAUSED, "pause-by-olga", 30.0)
    assert (snapshot.head, snapshot.last_row, snapshot.outbox) == (4, 2, [1, 2])
    assert snapshot.highest == {("alpha", 0): 5, ("beta", 0): 3, ("beta", 2): 4}
    assert snapshot.counters == {"olga": 7}
    assert run.site_statistics.norms == [1.5]
    assert run.site_statistics.stats["alpha"].examples == 11
    assert [e.value for e in run.evaluations.history("accuracy")] == [0.5]
    assert [(row.order, row.state, row.norm, row.objection) for row in run.rows] == [
        (2, UpdateState.VALIDATED, 2.5, "ok"),
        (3, UpdateState.PARKED, 0.0, "ok"),
        (4, UpdateState.JOURNALLED, 0.0, "ok"),
        (5, UpdateState.JOURNALLED, 0.0, "wrong_run"),
    ]
    assert run.rows[0].absent == ("bias",)


def test_a_norm_survives_later_states_that_do_not_know_it(journal: Journal) -> None:
    journalled(journal, notice(1))
    journal.commit([writes.SetState(id=notice(1).id, state=UpdateState.VALIDATED, norm=2.5)])
    journal.commit([writes.SetState(id=notice(1).id, state=UpdateState.PARKED, reason="blob_missing")])
    assert journal.load(REGISTRY).runs["run"].rows[0].norm == 2.5


def test_outbox_rows_wait_until_they_are_confirmed(journal: Journal, tmp_path: Path) -> None:
    journal.commit([receipt(1), receipt(2, 2)])
    assert journal.fresh[2].body.startswith(b"sealed ")
    journal.commit([writes.RemoveSent(row=1), writes.RemoveSent(row=1)])
    assert list(journal.fresh) == [2]
    journal.close()
    with closing(opened(tmp_path)) as again:
        assert again.load(REGISTRY).outbox == [2]
        assert again.fresh[2].exchange == "direct"
        assert count(again, outbox) == 1


def test_plans_come_back_as_they_were_with_every_bit_of_their_scalars(journal: Journal) -> None:
    journalled(journal, notice(1), notice(2))
    write = version(1, notice(1), notice(2))
    exact = replace(write.plan, divisor=0.1 + 0.2, rate=1 / 3)
    journal.commit([replace(write, plan=exact)])
    assert journal.run("run").plans() == [(exact, b"\x01" * 32)]
    assert journal.run("run").state_records(1) == {"released": b"average"}
    assert journal.run("run").version_record(1) == b"record 1"
    with journal.engine.connect() as db:
        assert list(db.scalars(select(members.c.position))) == [0, 1]


def test_a_replaced_record_and_a_newer_registry_take_the_place_of_the_old(journal: Journal) -> None:
    journal.store_registry(2, b"registry 2")
    journal.store_registry(3, b"registry 3")
    journal.commit(
        [writes.ReplaceRecord(run=RUN, version=0, record=b"wrapped anew", registry=3, spec_record=b"spec anew")]
    )
    assert journal.registry_record() == b"registry 3"
    assert (journal.run("run").version_record(0), journal.run("run").spec_record()) == (b"wrapped anew", b"spec anew")
    assert journal.load(REGISTRY).runs["run"].record_registry == 3


def test_what_is_not_there_is_said_by_its_name(journal: Journal) -> None:
    with pytest.raises(StateError, match="is not in the journal"):
        journal.envelope(bytes(16))
    with pytest.raises(StateError, match="no version 7"):
        journal.run("run").version_record(7)
    with pytest.raises(StateError, match="not in the journal"):
        journal.update_rows([bytes(16)])


def test_the_writer_does_not_wait_for_one_who_takes_envelope_by_envelope(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PART", 2)
    journalled(journal, *(notice(number) for number in range(1, 6)))
    reader = History.open(tmp_path / "aggregator.db").envelopes()
    found = [next(reader)]
    journalled(journal, notice(6))  # otherwise it fails, after ten seconds
    found += reader
    assert found == [(notice(number).envelope, UpdateState.JOURNALLED) for number in range(1, 7)]


# ---- the ledger


@pytest.mark.parametrize("change", [{"entry": b"\x80"}, {"kind": "version"}, {"hash": bytes(32)}])
def test_a_changed_ledger_entry_breaks_the_chain(journal: Journal, change: dict[str, Any]) -> None:
    journalled(journal, notice(1), notice(2))
    journal.commit([writes.Audit(kind="command", entry={"operator": "olga"})])
    assert journal.broken_link() is None
    with journal.engine.begin() as db:
        db.execute(update(ledger).where(ledger.c.number == 2).values(**change))
    assert journal.broken_link() in (2, 3)


def test_every_ledger_entry_holds_its_time_and_the_chain_covers_it(journal: Journal) -> None:
    journalled(journal, notice(1))
    with journal.engine.begin() as db:
        entries = [unpack(row.entry, 1 << 20) for row in db.execute(select(ledger))]
        assert [entry["at"] for entry in entries] == [1_790_000_000.123] * 2
        changed = encode({**entries[1], "at": 1_790_000_001.0})
        db.execute(update(ledger).where(ledger.c.number == 2).values(entry=changed))
    assert journal.broken_link() == 2


def test_a_journal_from_before_there_were_times_goes_on_without_them(tmp_path: Path) -> None:
    """Made here as it was then: no table of times, and entries without one."""
    old = opened(tmp_path, begin=True)
    journalled(old, notice(1))
    with old.engine.begin() as db:
        previous = b""
        for row in db.execute(select(ledger).order_by(ledger.c.number)).all():
            said = {name: value for name, value in unpack(row.entry, 1 << 20).items() if name != "at"}
            previous = ledger_hash(previous, row.kind, encode(said))
            values = {"entry": encode(said), "hash": previous}
            db.execute(update(ledger).where(ledger.c.number == row.number).values(**values))
        db.exec_driver_sql("DROP TABLE update_times")
    old.close()
    again = opened(tmp_path)
    again.commit([writes.SetState(id=notice(1).id, state=UpdateState.REJECTED, reason="too_stale")])
    journalled(again, notice(2))
    again.commit([writes.SetState(id=notice(2).id, state=UpdateState.REJECTED, reason="too_stale")])
    with again.engine.connect() as db:
        times = {row.id: (row.arrived, row.settled) for row in db.execute(select(update_times))}
        entries = [unpack(row.entry, 1 << 20) for row in db.execute(select(ledger).order_by(ledger.c.number))]
    assert times == {notice(2).id: (1_790_000_000.123, 1_790_000_000.123)}
    assert [entry.get("at") for entry in entries] == [None, None, 1_790_000_000.123]
    assert again.broken_link() is None
    again.close()


def test_a_ledger_entry_slipped_in_at_the_end_does_not_follow(journal: Journal) -> None:
    journalled(journal, notice(1))
    with journal.engine.begin() as db:
        db.execute(insert(ledger).values(kind="update", entry=b"\x80", hash=bytes(32)))
    assert journal.broken_link() == 3


def test_the_ledger_holds_the_digest_of_every_journalled_envelope(journal: Journal, tmp_path: Path) -> None:
    journalled(journal, notice(1))
    journalled(journal, notice(1))
    journal.close()
    with sqlite3.connect(tmp_path / "aggregator.db") as db:
        kinds = [kind for (kind,) in db.execute("SELECT kind FROM ledger ORDER BY number")]
    db.close()
    assert kinds == ["run", "journalled"]


def test_a_reader_beside_the_writer_sees_what_is_committed(journal: Journal, tmp_path: Path) -> None:
    journalled(journal, notice(1))
    history = History.open(tmp_path / "aggregator.db")
    assert history.update_rows([notice(1).id])[0].examples == 11
    history.close()
    with pytest.raises(StateError, match="no such database"):
        History.open(tmp_path / "elsewhere.db")


def test_the_journal_can_write_all_that_the_rules_may_want_written() -> None:
    dispatches = (vars(Journal)["_write"].dispatcher.dispatch, write_command.dispatch)
    for kind in get_args(writes.Write):
        assert any(dispatch(kind) is not dispatch(object) for dispatch in dispatches), kind
