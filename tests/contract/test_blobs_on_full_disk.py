"""A store whose disk is full: it says so in time, and takes objects again as soon as there is room."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.blobs.base import BlobStore
from broker.blobs.open import open_blobs
from protocol.errors import StoreError
from tests.support.blobs import LIMIT, key_of
from tests.support.disks import MIB, small_disk
from tests.support.other_stores import KINDS, OtherStore
from tests.support.ports import free_ports
from tests.support.s3 import S3Server
from tests.support.seaweed import Provisioned, SeaweedServer, require_seaweed
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers

DISK_MIB, RESERVE_MIB, CHUNK = 48, 20, 4 * MIB
PATIENCE_S = 2


@pytest.fixture(params=["seaweed", *(pytest.param(other, marks=pytest.mark.long) for other in ("rclone", "juicefs"))])
def full(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> Iterator[tuple[str, Path]]:
    """The URL of a store on a small disk, and a file there whose end makes room.

    The first two refuse what they have no room for; MinIO's code in front of JuiceFS holds the put and says nothing.
    """
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_MIB):
        reserve = disk / "reserve"
        reserve.write_bytes(bytes(RESERVE_MIB * MIB))
        if request.param == "rclone":
            server = S3Server(disk / "objects", tmp_path / "log")
            yield f"{server.url(bucket)}?", reserve
            server.stop()
            return
        if request.param in KINDS:
            (folder := disk / "other").mkdir()
            other = OtherStore(KINDS[request.param], folder)
            yield f"{other.url(bucket)}?", reserve
            other.stop()
            return
        require_seaweed()
        federation = Provisioned(tmp_path / "federation", *free_ports(1))
        seaweed = SeaweedServer(federation, disk / "data", tmp_path / "log")
        yield federation.url("aggregator"), reserve
        seaweed.stop()


def test_a_full_store_ends_a_put_in_time_and_takes_it_again_once_there_is_room(full: tuple[str, Path]) -> None:
    url, reserve = full
    store = open_blobs(f"{url}&deadline={PATIENCE_S}")
    stored, refused, took = fill(store)
    assert "put models/" in str(refused)
    assert "not done within" in str(refused)
    assert refused.retryable
    assert took < PATIENCE_S + 5
    assert len(stored) >= (DISK_MIB - RESERVE_MIB) * MIB // CHUNK // 2
    assert all(store.get(key_of(data), LIMIT) == data for data in stored)

    patient, waiting = open_blobs(f"{url}&deadline=60"), os.urandom(CHUNK)
    with capture_logs() as logs, ThreadPoolExecutor(1) as pool:
        put = pool.submit(patient.put, key_of(waiting), waiting)
        eventually(lambda: any(entry["event"] == "store.retry" for entry in logs), "the put is tried again")
        reserve.unlink()
        put.result(60)
    assert patient.get(key_of(waiting), LIMIT) == waiting
    assert all(patient.get(key_of(data), LIMIT) == data for data in stored)
    store.close()
    patient.close()


def fill(store: BlobStore) -> tuple[list[bytes], StoreError, float]:
    """Put until the store refuses; what it has taken, its refusal, and the seconds that took."""
    stored: list[bytes] = []
    while True:
        data, begun = os.urandom(CHUNK), time.monotonic()
        try:
            store.put(key_of(data), data)
        except StoreError as error:
            return stored, error, time.monotonic() - begun
        stored.append(data)
        assert len(stored) * CHUNK < DISK_MIB * MIB
