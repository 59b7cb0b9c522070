"""The suite's own guard: whoever forgets to close a database hears of it, on every Python."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from broker.runtime.database import open_database, open_readonly


@pytest.mark.parametrize("name", [None, "state.db"])
def test_a_database_that_nobody_closed_is_reported(tmp_path: Path, name: str | None) -> None:
    def forget() -> None:
        open_database(None if name is None else tmp_path / name, MetaData(), 1)
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed database"):
        forget()


def test_a_reader_has_nothing_open_that_it_could_forget(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    open_database(path, MetaData(), 1).dispose()
    with open_readonly(path).connect() as db:
        assert db.exec_driver_sql("SELECT version FROM schema").scalar() == 1
    gc.collect()  # a warning would be an error
