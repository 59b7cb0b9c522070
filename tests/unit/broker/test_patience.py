"""Calls to a store that is away: tried again, told, and given up in words."""

from __future__ import annotations

import socket

import pytest
from structlog.testing import capture_logs

from broker.s3 import S3Blobs
from protocol.errors import StoreError


def test_a_store_that_is_away_is_told_while_it_is_tried_again_without_what_may_be_signed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = S3Blobs.from_url(f"s3://key:hunter2@127.0.0.1:{port}/bucket?deadline=3")
    with capture_logs() as logs, pytest.raises(StoreError, match="not done within 3 s"):
        store.put(f"updates/{'0' * 64}", b"x")
    store.close()
    told = [entry for entry in logs if entry["event"] == "store.retry"]
    assert [entry["tries"] for entry in told][:2] == [2, 4]
    assert {entry["trouble"] for entry in told} == {"NewConnectionError"}
    assert not any("hunter2" in str(entry) for entry in logs)
