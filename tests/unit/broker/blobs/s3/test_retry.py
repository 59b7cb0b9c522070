"""Calls to a store that is away: tried again, told, and given up in words."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from structlog.testing import capture_logs

from broker.blobs.s3 import retry
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.retry import Patience
from broker.blobs.s3.store import S3Blobs
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


def test_the_try_that_the_deadline_cuts_short_hides_nothing_of_what_is_wrong() -> None:
    patience = Patience(BoundedPool(), "the store", 0.4, proxy=None, faults=(OSError,))
    until = time.monotonic() + 0.4
    tries: list[float] = []

    def action() -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise OSError("the certificate was refused")
        threading.Event().wait(max(0.0, until - time.monotonic()))
        raise TimeoutError("the deadline passed")

    with pytest.raises(StoreError, match="last trouble: OSError: the certificate was refused"):
        patience.call("put", action, until=until)
    assert len(tries) == 2


def test_a_server_that_holds_a_call_and_says_nothing_is_told_after_the_first_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "_SILENT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server, capture_logs() as logs:
        store = S3Blobs.from_url(f"s3://key:secret@127.0.0.1:{server.getsockname()[1]}/bucket?deadline=0.3")
        with pytest.raises(StoreError, match="last trouble: ReadTimeoutError"):
            store.put(f"updates/{'0' * 64}", b"x")
        store.close()
    assert [entry["tries"] for entry in logs if entry["event"] == "store.retry"] == [1]
