"""Fixtures for all suites, and nothing that would make a test of mere arithmetic load a server's client."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.unclosed import report_unclosed_databases

pytest_plugins = ["tests.support.server_fixtures", "tests.support.worker_fixtures"]

# One thread for each process, also for those that tests start: several at once would only spin while they wait for each
# other's processors (the example with torch takes twice the processor time), and sums would depend on their number.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
report_unclosed_databases()

SERVICE = re.compile(r"aggregator|.* worker")
"""What the threads of the two programs' services are called."""


@pytest.fixture(autouse=True)
def log_configuration() -> Iterator[None]:
    """A command run within a test sets up logging to the test's own streams, which are closed when it ends."""
    before = structlog.get_config() if (structlog := sys.modules.get("structlog")) else None
    yield
    if before is not None:
        sys.modules["structlog"].configure(**before)
    elif loaded := sys.modules.get("structlog"):
        loaded.reset_defaults()


@pytest.fixture(autouse=True)
def no_service_outlives_its_test() -> Iterator[None]:
    """A service that still ends writes its log into whatever test comes next."""
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if SERVICE.fullmatch(t.name)]
    assert not left, f"still running: {', '.join(left)}; join what was stopped"


def pytest_collection_finish() -> None:
    """Let no collection of garbage go through what the tests' modules brought: with torch that takes half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where no property was tested, let hypothesis's plugin not import the library only to find nothing to report."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and not plugins.hasplugin("dsession"):
        plugins.unregister(name="hypothesispytest")
