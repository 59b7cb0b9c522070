"""Fixtures that start an S3 server; loaded as a plugin by tests/conftest.py."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rabbit import free_ports
from tests.support.s3 import S3Server
from tests.support.seaweed import Provisioned, SeaweedServer, require_seaweed


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole session; take a `bucket` of your own and leave the server running."""
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder / "objects", folder / "log")
    yield server
    server.stop()


@pytest.fixture
def private_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of this test's own, to be killed and restarted at will."""
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder / "objects", folder / "log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """One SeaweedFS for the whole session, with a provisioned federation; leave it running, and its bucket empty."""
    require_seaweed()
    folder = tmp_path_factory.mktemp("seaweed")
    (port,) = free_ports(1)
    server = SeaweedServer(Provisioned(folder, port), folder / "data", folder / "log")
    yield server
    server.stop()


@pytest.fixture
def private_seaweed(tmp_path: Path) -> Iterator[SeaweedServer]:
    """A server of this test's own, to be killed and started again."""
    require_seaweed()
    (port,) = free_ports(1)
    server = SeaweedServer(Provisioned(tmp_path, port), tmp_path / "data", tmp_path / "log")
    yield server
    server.stop()


@pytest.fixture
def bucket() -> str:
    """A bucket name nobody else uses."""
    return f"b{uuid.uuid4().hex[:20]}"
