"""Statements that are turned into SQL once."""

from __future__ import annotations

from collections.abc import Iterator

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

from broker.runtime.database import Statement, open_database

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
        assert ALL.run(db).all() == [("naïve", b"\0\xff"), ("second", b"b"), ("third", b"c")]


def test_constants_of_the_statement_stand_beside_its_parameters(database: Engine) -> None:
    with database.begin() as db:
        ADD.run_many(db, [{"order": "a", "body": b""}, {"order": "b", "body": b""}])
        CHANGE.run_many(db, [{"of": 1, "text": ""}, {"of": 2, "text": "changed"}])
        assert [row.order for row in ALL.run(db)] == ["a", "changed"]


def test_a_failure_is_the_same_error_as_of_any_statement(database: Engine) -> None:
    with database.begin() as db:
        db.exec_driver_sql("DROP TABLE things")
        with pytest.raises(OperationalError):
            ALL.run(db)


def test_a_missing_parameter_is_an_error(database: Engine) -> None:
    with database.begin() as db, pytest.raises(KeyError, match="body"):
        ADD.run(db, {"order": "a"})
