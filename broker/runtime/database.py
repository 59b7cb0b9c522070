"""Local state in SQLite: one file, one writer thread, durable at every commit.

SQLite's write-ahead log has a corruption bug below 3.51.3 and its usual companion `synchronous=NORMAL` may lose
committed rows on power loss: hence a rollback journal and `synchronous=EXTRA`. Making and deleting the journal's file
takes as long as the rest of a commit, so it stays (`journal_mode=PERSIST`) and is emptied by a header of zeros, which
is synced too.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import (
    ClauseElement,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from broker.runtime.folders import private_folder
from protocol.errors import DatabaseBusy, DiskFull, StateError

Kept = TypeVar("Kept")
_PRAGMAS = (
    "journal_mode=PERSIST",
    "journal_size_limit=1048576",  # after a commit of many pages the journal is cut to this
    "synchronous=EXTRA",
    "foreign_keys=ON",
    "busy_timeout=10000",
)


def required(kind: type[TypeEngine[Kept]], *names: str) -> list[Column[Kept]]:
    """Columns of one type that always hold a value."""
    return [Column(name, kind, nullable=False) for name in names]


def replacing(table: Table, *key: str, keep: Collection[str] = ()) -> Insert:
    """An insert whose row takes the place of the one with the same key, but for the columns that it is to `keep`."""
    row = upsert(table)
    new = {each.name: row.excluded[each.name] for each in table.columns if each.name not in (*key, *keep)}
    return row.on_conflict_do_update(index_elements=key, set_=new)


def open_database(path: Path | None, metadata: MetaData, schema: int) -> Engine:
    """Open or create the database at `path` (None: in memory) and check its schema version.

    Raises:
        StateError: it was written by another schema version, is damaged, or cannot be opened.
    """
    if path is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        private_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False, "timeout": 10})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    with opening(engine, path):
        found = _schema_of(engine, metadata, schema)
        if found != schema:
            raise StateError(
                f"{path} has schema {found}, this software writes {schema}; upgrade or use the matching version"
            )
    return engine


@contextmanager
def opening(engine: Engine, path: Path | None) -> Iterator[None]:
    """Close the database again if the block, the first to use it, fails.

    Raises:
        StateError: the database refused what the block asked of it.
    """
    try:
        yield
    except BaseException as error:
        engine.dispose()
        if isinstance(error, OperationalError):
            why = f"cannot be opened ({error.orig}); check the disk and the file's permissions"
            raise StateError(f"{path}: {why}") from error
        raise


def open_readonly(path: Path) -> Engine:
    """Open an existing database for reading beside its one writer.

    Raises:
        StateError: there is no such file.
    """
    if not path.is_file():
        raise StateError(f"{path}: no such database; give the state directory of the aggregator or worker")
    # Opened for writing where that is allowed: a killed writer may have left a journal that is to be rolled back first.
    # Between two questions nothing is open, so there is nothing that a reader could forget to close.
    engine = create_engine(f"sqlite:///file:{path}?mode=rw&uri=true", poolclass=NullPool, connect_args={"timeout": 10})
    event.listen(engine, "connect", _refuse_writing)
    return engine


def commit_error(path: Path | None, error: OperationalError) -> StateError:
    """What a failed commit means to the operator of this process."""
    if "full" in str(error.orig):
        return DiskFull(f"{path}: the disk is full; free some space, nothing that was acknowledged is lost")
    if "locked" in str(error.orig):
        return DatabaseBusy(f"{path}: another program keeps it locked, perhaps a backup; end that, or wait for its end")
    return StateError(f"{path}: {error.orig}")


def _schema_of(engine: Engine, metadata: MetaData, new: int) -> int:
    """The version of the tables, which are made as `new` if there are none."""
    marker = Table("schema", metadata, Column("version", Integer, primary_key=True), extend_existing=True)
    metadata.create_all(engine)
    with engine.begin() as connection:
        found: int | None = connection.scalar(select(marker.c.version))
        if found is None:
            connection.execute(insert(marker).values(version=new))
    return new if found is None else found


def _configure(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DBAPI connection has no common type
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    connection.isolation_level = None  # type: ignore[attr-defined]  # SQLAlchemy's BEGIN below is the only one


def _refuse_writing(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _begin(connection: Connection) -> None:
    _execute(connection, "BEGIN IMMEDIATE", ())


def _execute(db: Connection, sql: str, values: Sequence[object]) -> sqlite3.Cursor:
    """Have the driver execute it; SQLAlchemy's part in a statement takes several times as long as SQLite's own."""
    try:
        return _driver(db).execute(sql, values)
    except sqlite3.Error as error:
        raise _error(sql, error) from error


def _driver(db: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, db.connection.driver_connection)


def _error(sql: str, error: sqlite3.Error) -> Exception:
    """What SQLAlchemy would have raised."""
    return cast(Exception, DBAPIError.instance(sql, None, error, sqlite3.Error))


class Statement:
    """A statement that is turned into SQL once and handed to the driver as it is.

    An update passes some twenty statements on its way, of which SQLAlchemy otherwise works out at every execution
    what it found at the last one.
    """

    def __init__(self, statement: ClauseElement, *columns: str) -> None:
        """`columns`: the keys of the rows of an insert; other statements name their parameters themselves."""
        self._statement = statement
        self._columns = columns or None
        self._sql = ""
        self._names: tuple[str, ...] = ()
        self._constants: dict[str, object] = {}

    def run(self, db: Connection, row: Mapping[str, object] | None = None) -> sqlite3.Cursor:
        """Execute it with one row of parameters; values go to the driver as they are."""
        self._prepare(db)
        return _execute(db, self._sql, self._values(row or {}))

    # What a column holds is known to the statement alone, as it is for SQLAlchemy's own `scalar`.
    def value(self, db: Connection, row: Mapping[str, object] | None = None) -> Any:
        """The first column of the first row that it finds, or None."""
        found = self.run(db, row).fetchone()
        return None if found is None else found[0]

    def run_many(self, db: Connection, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute it once for each row."""
        self._prepare(db)
        try:
            _driver(db).executemany(self._sql, [self._values(row) for row in rows])
        except sqlite3.Error as error:
            raise _error(self._sql, error) from error

    def _prepare(self, db: Connection) -> None:
        if not self._sql:
            # Every statement's compiler is one; the stub of the class they share says less.
            compiled = cast(SQLCompiler, self._statement.compile(dialect=db.dialect, column_keys=self._columns))
            self._names = tuple(compiled.positiontup or ())
            self._constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
            self._sql = compiled.string

    def _values(self, row: Mapping[str, object]) -> tuple[object, ...]:
        return tuple(row[name] if name in row else self._constants[name] for name in self._names)
