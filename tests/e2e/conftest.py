"""What tests of whole federations have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.walk import Walk
from tests.support.rabbit import require_rabbit


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    """Kits, servers and programs, ended at the end."""
    require_rabbit()
    walk = Walk(tmp_path)
    try:
        yield walk
    finally:
        walk.close()
