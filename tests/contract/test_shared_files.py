"""One file as spool's chunk, store's object and cache's copy at once: what happens to it under one name stays there."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.blobs.cache import CachedBlobs
from broker.blobs.directory import FileBlobs
from broker.blobs.garbage import collect
from broker.runtime.threads import InlineExecutor
from protocol.errors import Corrupt, StateError, StoreError
from tests.support.disks import small_disk
from worker.storage.spool import Spool

LIMIT = 10**6
DATA = os.urandom(100_000)
NAME = hashlib.sha256(DATA).digest()
KEY = f"up/site-a/{NAME.hex()}"


def spooled(directory: Path) -> Spool:
    """A spool that holds the chunk."""
    spool = Spool(directory, 10**7)
    with spool.batch() as batch:
        batch.chunks(InlineExecutor()).emit(NAME, memoryview(DATA))
        batch.sync()
    return spool


@pytest.fixture
def shared(tmp_path: Path) -> tuple[Spool, FileBlobs, CachedBlobs]:
    """The chunk in all three places."""
    spool, store = spooled(tmp_path / "spool"), FileBlobs(tmp_path / "store")
    cache = CachedBlobs(store, tmp_path / "cache", LIMIT, keep_puts=True)
    assert cache.put_file(KEY, spool.path(NAME))
    return spool, store, cache


def places(tmp_path: Path) -> list[Path]:
    return [tmp_path / "spool" / NAME.hex(), tmp_path / "store" / KEY, tmp_path / "cache" / NAME.hex()]


def inodes(tmp_path: Path) -> list[int]:
    return [path.stat().st_ino for path in places(tmp_path)]


@pytest.mark.usefixtures("shared")
def test_all_three_are_one_private_file(tmp_path: Path) -> None:
    assert len(set(inodes(tmp_path))) == 1
    for path in places(tmp_path):
        status = path.stat()
        assert (status.st_nlink, status.st_mode & 0o777) == (3, 0o600)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p not in places(tmp_path)] == []


def test_a_name_that_is_written_again_or_dropped_takes_nothing_from_the_others(
    shared: tuple[Spool, FileBlobs, CachedBlobs], tmp_path: Path
) -> None:
    spool, store, cache = shared
    before = inodes(tmp_path)
    with spool.batch() as batch:  # the same chunk again, as after a crash before the journal knew of it
        batch.chunks(InlineExecutor()).emit(NAME, memoryview(DATA))
    assert inodes(tmp_path)[0] != before[0]
    assert inodes(tmp_path)[1:] == before[1:]
    spool.drop([NAME])
    assert store.get(KEY, LIMIT) == cache.get(KEY, LIMIT) == DATA
    store.delete(KEY)
    assert cache.get(KEY, LIMIT) == DATA


def test_a_name_whose_writing_fails_half_way_takes_nothing_from_the_others(
    shared: tuple[Spool, FileBlobs, CachedBlobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, store, cache = shared

    def full(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError), spool.batch() as batch:
        batch.chunks(InlineExecutor()).emit(NAME, memoryview(DATA[::-1]))
    assert store.get(KEY, LIMIT) == cache.get(KEY, LIMIT) == DATA


def test_a_file_damaged_on_disk_is_damaged_everywhere_and_said_to_be_so(
    shared: tuple[Spool, FileBlobs, CachedBlobs], tmp_path: Path
) -> None:
    """The price of one file: a site's second copy was the spool's, and there is none now."""
    spool, store, cache = shared
    os.truncate(tmp_path / "spool" / NAME.hex(), 500)
    with pytest.raises(StateError, match="damaged"), spool.lend(NAME):
        pass
    for where in (store, cache):
        with pytest.raises(Corrupt):
            where.get(KEY, LIMIT)
    store.put(KEY, DATA)
    assert store.get(KEY, LIMIT) == cache.get(KEY, LIMIT) == DATA
    assert (tmp_path / "spool" / NAME.hex()).stat().st_size == 500


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA[::-1], DATA + b"x"])
def test_a_file_takes_the_place_of_a_corrupt_object(tmp_path: Path, damage: bytes) -> None:
    spool, store = spooled(tmp_path / "spool"), FileBlobs(tmp_path / "store")
    store.put(KEY, damage)
    with pytest.raises(Corrupt):
        store.get(KEY, LIMIT)
    for _ in range(2):
        assert store.put_file(KEY, spool.path(NAME))
        assert store.get(KEY, LIMIT) == DATA
    assert (tmp_path / "store" / KEY).stat().st_nlink == 2
    assert list((tmp_path / "store" / ".unfinished").iterdir()) == []


# ---- several processes

LINKER = """
import sys
from pathlib import Path
from broker.blobs.directory import FileBlobs
from broker.blobs.cache import CachedBlobs

store, key, file = FileBlobs(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
cache = CachedBlobs(store, Path(sys.argv[4]), 10**6, keep_puts=True)
for _ in range(200):
    assert cache.put_file(key, file)
    store.get(key, 10**6)
    store.put(key, file.read_bytes())
    cache.get(key, 10**6)
"""


def test_two_processes_may_put_one_file_under_one_name_at_once(tmp_path: Path) -> None:
    spool = spooled(tmp_path / "spool")
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", LINKER, str(tmp_path / "store"), KEY, str(spool.path(NAME)), str(tmp_path / own)]
        )
        for own in ("one", "two")
    ]
    assert [process.wait(60) for process in begun] == [0, 0]
    store = FileBlobs(tmp_path / "store")
    assert store.get(KEY, LIMIT) == DATA
    assert [info.key for info in store.list("")] == [KEY]
    assert list((tmp_path / "store" / ".unfinished").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from broker.blobs import directory

store, at = directory.FileBlobs(Path(sys.argv[1])), sys.argv[4]
store.put(sys.argv[2], b"makes the folders")
store.delete(sys.argv[2])

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if at == "before the name":
    os.replace = killed
else:
    directory.sync_folder = killed
store.put_file(sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.parametrize(("at", "there"), [("before the name", False), ("before the folder is synced", True)])
def test_a_process_killed_while_it_puts_a_file_leaves_all_of_it_or_nothing(
    tmp_path: Path, at: str, there: bool
) -> None:
    spool = spooled(tmp_path / "spool")
    arguments = [str(tmp_path / "store"), KEY, str(spool.path(NAME)), at]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    store, again = FileBlobs(tmp_path / "store"), Spool(tmp_path / "spool", 10**7)
    assert store.has(KEY) is there
    assert again.sweep([NAME]) == 0  # the journal names it: it has no receipt
    assert store.put_file(KEY, again.path(NAME))
    again.drop([NAME])
    assert store.get(KEY, LIMIT) == DATA
    assert (tmp_path / "store" / KEY).stat().st_nlink == (1 if there else 2)  # the other is swept after a day


# ---- another file system


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        if os.stat(memory).st_dev != tmp_path.stat().st_dev:
            yield Path(memory)
            return
    with small_disk(tmp_path / "disk", 8):
        yield tmp_path / "disk"


def test_a_file_of_another_file_system_is_copied(tmp_path: Path, elsewhere: Path) -> None:
    spool, store = spooled(elsewhere / "spool"), FileBlobs(tmp_path / "store")
    for _ in range(2):
        if not store.put_file(KEY, spool.path(NAME)):  # this kernel does not copy between these two
            with spool.lend(NAME) as chunk:
                store.put(KEY, chunk)
    file = tmp_path / "store" / KEY
    assert (file.stat().st_nlink, file.stat().st_mode & 0o777) == (1, 0o600)
    os.truncate(spool.path(NAME), 0)
    assert store.get(KEY, LIMIT) == DATA
    assert list((tmp_path / "store" / ".unfinished").iterdir()) == []
    cache = CachedBlobs(store, elsewhere / "cache", LIMIT)
    assert cache.get(KEY, LIMIT) == DATA
    assert (elsewhere / "cache" / NAME.hex()).read_bytes() == DATA


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES])
def test_where_the_system_copies_nothing_the_bytes_are_to_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    spool, store = spooled(tmp_path / "spool"), FileBlobs(tmp_path / "store")
    fail_to(monkeypatch, code)
    assert not store.put_file(KEY, spool.path(NAME))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("copies", [lambda *_: 0, None])
def test_where_nothing_is_copied_without_a_word_or_python_cannot_ask_the_bytes_are_to_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: Callable[..., int] | None
) -> None:
    spool, store = spooled(tmp_path / "spool"), FileBlobs(tmp_path / "store")
    fail_to(monkeypatch, errno.EPERM)
    if copies is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", copies)
    assert not store.put_file(KEY, spool.path(NAME))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_an_object_is_as_old_as_its_being_stored_also_if_its_file_waited_long(tmp_path: Path) -> None:
    """A site that was away for weeks must not have its update collected before its message arrives."""
    spool, store = spooled(tmp_path / "spool"), FileBlobs(tmp_path / "store")
    os.utime(spool.path(NAME), (0, 0))
    assert store.put_file(KEY, spool.path(NAME))
    assert collect(store, "up/", set()).count == 0
    assert store.get(KEY, LIMIT) == DATA


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_copy_that_fails_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    spool, store = spooled(tmp_path / "spool"), FileBlobs(tmp_path / "store")
    fail_to(monkeypatch, code)
    with pytest.raises(StoreError, match=f"storing {NAME.hex()} as {KEY}"):
        store.put_file(KEY, spool.path(NAME))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def fail_to(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let nothing be linked or copied."""

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "copy_file_range", fail)
