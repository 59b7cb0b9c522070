"""Secret keys in files that only their owner can read."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from broker.runtime.folders import private_folder, sync_folder
from protocol.errors import ConfigError, Malformed
from protocol.keys import Identity

_LIMIT = 4096


def write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, durably.

    Raises:
        ConfigError: it exists already (keys are never overwritten) or cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is never overwritten; choose another directory") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error


def replace_private(path: Path, data: bytes) -> None:
    """Put `data` into a file of mode 0600 in one step, durably: a reader finds the old bytes or the new ones.

    Raises:
        ConfigError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_private(beside, data)
    try:
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error


def replace_as_was(path: Path, data: bytes) -> None:
    """As `replace_private`, but a file that is there keeps its owner and group, and whether the group may read it.

    For files of a server or service that runs as somebody else than who brings the new one.

    Raises:
        ConfigError: it cannot be written.
    """
    before = path.stat() if path.exists() else None
    replace_private(path, data)
    if before is not None:
        with suppress(OSError):  # who may not give it away keeps it private
            os.chown(path, before.st_uid if os.geteuid() == 0 else -1, before.st_gid)
            path.chmod(0o600 | stat.S_IMODE(before.st_mode) & stat.S_IRGRP)


def private_directory(path: Path) -> None:
    """Make a directory of mode 0700, and so what is missing above it; one that is there is left as it is.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        private_folder(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made ({error.strerror or error})") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A fresh directory of mode 0700 that becomes `folder` when the block ends well, and is gone when it does not.

    Raises:
        ConfigError: there is something of that name already, or it cannot be made.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and nothing is ever overwritten; name a new folder")
    above = folder.absolute().parent
    private_directory(above)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=above))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror or error})") from error
    try:
        yield fresh
        os.rename(fresh, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror or error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write new files of mode 0600 below a folder."""
    for name, data in files.items():
        private_directory((folder / name).parent)
        write_private(folder / name, data)


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """A file's bytes; `what` says what it should be.

    Raises:
        ConfigError: it cannot be read, or is larger than `limit`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; it should be {what}") from error
    if len(raw) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes; it should be {what}")
    return raw


def must_be_private(path: Path, mode: int) -> None:
    """Object to a file with a secret whose mode lets others read it.

    Raises:
        ConfigError: so it is.
    """
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")


def write_identity(path: Path, identity: Identity) -> None:
    """Keep an identity's secret keys in a new file of mode 0600."""
    write_private(path, identity.to_bytes())


def read_identity(path: Path) -> Identity:
    """Read an identity's secret keys.

    Raises:
        ConfigError: there is no such file, others may read it, or it does not hold keys.
    """
    try:
        with path.open("rb") as file:
            must_be_private(path, os.fstat(file.fileno()).st_mode)
            raw = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; is this the right kit?") from error
    try:
        return Identity.from_bytes(raw)
    except Malformed as error:
        raise ConfigError(f"{path} does not hold fledge keys ({error}); restore it or enrol again") from error
