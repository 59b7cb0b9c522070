from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from protocol.errors import StateError
from protocol.messages import RunState
from worker.domain import writes
from worker.domain.state import Deployment, RunRow, Sealed, Snapshot, UpdateRow
from worker.domain.writes import DropDeployment, NoteAnswer, NoteDeployment, NoteDrained, NoteLeft
from worker.journal.journal import Journal

RUN = RunRow(run="r", version=3, digest=b"d" * 32, updates_per_base=2, evaluate=True, sent=1, listed=True)
UPDATE = UpdateRow(row=1, id=b"i" * 16, run="r", base_version=3, epoch=0, sequence=9, chunks=(b"a" * 32, b"b" * 32))
SEALED = Sealed(envelope=b"signed", chunks=UPDATE.chunks, key=b"wrapped")
Reopened = Callable[[], Journal]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "worker.db"


@pytest.fixture
def reopened(path: Path) -> Iterator[Reopened]:
    """Opens the journal, once more at every call; all of them are closed at the end."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(Journal(path, "alpha")))


def settle(update: UpdateRow = UPDATE, receipt: bytes = b"receipt") -> writes.SettleUpdate:
    return writes.SettleUpdate(row=update, outcome="merged", reason="ok", version=4, receipt=receipt)


def test_a_new_journal_is_empty_and_readable_by_its_owner_only(path: Path, reopened: Reopened) -> None:
    assert reopened().load() == Snapshot()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_was_committed_is_there_after_a_restart(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit(
        [
            writes.NoteVersion(row=RUN, record=b"record"),
            writes.NoteHead(number=12),
            writes.NoteRegistry(version=2, digest=b"r" * 32, record=b"registry"),
            writes.Reserve(epoch=1, sequence=9),
            writes.AddUpdate(row=UPDATE, sealed=SEALED),
            writes.AddMessage(row=2, exchange="up.alpha", body=b"evaluation"),
        ]
    )
    journal.close()
    journal = reopened()
    assert journal.load() == Snapshot(
        epoch=1,
        sequence=9,
        head=12,
        registry=2,
        registry_digest=b"r" * 32,
        runs=(RUN,),
        updates=(UPDATE,),
        messages=(2,),
    )
    assert journal.version_record("r") == b"record"
    assert journal.registry_record() == b"registry"
    assert journal.sealed(1) == SEALED


def test_what_people_said_of_runs_and_a_drain_are_there_after_a_restart(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit(
        [
            NoteAnswer(run="r", approved=True),
            NoteAnswer(run="s", approved=True),
            NoteAnswer(run="s", approved=False),
            NoteDrained(drained=True),
            NoteDrained(drained=True),
        ]
    )
    journal.close()
    found = reopened().load()
    assert (found.answers, found.drained) == ({"r": True, "s": False}, True)
    reopened().commit([NoteDrained(drained=False)])
    assert not reopened().load().drained


def test_what_operators_deployed_and_left_is_there_after_a_restart(reopened: Reopened) -> None:
    journal = reopened()
    with_code = replace(RUN, bundle=b"C" * 32)
    first, second = Deployment(code=b"C" * 32, operator="olga"), Deployment(code=b"", operator="oscar")
    journal.commit(
        [
            writes.NoteVersion(row=with_code, record=b"record"),
            NoteDeployment(run="r", deployment=second),
            NoteDeployment(run="r", deployment=first),
            NoteDeployment(run="s", deployment=second),
            NoteLeft(run="r", left=True),
            NoteLeft(run="r", left=True),
            NoteLeft(run="s", left=True),
        ]
    )
    journal.close()
    found = reopened().load()
    assert found.runs == (with_code,)
    assert found.deployments == {"r": first, "s": second}
    assert found.left == {"r", "s"}
    reopened().commit(
        [DropDeployment(run="s"), NoteLeft(run="r", left=False), writes.NoteVersion(row=RUN, record=b"record")]
    )
    found = reopened().load()
    assert (found.deployments, found.left, found.runs) == ({"r": first}, {"s"}, (RUN,))


def test_a_journal_from_before_runs_brought_code_goes_on_with_its_runs(path: Path, reopened: Reopened) -> None:
    journal = reopened()
    journal.commit([writes.NoteVersion(row=RUN, record=b"record"), writes.AddUpdate(row=UPDATE, sealed=SEALED)])
    journal.close()
    with sqlite3.connect(path) as database:
        for table in ("bundles", "deployments", "left_runs"):
            database.execute(f"drop table {table}")
    database.close()
    found = reopened().load()
    assert (found.runs, found.updates, found.deployments, found.left) == ((RUN,), (UPDATE,), {}, frozenset())


def test_a_journal_can_be_read_beside_the_worker_that_writes_it(path: Path, reopened: Reopened) -> None:
    with pytest.raises(StateError, match="no such database"):
        Journal.beside(path)
    journal = reopened()
    journal.commit([writes.NoteVersion(row=RUN, record=b"record"), NoteAnswer(run="r", approved=False)])
    found = Journal.beside(path)
    assert (found.runs, found.answers) == ((RUN,), {"r": False})
    journal.commit([writes.NoteHead(number=1)])


def test_a_journal_from_before_people_were_asked_gets_room_for_their_answers(path: Path, reopened: Reopened) -> None:
    reopened().close()
    with sqlite3.connect(path) as database:
        database.execute("drop table answers")
        database.execute("drop table drained")
    database.close()
    with pytest.raises(StateError, match="this version"):
        Journal.beside(path)
    assert reopened().load() == Snapshot()


def test_what_a_head_says_of_a_run_leaves_its_record(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit([writes.NoteVersion(row=RUN, record=b"record")])
    stopped = replace(RUN, state=RunState.STOPPED)
    journal.commit([writes.NoteRun(row=stopped)])
    assert journal.load().runs == (stopped,)
    assert journal.version_record("r") == b"record"


def test_a_run_that_only_a_head_has_named_has_no_record(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit([writes.NoteRun(row=RunRow(run="new", listed=True))])
    assert journal.version_record("new") == b""
    assert journal.version_record("unheard-of") == b""


def test_updates_and_messages_go_out_with_the_bytes_that_were_signed(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit(
        [
            writes.AddUpdate(row=UPDATE, sealed=SEALED),
            writes.AddMessage(row=2, exchange="up.alpha", body=b"evaluation"),
        ]
    )
    rows = [journal.outgoing(row) for row in (1, 2, 3)]
    assert [(row.id, row.exchange, row.key, row.body) for row in rows if row] == [
        (1, "up.alpha", "", b"signed"),
        (2, "up.alpha", "", b"evaluation"),
    ]
    journal.commit([writes.RemoveMessage(row=2)])
    assert journal.outgoing(2) is None
    assert journal.load().messages == ()


def test_a_settled_update_leaves_its_receipt_and_nothing_else(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit([writes.AddUpdate(row=UPDATE, sealed=SEALED)])
    journal.commit([settle()])
    assert journal.load().updates == ()
    assert journal.outgoing(1) is None
    assert journal.sealed(1) is None
    (kept,) = journal.receipts()
    assert (kept["id"], kept["outcome"], kept["version"], kept["receipt"]) == (b"i" * 16, "merged", 4, b"receipt")


def test_a_receipt_that_comes_twice_is_kept_once(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit([writes.AddUpdate(row=UPDATE, sealed=SEALED), settle(), settle(receipt=b"again")])
    assert [kept["receipt"] for kept in journal.receipts()] == [b"receipt"]


def test_an_update_that_was_sealed_again_replaces_the_old_one(reopened: Reopened) -> None:
    journal = reopened()
    journal.commit([writes.AddUpdate(row=UPDATE, sealed=SEALED)])
    fresh = replace(UPDATE, epoch=4, sequence=1, chunks=(b"c" * 32,))
    sealed = Sealed(envelope=b"signed again", chunks=fresh.chunks, key=b"other")
    journal.commit([writes.ReplaceUpdate(row=fresh, sealed=sealed)])
    assert journal.load().updates == (fresh,)
    assert journal.sealed(1) == sealed


def test_the_newest_registry_is_the_one_that_counts(reopened: Reopened) -> None:
    journal = reopened()
    for version in (1, 3, 2):
        journal.commit([writes.NoteRegistry(version=version, digest=bytes([version]) * 32, record=b"%d" % version)])
    assert journal.load().registry == 3
    assert journal.registry_record() == b"3"


def test_a_commit_is_all_or_nothing(reopened: Reopened) -> None:
    journal = reopened()
    with pytest.raises(StateError, match="no write str"):
        journal.commit([writes.NoteHead(number=5), "nonsense"])
    assert journal.load() == Snapshot()


def test_a_disk_that_refuses_to_write_is_reported_with_the_files_path(path: Path, reopened: Reopened) -> None:
    journal = reopened()
    with journal._begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # the smallest disk SQLite can have
    with pytest.raises(StateError, match="disk is full") as failure:
        journal.commit([writes.AddMessage(row=1, exchange="up.alpha", body=b"x" * 1_000_000)])
    assert str(path) in str(failure.value)


def test_a_journal_of_another_schema_is_refused(path: Path, reopened: Reopened) -> None:
    reopened().close()
    with sqlite3.connect(path) as database:
        database.execute("update schema set version = 99")
    database.close()
    with pytest.raises(StateError, match="schema 99"):
        reopened()


def test_a_journal_whose_tables_are_not_ours_is_refused_by_its_name(reopened: Reopened) -> None:
    with reopened()._begin() as db:
        db.exec_driver_sql("ALTER TABLE counters RENAME COLUMN head TO something")
    with pytest.raises(StateError, match=r"worker\.db: cannot be opened .*head"):
        reopened()


def test_a_journal_in_memory_forgets_nothing_while_it_is_open() -> None:
    with closing(Journal(None, "alpha")) as journal:
        journal.commit([writes.AddUpdate(row=UPDATE, sealed=SEALED)])
        assert journal.load().updates == (UPDATE,)


def test_the_journal_can_write_all_that_the_rules_may_want_written() -> None:
    unknown = vars(Journal)["_write"].dispatcher.dispatch(object)
    assert [
        kind for kind in get_args(writes.Write) if vars(Journal)["_write"].dispatcher.dispatch(kind) is unknown
    ] == []
