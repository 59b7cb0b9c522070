"""Databases that nobody closed are reported on Python 3.11 and 3.12 as 3.13 reports them by itself."""

from __future__ import annotations

import functools
import sqlite3
import sys
import warnings
from typing import Any


class _Reporting(sqlite3.Connection):
    """A connection that complains as an unclosed file does when it is collected open."""

    _open = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open = True  # one that could not be opened is nothing to close

    def close(self) -> None:
        self._open = False
        super().close()

    def __del__(self) -> None:
        if self._open:
            warnings.warn(f"unclosed database in {self!r}", ResourceWarning, stacklevel=2, source=self)


def report_unclosed_databases() -> None:
    """From now on, every database of this process that is collected without having been closed is a ResourceWarning."""
    if sys.version_info < (3, 13):
        connect = functools.partial(sqlite3.dbapi2.connect, factory=_Reporting)
        sqlite3.connect = sqlite3.dbapi2.connect = connect
