"""The local ciphertext cache."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.blobs.cache import CachedBlobs
from broker.blobs.directory import FileBlobs
from broker.blobs.memory import MemoryBlobs
from broker.blobs.monitored import MonitoredBlobs
from protocol.blob import Chunk
from protocol.errors import Corrupt, Missing, StoreError, TooLarge
from tests.support.chunks import Counted

LIMIT = 10_000


def key_of(data: bytes, folder: str = "models") -> str:
    """The object key these bytes belong under."""
    return f"{folder}/{hashlib.sha256(data).hexdigest()}"


DATA = [bytes([65 + i]) * 1000 for i in range(6)]
KEYS = [key_of(data) for data in DATA]


@pytest.fixture
def store() -> Counted:
    """A store with six objects of 1000 bytes."""
    store = Counted()
    for key, data in zip(KEYS, DATA, strict=True):
        store.put(key, data)
    return store


def test_the_second_get_does_not_reach_the_store(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    assert [cache.get(KEYS[0], LIMIT), cache.get(KEYS[0], LIMIT)] == [DATA[0], DATA[0]]
    assert store.fetched == [KEYS[0]]


def test_the_same_bytes_under_another_folder_are_a_hit(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    assert cache.get(key_of(DATA[0], "up/site-a"), LIMIT) == DATA[0]
    assert store.fetched == [KEYS[0]]


def test_the_quota_is_kept_and_the_least_recently_used_goes_first(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 3500)
    for i in (0, 1, 2, 0, 3):
        cache.get(KEYS[i], LIMIT)
        assert cache.used_bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3500
    assert {path.name for path in tmp_path.iterdir()} == {KEYS[i][-64:] for i in (0, 2, 3)}
    store.fetched.clear()
    cache.get(KEYS[0], LIMIT)
    cache.get(KEYS[1], LIMIT)
    assert store.fetched == [KEYS[1]]


def test_an_object_over_the_quota_passes_through(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 999)
    assert cache.get(KEYS[0], LIMIT) == DATA[0]
    assert cache.used_bytes == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"B" * 1000, b"A" * 999])
def test_a_damaged_hit_is_deleted_and_fetched_again(store: Counted, tmp_path: Path, damage: bytes) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    (tmp_path / KEYS[0][-64:]).write_bytes(damage)
    assert cache.get(KEYS[0], LIMIT) == DATA[0]
    assert store.fetched == [KEYS[0]] * 2
    assert (tmp_path / KEYS[0][-64:]).read_bytes() == DATA[0]
    assert cache.used_bytes == 1000


def test_a_file_that_vanished_is_fetched_again(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    (tmp_path / KEYS[0][-64:]).unlink()
    assert cache.get(KEYS[0], LIMIT) == DATA[0]
    assert cache.used_bytes == 1000


def test_contents_and_order_of_use_survive_a_restart(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    for i in (0, 1, 2):
        cache.get(KEYS[i], LIMIT)
        os.utime(tmp_path / KEYS[i][-64:], (i, i))
    cache.get(KEYS[0], LIMIT)
    (tmp_path / ".unfinished-abc").write_bytes(b"half")
    store.fetched.clear()
    again = CachedBlobs(store, tmp_path, 2000)
    assert again.used_bytes == 2000
    assert {path.name for path in tmp_path.iterdir()} == {KEYS[0][-64:], KEYS[2][-64:]}
    assert again.get(KEYS[0], LIMIT) == DATA[0]
    assert store.fetched == []


def test_a_hit_over_the_limit_is_refused(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    with pytest.raises(TooLarge):
        cache.get(KEYS[0], 999)


def test_failures_of_the_store_are_not_cached(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    missing = key_of(b"later")
    with pytest.raises(Missing):
        cache.get(missing, LIMIT)
    store.put(missing, b"later")
    assert cache.get(missing, LIMIT) == b"later"
    store._objects[KEYS[0]] = (b"wrong", 0.0)
    with pytest.raises(Corrupt):
        cache.get(KEYS[0], LIMIT)
    assert cache.used_bytes == len(b"later")


def test_heads_are_read_from_the_store_each_time(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    for head in (b"1", b"2"):
        cache.put_head("demo", head)
        assert cache.get_head("demo", LIMIT) == head
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_object_is_gone_from_the_cache_too(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    cache.delete(KEYS[0])
    assert not cache.has(KEYS[0])
    assert cache.used_bytes == 0
    with pytest.raises(Missing):
        cache.get(KEYS[0], LIMIT)


def test_a_cache_that_cannot_write_only_costs_speed(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path / "gone", 5000)
    (tmp_path / "gone").rmdir()
    assert cache.get(KEYS[0], LIMIT) == DATA[0]
    assert cache.used_bytes == 0


def test_a_directory_that_cannot_be_made_is_explained(store: Counted, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cache directory"):
        CachedBlobs(store, tmp_path / "file", 5000)


def test_many_threads_may_use_it_at_once(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 2500)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: cache.get(KEYS[i % 6], LIMIT), range(300)))
    assert got == [DATA[i % 6] for i in range(300)]
    assert cache.used_bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2500


def test_what_this_process_puts_enters_the_cache_only_if_asked(store: Counted, tmp_path: Path) -> None:
    data = b"my own"
    for keep, fetched in ((True, []), (False, [key_of(data)])):
        cache = CachedBlobs(store, tmp_path / str(keep), 5000, keep_puts=keep)
        store.fetched.clear()
        cache.put(key_of(data), memoryview(data))
        assert store.has(key_of(data))
        assert cache.get(key_of(data), LIMIT) == data
        assert store.fetched == fetched


def part(chunk: Chunk, start: int, stop: int) -> bytes:
    """Some bytes of a chunk."""
    return bytes(chunk.part(start, stop, memoryview(bytearray(stop - start))))


def test_an_opened_hit_is_taken_as_it_lies_and_renewed_if_it_is_wrong(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    first = cache.open(KEYS[0], LIMIT)
    assert part(first, 0, 1000) == DATA[0]
    first.close(right=True)
    (tmp_path / KEYS[0][-64:]).write_bytes(b"?" * 1000)
    hit = cache.open(KEYS[0], LIMIT)
    assert (len(hit), hit.checked, part(hit, 998, 1000)) == (1000, True, b"??")
    fresh = hit.renew()
    assert (fresh.checked, part(fresh, 0, 1000)) == (True, DATA[0])
    assert store.fetched == [KEYS[0]] * 2
    assert cache.get(KEYS[0], LIMIT) == DATA[0]


def test_a_hit_that_was_cut_short_cannot_be_read(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    hit = cache.open(KEYS[0], LIMIT)
    os.truncate(tmp_path / KEYS[0][-64:], 500)
    with pytest.raises(Corrupt, match="cut short"):
        part(hit, 0, 1000)


def test_a_file_system_that_reads_less_than_was_asked_for_is_asked_again(
    store: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    cache.get(KEYS[0], LIMIT)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: whole(file, [buffers[0][:300]], at))
    hit = cache.open(KEYS[0], LIMIT)
    assert part(hit, 0, 1000) == DATA[0]
    assert part(hit, 100, 950) == DATA[0][100:950]
    hit.close(right=True)


def test_only_what_its_reader_found_right_enters_the_cache(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path / "store")
    store.put(KEYS[0], DATA[0])
    cache = CachedBlobs(MonitoredBlobs(store), tmp_path / "cache", 5000)
    for right, used in ((False, 0), (True, 1000)):
        chunk = cache.open(KEYS[0], LIMIT)
        assert not chunk.checked
        assert part(chunk, 0, 1000) == DATA[0]
        chunk.close(right=right)
        assert cache.used_bytes == used
    assert (tmp_path / "cache" / KEYS[0][-64:]).samefile(tmp_path / "store" / KEYS[0])


def test_what_is_put_in_front_of_a_directory_is_one_file(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path / "store")
    cache = CachedBlobs(MonitoredBlobs(store), tmp_path / "cache", 5000, keep_puts=True)
    cache.put(KEYS[0], DATA[0])
    cache.put(KEYS[0], DATA[0])
    assert (tmp_path / "cache" / KEYS[0][-64:]).samefile(tmp_path / "store" / KEYS[0])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [KEYS[0][-64:]]


def test_a_file_becomes_an_object_without_being_copied(tmp_path: Path) -> None:
    file = tmp_path / "spooled"
    file.write_bytes(DATA[0])
    cache = CachedBlobs(MonitoredBlobs(FileBlobs(tmp_path / "store")), tmp_path / "cache", 5000)
    for _ in range(2):
        assert cache.put_file(KEYS[0], file)
    assert file.samefile(tmp_path / "store" / KEYS[0])
    assert list((tmp_path / "store" / ".unfinished").iterdir()) == []
    file.unlink()
    assert cache.get(KEYS[0], LIMIT) == DATA[0]
    assert not CachedBlobs(MonitoredBlobs(MemoryBlobs()), tmp_path / "other", 5000).put_file(KEYS[0], file)


def test_what_comes_from_the_store_is_hashed_also_for_those_who_authenticate(store: Counted, tmp_path: Path) -> None:
    cache = CachedBlobs(store, tmp_path, 5000)
    store._objects[KEYS[0]] = (b"?" * 1000, 0.0)
    with pytest.raises(Corrupt):
        cache.open(KEYS[0], LIMIT)
    assert cache.used_bytes == 0
