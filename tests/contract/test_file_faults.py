"""What the directory store does when its process is killed or the disk takes no more."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.blobs.directory import FileBlobs
from protocol.errors import StoreError

LIMIT = 16 * 1024 * 1024


def key_of(data: bytes) -> str:
    """The object key these bytes belong under."""
    return f"models/{hashlib.sha256(data).hexdigest()}"


WRITER = """
import hashlib, os, sys
from pathlib import Path
from broker.blobs.directory import FileBlobs

store = FileBlobs(Path(sys.argv[1]))
while True:
    data = os.urandom(4 * 1024 * 1024)
    store.put(f"models/{hashlib.sha256(data).hexdigest()}", data)
    print(hashlib.sha256(data).hexdigest(), flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011])
def test_a_killed_writer_leaves_whole_objects_and_all_it_was_promised(tmp_path: Path, delay: float) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        if writer.stdout is None:
            raise RuntimeError("no pipe")
        promised = {f"models/{writer.stdout.readline().strip()}" for _ in range(3)}
        time.sleep(delay)  # another moment of the write in each run
        writer.send_signal(signal.SIGKILL)
        promised |= {f"models/{line.strip()}" for line in writer.stdout if line.endswith("\n")}
    store = FileBlobs(tmp_path)
    there = {info.key for info in store.list("")}
    assert promised <= there
    for key in there:
        store.get(key, LIMIT)


def test_a_write_that_fails_half_way_leaves_nothing_and_says_what_happened(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path)
    data = os.urandom(100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # as a full disk: half of it is written, then an error
    try:
        with pytest.raises(StoreError, match=f"storing 100000 bytes of {key_of(data)} in {tmp_path} failed: File too"):
            store.put(key_of(data), data)
        with pytest.raises(StoreError, match="heads/demo"):
            store.put_head("demo", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(store.list("")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.put(key_of(data), data)
    assert store.get(key_of(data), LIMIT) == data


def test_what_crashed_writers_left_is_swept_after_a_day_and_not_before(tmp_path: Path) -> None:
    FileBlobs(tmp_path)
    (folder,) = tmp_path.iterdir()
    for name, age in (("old", 90_000), ("young", 3_600)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    FileBlobs(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["young"]


def test_a_directory_that_cannot_be_a_store_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be a store"):
        FileBlobs(tmp_path / "file")
