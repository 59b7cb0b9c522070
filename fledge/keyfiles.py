"""Secret keys in files that only their owner can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
            raw = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; is this the right kit?") from error
    try:
        return Identity.from_bytes(raw)
    except Malformed as error:
        raise ConfigError(f"{path} does not hold fledge keys ({error}); restore it or enrol again") from error
