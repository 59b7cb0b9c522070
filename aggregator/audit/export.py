"""Export: a version as a plain file that the safetensors library opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from protocol.cipher import Octets
from protocol.errors import StateError

_WRITE_EXCLUSIVELY = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def write_file(path: Path, records: Iterable[Octets], *, progress: Callable[[int], None] | None = None) -> int:
    """Write plaintext records to `path` (0600, complete or not at all); returns the bytes written.

    The payload's layout *is* the safetensors layout, so nothing is converted.

    Raises:
        StateError: the file exists already or cannot be written.
    """
    if path.exists():
        raise StateError(f"{path} exists already; choose another name or remove it")
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    size = 0
    try:
        with os.fdopen(os.open(unfinished, _WRITE_EXCLUSIVELY, 0o600), "wb") as file:
            for record in records:
                file.write(record)
                size += len(record)
                if progress is not None:
                    progress(size)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return size
