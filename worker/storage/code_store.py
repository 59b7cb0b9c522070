"""Deployed code in the site's keeping: each archive that an operator's order named, its files unpacked beside it.

`<sha256>.zip` is what counts: it is durable before anything is noted, and its hash is compared whenever its files are
wanted. The folder `<sha256>` is made anew from it each time, so whatever became of the files on the disk is never
executed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from broker.runtime.code_archive import read_archive
from broker.runtime.folders import private_file, private_folder, sync_folder
from protocol import limits
from protocol.errors import DiskFull, StateError, Tampered, WireError

_KEPT = re.compile(r"([0-9a-f]{64})(?:\.zip)?")
_UNFINISHED = ".unfinished."


class CodeLost(StateError):
    """The site no longer holds this code as it was deployed."""


class CodeStore:
    """A directory of code by digest, readable by its owner only; made when there is something to keep. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()

    def keep(self, code: bytes, raw: bytes) -> None:
        """Take an archive into keeping; once more is no harm. `code` is the SHA-256 that a signed order names.

        Raises:
            Tampered: the archive is another one.
            Malformed, TooLarge: it holds what is not taken.
            DiskFull, StateError: it cannot be written.
        """
        found = hashlib.sha256(raw).digest()
        if found != code:
            raise Tampered(
                f"the code has the SHA-256 {found.hex()}, the order names {code.hex()}; nothing of it was kept"
            )
        with self._lock:
            try:
                private_folder(self.directory)
                self._unpack(code, raw)
                unfinished = self._unfinished()
                _write(unfinished, raw)
                os.replace(unfinished, self._zip(code))
                sync_folder(self.directory)
            except OSError as error:
                raise _failed(self.directory, error) from error
            finally:
                self._tidy()

    def archive(self, code: bytes) -> bytes:
        """An archive that is kept, as it was deployed.

        Raises:
            CodeLost: it is gone, or is another one now.
        """
        with self._lock:
            return self._kept(code)

    def unpacked(self, code: bytes) -> Path:
        """The folder with the files of code that is kept, fresh from its archive.

        Raises:
            CodeLost: the archive is gone, or is another one now.
            DiskFull, StateError: the folder cannot be written.
        """
        with self._lock:
            raw = self._kept(code)
            try:
                return self._unpack(code, raw)
            except WireError as error:  # a newer version may take less than the one that kept it
                raise CodeLost(f"{self._zip(code)} is no longer taken: {error}") from error
            except OSError as error:
                raise _failed(self.directory, error) from error
            finally:
                self._tidy()

    def forget(self, code: bytes) -> None:
        """Delete code; what cannot be deleted now is swept at the next start."""
        with self._lock:
            _delete(self._zip(code))
            _delete(self._folder(code))

    def sweep(self, keep: Iterable[bytes]) -> int:
        """Delete whatever is not code to keep; returns how many entries that were."""
        wanted = {code.hex() for code in keep}
        found = [_KEPT.fullmatch(entry) or entry for entry in _names(self.directory)]
        gone = [each for each in found if isinstance(each, str) or each[1] not in wanted]
        for each in gone:
            _delete(self.directory / (each if isinstance(each, str) else each.string))
        return len(gone)

    def _kept(self, code: bytes) -> bytes:
        path = self._zip(code)
        try:
            with path.open("rb") as file:
                raw = file.read(limits.CODE + 1)
        except OSError as error:
            raise CodeLost(f"{path}: {error.strerror}; have the run's code deployed again") from error
        if hashlib.sha256(raw).digest() != code:
            raise CodeLost(f"{path} was changed; have the run's code deployed again")
        return raw

    def _unpack(self, code: bytes, raw: bytes) -> Path:
        """Write the files into a folder of another name first, so that a folder of this name is always whole."""
        unfinished, folder = self._unfinished(), self._folder(code)
        unfinished.mkdir(mode=0o700)
        for parts, content in read_archive(raw):
            inner = unfinished
            for part in parts[:-1]:
                inner /= part
                inner.mkdir(exist_ok=True, mode=0o700)
            _write(inner / parts[-1], content, sync=False)
        if os.path.lexists(folder):
            os.replace(folder, self._unfinished())
        os.replace(unfinished, folder)
        return folder

    def _tidy(self) -> None:
        for name in _names(self.directory):
            if name.startswith(_UNFINISHED):
                _delete(self.directory / name)

    def _zip(self, code: bytes) -> Path:
        return self.directory / f"{code.hex()}.zip"

    def _folder(self, code: bytes) -> Path:
        return self.directory / code.hex()

    def _unfinished(self) -> Path:
        return self.directory / f"{_UNFINISHED}{secrets.token_hex(8)}"


def _write(path: Path, content: bytes, *, sync: bool = True) -> None:
    with open(private_file(path), "wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _failed(directory: Path, error: OSError) -> StateError:
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StateError
    return kind(f"deployed code cannot be kept in {directory}: {error.strerror}; check the disk and its permissions")
