"""The blob store in a local directory: one file per object, written beside and renamed into place."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker.blobs.base import ObjectInfo, check_bytes, check_head, check_key, check_prefix, is_key
from broker.blobs.chunks import FileChunk
from broker.runtime.folders import private_file, private_folder, sync_folder, write_all
from protocol.errors import ConfigError, Missing, StoreError, TooLarge

_UNFINISHED = ".unfinished"
_ABANDONED_AFTER_S = 24 * 3600.0
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
"""How kernels, file systems and the sandboxes of containers say that they copy nothing from one file to another."""


def directory_of(url: str) -> Path:
    """The directory that `file:///dir` names.

    Raises:
        ConfigError: it names none.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ConfigError(f"store URL {url!r}: write an absolute path after three slashes, as in file:///srv/fledge")
    return Path(path)


class FileBlobs:
    """Keeps objects below a directory that is its owner's alone (0700, files 0600).

    Several processes may use one directory. It has to be on a local file system: renames and fsync must be what they
    promise.
    """

    def __init__(self, directory: Path) -> None:
        self._root = directory.absolute()
        self._made: set[Path] = set()
        self._made_lock = threading.Lock()
        try:
            private_folder(self._root)
            self._make(self._root / _UNFINISHED)
            self._sweep()
        except OSError as error:
            raise StoreError(f"directory {self._root} cannot be a store: {error.strerror or error}") from error

    @classmethod
    def from_url(cls, url: str) -> FileBlobs:
        """Open (and make) the directory that `file:///dir` names."""
        return cls(directory_of(url))

    def __repr__(self) -> str:
        return f"FileBlobs({str(self._root)!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        check_key(key)
        self._write(key, data)

    def get(self, key: str, limit: int) -> bytes:
        check_key(key)
        data = self._read(key, limit)
        if data is None:
            raise self._missing(key)
        return check_bytes(key, data)

    def open(self, key: str, limit: int) -> FileChunk:
        """The object, whose reader compares its bytes with its name."""
        check_key(key)
        try:
            chunk = FileChunk(self._root / key, f"{key} in {self._root}")
        except FileNotFoundError:
            raise self._missing(key) from None
        except OSError as error:
            raise self._failure("reading", key, error) from error
        if len(chunk) > limit:
            chunk.close(right=False)
            raise self._too_large(key, len(chunk), limit)
        return chunk

    def link(self, key: str, target: Path) -> bool:
        check_key(key)
        try:
            os.link(self._root / key, target)
        except OSError:
            return False
        return True

    def put_file(self, key: str, path: Path) -> bool:
        """As `SupportsFiles` says; where the file lies elsewhere, the system copies it."""
        check_key(key)
        try:
            self._place(key, lambda unfinished: _link_or_copy(path, unfinished))
        except OSError as error:
            if error.errno in _NOT_COPIED:
                return False
            raise self._failure(f"storing {path.name} as", key, error) from error
        return True

    def has(self, key: str) -> bool:
        check_key(key)
        try:
            return (self._root / key).is_file()
        except OSError as error:
            raise self._failure("looking for", key, error) from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        top = self._root / prefix
        keys = []
        for folder, _, names in os.walk(top):
            relative = Path(folder).relative_to(self._root).as_posix()
            keys += [f"{relative}/{name}" for name in names if is_key(f"{relative}/{name}")]
        for key in sorted(keys):
            try:
                entry = (self._root / key).stat()
            except FileNotFoundError:  # deleted since the walk
                continue
            except OSError as error:
                raise self._failure("listing", key, error) from error
            yield ObjectInfo(key, entry.st_size, entry.st_mtime)

    def delete(self, key: str) -> None:
        """Remove the object if it is there; after a power failure it may be back, which does no harm."""
        check_key(key)
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise self._failure("deleting", key, error) from error

    def put_head(self, name: str, data: bytes) -> None:
        self._write(f"heads/{check_head(name)}", data)

    def get_head(self, name: str, limit: int) -> bytes | None:
        return self._read(f"heads/{check_head(name)}", limit)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _write(self, key: str, data: bytes | memoryview) -> None:
        try:
            self._place(key, lambda unfinished: _write_durably(unfinished, data))
        except OSError as error:
            raise self._failure(f"storing {len(data)} bytes of", key, error) from error

    def _place(self, key: str, make: Callable[[Path], None]) -> None:
        """Have a file made durably beside, and rename it to the key's place."""
        target = self._root / key
        unfinished = self._root / _UNFINISHED / secrets.token_hex(16)
        self._make(target.parent)
        try:
            make(unfinished)
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)  # still there after an error, or if both names were one file's before
        sync_folder(target.parent)

    def _read(self, key: str, limit: int) -> bytes | None:
        try:
            descriptor = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("reading", key, error) from error
        try:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise self._too_large(key, size, limit)
            return _read_exactly(descriptor, size)
        except OSError as error:
            raise self._failure("reading", key, error) from error
        finally:
            os.close(descriptor)

    def _make(self, folder: Path) -> None:
        """Make `folder` below the root, each new level synced into its parent, so that what is put in it stays."""
        if folder in self._made:
            return
        with self._made_lock:
            levels = [folder, *(p for p in folder.parents if p != self._root and self._root in p.parents)]
            for level in reversed(levels):
                level.mkdir(mode=0o700, exist_ok=True)
                sync_folder(level.parent)
            self._made.add(folder)

    def _sweep(self) -> None:
        """Remove what crashed writers left; a day is far longer than any write takes."""
        for entry in os.scandir(self._root / _UNFINISHED):
            try:
                if time.time() - entry.stat().st_mtime > _ABANDONED_AFTER_S:
                    os.unlink(entry.path)
            except FileNotFoundError:  # another process was faster
                continue

    def _missing(self, key: str) -> Missing:
        return Missing(f"{key}: no such object in {self._root}")

    def _too_large(self, key: str, size: int, limit: int) -> TooLarge:
        return TooLarge(f"{key}: {size} bytes stored in {self._root}, at most {limit} expected; refused unread")

    def _failure(self, doing: str, key: str, error: OSError) -> StoreError:
        return StoreError(f"{doing} {key} in {self._root} failed: {error.strerror or error}")


def _write_durably(path: Path, data: bytes | memoryview) -> None:
    with open(private_file(path), "wb", buffering=0) as file:
        write_all(file, data)
        os.fsync(file.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    """Another name for a synced file; where that cannot be, a copy of it that the system makes."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)
    else:
        os.utime(target)  # garbage is told by the age of the object, not of a file that waited to become one


def _copy(source: Path, target: Path) -> None:
    if not hasattr(os, "copy_file_range"):  # other systems, and Pythons built for an old C library, as uv's were
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    with source.open("rb") as file, open(private_file(target), "wb") as copy:
        left = os.fstat(file.fileno()).st_size
        while left and (done := os.copy_file_range(file.fileno(), copy.fileno(), left)):
            left -= done
        os.fsync(copy.fileno())
    if left:  # some file systems copy nothing without a word; what is really too short shows when its bytes are read
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _read_exactly(descriptor: int, size: int) -> bytes:
    """All `size` bytes, in one read (and so one allocation) unless the system cuts it short."""
    data = os.read(descriptor, size)
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data
