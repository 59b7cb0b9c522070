"""Databases that a killed process leaves, and statements that are turned into SQL once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import OperationalError

from broker.runtime.database import Statement, commit_error, open_database, open_readonly
from protocol.errors import DatabaseBusy

METADATA = MetaData()
THINGS = Table(
    "things",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("order", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
ADD = Statement(insert(THINGS), "order", "body")
CHANGE = Statement(
    update(THINGS)
    .where(THINGS.c.id == bindparam("of"))
    .values(order=func.coalesce(func.nullif(bindparam("text"), ""), THINGS.c.order))
)
ALL = Statement(select(THINGS.c.order, THINGS.c.body).order_by(THINGS.c.id))


@pytest.fixture
def database() -> Iterator[Engine]:
    engine = open_database(None, METADATA, 1)
    yield engine
    engine.dispose()


def test_rows_go_in_and_out_in_order_with_text_and_bytes_as_they_are(database: Engine) -> None:
    with database.begin() as db:
        assert ADD.run(db, {"order": "naïve", "body": b"\0\xff"}).lastrowid == 1
        ADD.run_many(db, [{"body": b"b", "order": "second"}, {"order": "third", "body": b"c"}])
        assert ALL.run(db).fetchall() == [("naïve", b"\0\xff"), ("second", b"b"), ("third", b"c")]


def test_constants_of_the_statement_stand_beside_its_parameters(database: Engine) -> None:
    with database.begin() as db:
        ADD.run_many(db, [{"order": "a", "body": b""}, {"order": "b", "body": b""}])
        CHANGE.run_many(db, [{"of": 1, "text": ""}, {"of": 2, "text": "changed"}])
        assert [order for order, _ in ALL.run(db)] == ["a", "changed"]


def test_a_failure_is_the_same_error_as_of_any_statement(database: Engine) -> None:
    with database.begin() as db:
        db.exec_driver_sql("DROP TABLE things")
        for execute in (lambda: ALL.run(db), lambda: ADD.run_many(db, [{"order": "a", "body": b""}])):
            with pytest.raises(OperationalError) as caught:
                execute()
            assert str(caught.value.orig) == "no such table: things"


def test_the_first_column_of_the_first_row_is_the_value(database: Engine) -> None:
    first = Statement(select(THINGS.c.order).order_by(THINGS.c.id))
    with database.begin() as db:
        assert first.value(db) is None
        ADD.run_many(db, [{"order": "a", "body": b""}, {"order": "b", "body": b""}])
        assert first.value(db) == "a"


def test_a_database_that_another_process_writes_is_an_error_as_of_any_statement(tmp_path: Path) -> None:
    ours, theirs = (open_database(tmp_path / "database", METADATA, 1) for _ in range(2))
    with ours.begin(), theirs.connect() as db:
        db.connection.driver_connection.execute("PRAGMA busy_timeout=1")
        with pytest.raises(OperationalError, match="database is locked") as caught:
            db.begin()
    with pytest.raises(DatabaseBusy, match="database: another program keeps it locked"):
        raise commit_error(tmp_path / "database", caught.value)
    ours.dispose()
    theirs.dispose()


def test_a_missing_parameter_is_an_error(database: Engine) -> None:
    with database.begin() as db, pytest.raises(KeyError, match="body"):
        ADD.run(db, {"order": "a"})


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.broker.runtime.test_database import ADD, METADATA
from broker.runtime.database import open_database

database = open_database(Path(sys.argv[1]), METADATA, 1)
for number in range(3):
    with database.begin() as db:
        ADD.run(db, {"order": f"committed {number}", "body": bytes(5000)})
with database.begin() as db:
    db.exec_driver_sql("PRAGMA cache_size=1")  # so that pages are written before the commit
    for number in range(400):
        ADD.run(db, {"order": f"half {number}", "body": bytes(5000)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_committed_and_nothing_else_is_there_after_a_kill_in_mid_transaction(tmp_path: Path) -> None:
    path = tmp_path / "state" / "database"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    journal = path.with_name("database-journal")
    assert path.stat().st_size > 1_000_000, "the kill came before anything was written"
    assert journal.read_bytes()[:8] == b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
    database = open_database(path, METADATA, 1)
    with database.begin() as db:
        assert [order for order, _ in ALL.run(db)] == ["committed 0", "committed 1", "committed 2"]
    database.dispose()


def test_a_reader_sees_what_was_committed_though_the_writer_was_killed_in_mid_transaction(tmp_path: Path) -> None:
    path = tmp_path / "state" / "database"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    with open_readonly(path).connect() as db:
        assert [order for order, _ in ALL.run(db)] == ["committed 0", "committed 1", "committed 2"]
        for refused in (
            lambda: ADD.run(db, {"order": "a", "body": b""}),
            lambda: db.exec_driver_sql("DROP TABLE things"),
        ):
            with pytest.raises(OperationalError, match="readonly"):
                refused()


def test_the_journal_stays_empty_and_private_between_commits(tmp_path: Path) -> None:
    path = tmp_path / "database"
    database = open_database(path, METADATA, 1)
    with database.begin() as db:
        ADD.run_many(db, [{"order": "large", "body": bytes(5000)} for _ in range(1000)])
    with database.begin() as db:
        db.exec_driver_sql("UPDATE things SET body = x'00'")
    journal = path.with_name("database-journal")
    assert journal.read_bytes()[:28] == bytes(28)
    assert journal.stat().st_size <= 1024**2
    assert journal.stat().st_mode & 0o777 == 0o600
    database.dispose()
