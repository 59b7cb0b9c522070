from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from broker.runtime.threads import InlineExecutor
from protocol.errors import DiskFull, StateError
from tests.support.lent_buffers import LentBuffers
from worker.storage.spool import Spool

MIB = 1024 * 1024
CHUNK = b"ciphertext" * 100
NAME = hashlib.sha256(CHUNK).digest()


def spool(directory: Path, quota: int = 10 * MIB, free: int = 1024 * MIB) -> Spool:
    return Spool(directory, quota, free=lambda _: free)


def put(kept: Spool, name: bytes = NAME, data: bytes = CHUNK) -> None:
    with kept.batch() as batch:
        batch.chunks(InlineExecutor()).emit(name, memoryview(data))
        batch.sync()


def got(kept: Spool) -> bytes:
    with kept.lend(NAME) as chunk:
        return bytes(chunk)


def test_a_chunk_comes_back_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    kept = spool(tmp_path / "spool")
    put(kept)
    assert got(kept) == CHUNK
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "spool" / NAME.hex()).stat().st_mode & 0o777 == 0o600


def test_a_damaged_or_missing_chunk_is_never_returned(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    put(kept)
    (tmp_path / NAME.hex()).write_bytes(CHUNK[:-1])
    with pytest.raises(StateError, match="damaged"):
        got(kept)
    kept.drop([NAME])
    with pytest.raises(StateError, match="cannot be read"):
        got(kept)


def test_a_chunk_is_lent_in_a_buffer_that_comes_back_whatever_happens(tmp_path: Path) -> None:
    lent = LentBuffers()
    kept = Spool(tmp_path, 100 * MIB, free=lambda _: 1024 * MIB, buffers=lent)
    large = os.urandom(8 * MIB + 136)
    for data in (CHUNK, large, b""):
        name = hashlib.sha256(data).digest()
        put(kept, name, data)
        with kept.lend(name) as chunk:
            assert chunk == data
            assert len(lent.out) == 1
        assert lent.out == set()
    with pytest.raises(OSError, match="the store is away"), kept.lend(NAME):
        raise OSError("the store is away")
    for damaged in (CHUNK[:-1], CHUNK + b"x", bytes(9 * MIB)):
        (tmp_path / NAME.hex()).write_bytes(damaged)
        with pytest.raises(StateError, match="damaged"):
            got(kept)
    kept.drop([NAME])
    with pytest.raises(StateError, match="cannot be read"):
        got(kept)
    assert lent.out == set()
    assert len(lent.made) == 1


def test_sweeping_keeps_what_the_journal_names_and_deletes_the_rest(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    put(kept)
    put(kept, b"x" * 32, b"leftover")
    later = spool(tmp_path)
    assert later.sweep([NAME]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME.hex()]
    assert later.used == len(CHUNK)


def test_dropping_frees_the_quota_and_may_be_repeated(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    put(kept)
    kept.drop([NAME])
    kept.drop([NAME])
    assert kept.used == 0


def test_a_failed_training_leaves_no_chunks(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    put(kept)

    def fail() -> None:
        with kept.batch() as failed:
            failed.chunks(InlineExecutor()).emit(b"x" * 32, memoryview(b"of a training that failed"))
            raise KeyError("the training failed")

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [NAME.hex()]
    assert kept.used == len(CHUNK)


def test_an_update_beyond_the_quota_is_refused_with_place_and_sizes(tmp_path: Path) -> None:
    kept = spool(tmp_path, quota=3 * MIB)
    put(kept)
    kept.check_room(2 * MIB)
    with pytest.raises(DiskFull) as refused:
        kept.check_room(3 * MIB)
    assert str(tmp_path) in str(refused.value)
    assert "needs 3 MiB" in str(refused.value)
    assert "quota of 3 MiB" in str(refused.value)


def test_a_disk_without_room_is_refused_before_training_starts(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="needs 66 MiB, the disk has 65 MiB free"):
        spool(tmp_path, free=65 * MIB).check_room(2 * MIB)
    spool(tmp_path, free=66 * MIB).check_room(2 * MIB)


def test_a_chunk_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = spool(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_: object, **__: object) -> int:
        raise full

    monkeypatch.setattr(os, "open", no_room)  # a full disk cannot be had without root
    with pytest.raises(DiskFull, match="no room"):
        put(kept)
    assert list(tmp_path.iterdir()) == []
    assert kept.used == 0


def test_a_spool_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match="file"):
        spool(tmp_path / "file" / "spool")
