"""Folders that are their owner's alone, whatever the umask."""

from __future__ import annotations

from pathlib import Path


def private_folder(path: Path) -> None:
    """Make a folder of mode 0700, and so what is missing above it (`mkdir` gives that the umask's); others stay.

    Raises:
        OSError: it cannot be made, or a file is in the way.
    """
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)
    path.mkdir(exist_ok=True)  # says so if a file is in the way
