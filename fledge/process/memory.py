"""How this process's memory goes back to the system."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_BLOCK = 512 * 1024


def return_large_blocks() -> None:
    """Have glibc give blocks of half a MiB and more back to the system as soon as they are freed.

    By default it raises its threshold to the largest block freed so far, and then every thread that ever moved a chunk
    keeps some: with chunks of 8 MiB a worker stayed 120 MiB larger than what it used, an aggregator 40 MiB. Other C
    libraries are left as they are.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BLOCK)
    except (OSError, AttributeError):
        return
