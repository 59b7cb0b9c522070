"""Folders and files that are their owner's alone, whatever the umask; and folders whose entries outlast a crash."""

from __future__ import annotations

import os
from io import RawIOBase
from pathlib import Path


def private_folder(path: Path) -> None:
    """Make a folder of mode 0700, and so what is missing above it (`mkdir` gives that the umask's); others stay.

    Raises:
        OSError: it cannot be made, or a file is in the way.
    """
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
    path.mkdir(exist_ok=True)  # says so if a file is in the way


def private_file(path: Path) -> int:
    """A descriptor to write a new file of mode 0600 by.

    Raises:
        OSError: it cannot be made, or is there already.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(file: RawIOBase, data: bytes | bytearray | memoryview) -> None:
    """Write all of it, however many calls of the system that takes.

    Raises:
        OSError: the disk is full, or failed.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync_folder(path: Path) -> None:
    """Have what was renamed, made or removed in a folder outlast a crash.

    Raises:
        OSError: it is no folder, or the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
