"""Fixtures for all suites; those that need more live in modules of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = [
    *("tests.support.s3_fixtures", "tests.support.rabbit_fixtures", "tests.support.tls_fixtures"),
    "tests.support.worker_fixtures",
]


@pytest.fixture(autouse=True)
def log_configuration() -> Iterator[None]:
    """A command run within a test sets up logging to the test's own streams, which are closed when it ends."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
