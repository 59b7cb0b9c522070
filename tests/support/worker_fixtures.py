"""Fixtures of tests in which workers run, and of tests that import code from folders of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from worker.service.service import WorkerService

_BROUGHT = frozenset({"custom", "net", "parts", "scripts", "trainer"})
"""What the modules are called that bundles, MMARs and runs bring along."""


@pytest.fixture
def workers() -> Iterator[list[WorkerService]]:
    """Workers to be stopped at the end."""
    from tests.support.running_worker import stop

    started: list[WorkerService] = []
    yield started
    for worker in started:
        stop(worker)


@pytest.fixture
def imports() -> Iterator[None]:
    """What can be imported before and afterwards is the same."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in _BROUGHT]:
        del sys.modules[name]
