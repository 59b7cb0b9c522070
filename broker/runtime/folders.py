"""Folders that are their owner's alone, whatever the umask; and folders whose entries outlast a crash."""

from __future__ import annotations

import os
from pathlib import Path


def private_folder(path: Path) -> None:
    """Make a folder of mode 0700, and so what is missing above it (`mkdir` gives that the umask's); others stay.

    Raises:
        OSError: it cannot be made, or a file is in the way.
    """
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
    path.mkdir(exist_ok=True)  # says so if a file is in the way


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
